// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/starts.hpp"

namespace moe::inline MOE_ABI::detail {

/// Starts from the end of a run: the likelihood has many maxima that share most of their experts, and one expert that
/// is in the wrong place keeps EM from all better ones. Three kinds of moves in turn,
///   hand over   a part of the rows of one expert goes to another
///   replace     an expert is given up, and starts anew on a part of the rows of another
///   merge       two experts become one, and the second starts anew on a part of the rows of a third; from k = 3 on
/// where a part is what lies on one side of a random border in x, above or below its expert, or nearest to it or to a
/// plane through d + 1 of its rows. Weights are those of the rows that Starts knows, with all experts active.
/// Immutable; the move of a number is always the same. Ueda, Nakano, Ghahramani & Hinton, "SMEM algorithm for mixture
/// models", Neural Computation 2000; Fraenti & Kivijaervi, "Randomised local search algorithm for the clustering
/// problem", Pattern Anal. Appl. 2000 (replace).
template <class = WhenUsed>
class Moves {
 public:
  explicit Moves(const Starts<>& starts) : starts_(starts), sample_(starts.sample()) {}

  /// Move number `move` of search number `search`, from a model of two experts or more.
  GaussianParameters operator()(GaussianParameters m, Index search, Index move) const {
    const Index k = m.num_experts();
    const RandomField random(Purpose::Initialise, starts_.seed(), search, move, kKey);
    const Index to = pick(random, k, 0), shift = 1 + pick(random, k - 1, 1), from = (to + shift) % k;
    const Eigen::MatrixXd weight = starts_.responsibilities(m);
    const Eigen::VectorXd part = part_of(random, from, m, weight);
    const Eigen::VectorXd given = weight.col(from).cwiseProduct(part);
    const auto kind = move % (k > 2 ? 3 : 2);
    if (kind == 0) {
      refit(to, weight.col(to) + given, m);
    } else {
      if (kind == 2) merge(to, other_than(random, k, to, from), weight, m);
      start_anew(to, from, weight.col(from), given, m);
      refit(to, given, m);
    }
    refit(from, weight.col(from) - given, m);
    starts_.pin(m);
    return m;
  }

 private:
  static constexpr std::int64_t kKey = 0x6d6f7665;  ///< apart from the keys of starts

  static Index pick(const RandomField& random, Index count, std::int64_t draw) {
    return static_cast<Index>(random.below(static_cast<std::uint64_t>(count), draw, 20));
  }

  static Index other_than(const RandomField& random, Index k, Index a, Index b) {
    Index other = pick(random, k - 2, 2);
    for (const Index taken : {std::min(a, b), std::max(a, b)}) other += other >= taken ? 1 : 0;
    return other;
  }

  void refit(Index expert, const Eigen::VectorXd& weight, GaussianParameters& m) const {
    starts_.regress(sample_, weight.cwiseMax(0), expert, m);
  }

  /// 1 for the rows that go, 0 for the others.
  Eigen::VectorXd part_of(const RandomField& random, Index expert, const GaussianParameters& m,
                          const Eigen::MatrixXd& weight) const {
    const Index d = m.input_dim(), how = pick(random, 5, 3);
    Eigen::VectorXd v(sample_.y.size());
    if (how < 2) {  // more often, as it is what gates do
      Eigen::VectorXd direction(d + 1);
      for (Index c = 0; c < d; ++c) direction(c) = starts_.splits_by(c) ? random.normal(c, 21) : 0;
      direction(d) = 0;
      v = sample_.x * direction;
    } else {
      GaussianParameters plane = m;
      if (how == 4) {
        Eigen::VectorXd few = Eigen::VectorXd::Zero(v.size());
        for (Index i = 0; i < starts_.rows_of_plane(); ++i) few(row_of(random, weight.col(expert), 30 + i)) += 1;
        starts_.regress(sample_, few, expert, plane);
      }
      v = sample_.y - sample_.x.leftCols(d) * plane.slope.row(expert).transpose();
      v.array() -= double(plane.intercept(expert));
      if (how > 2) v = -v.cwiseAbs();
      if (how == 2 && random.uniform(0, 22) < 0.5) v = -v;
    }
    const double cut = v(row_of(random, weight.col(expert), 23));
    return (v.array() >= cut).cast<double>();
  }

  /// A row of an expert, with probability proportional to its weight.
  static Index row_of(const RandomField& random, const Eigen::VectorXd& weight, std::int64_t draw) {
    double rest = random.uniform(0, draw) * weight.sum();
    for (Index i = 0; i < weight.size(); ++i)
      if ((rest -= weight(i)) <= 0) return i;
    return weight.size() - 1;
  }

  /// What two experts had goes to the second, whose gate becomes their mean by rows, with the weight of both.
  void merge(Index first, Index second, const Eigen::MatrixXd& weight, GaussianParameters& m) const {
    const double a = weight.col(first).sum(), b = weight.col(second).sum(), share = a / std::max(a + b, 1e-300);
    m.gate_slope.row(second) += share * (m.gate_slope.row(first) - m.gate_slope.row(second));
    m.gate_bias(second) += share * (m.gate_bias(first) - m.gate_bias(second)) + starts_.bias_unit(m) * std::log(2);
    refit(second, weight.col(first) + weight.col(second), m);
  }

  /// The gate of `from` for both, by their rows.
  void start_anew(Index to, Index from, const Eigen::VectorXd& weight, const Eigen::VectorXd& given,
                  GaussianParameters& m) const {
    const double all = std::max(weight.sum(), 1e-9), share = std::clamp(given.sum() / all, 0.05, 0.95);
    m.gate_slope.row(to) = m.gate_slope.row(from).eval();
    m.gate_bias(to) = m.gate_bias(from) + starts_.bias_unit(m) * std::log(share);
    m.gate_bias(from) += starts_.bias_unit(m) * std::log(1 - share);
  }

  const Starts<>& starts_;
  const RowSample& sample_;
};

}  // namespace moe::inline MOE_ABI::detail
