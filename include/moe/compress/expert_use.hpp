// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/core/visit.hpp"
#include "moe/layer/routed_experts.hpp"

namespace moe::inline MOE_ABI {

/// How the experts of a layer were used: sums over tokens, [num_experts] each; g is the weight of a choice, y what the
/// expert makes of the token (with WeightOn::Input of g times the token, and g |y| then means |y|). Dropped choices do
/// not count. An expert that was never used has zeros everywhere, and 0 in every score. A plain value.
struct ExpertUse {
  double tokens = 0;                  ///< that reached an expert
  Eigen::VectorXd count = {};         ///< choices
  Eigen::VectorXd weight = {};        ///< sum of g
  Eigen::VectorXd norm = {};          ///< sum of |y|
  Eigen::VectorXd square = {};        ///< sum of |y|^2
  Eigen::VectorXd gated_norm = {};    ///< sum of |g| |y|
  Eigen::VectorXd contribution = {};  ///< sum of s |g| |y|, see contribution_scores(); empty where not asked for

  ExpertUse() = default;
  /// Of no tokens.
  explicit ExpertUse(Index num_experts) {
    for (Eigen::VectorXd* sums : {&count, &weight, &norm, &square, &gated_norm})
      *sums = Eigen::VectorXd::Zero(num_experts);
  }

  Index num_experts() const { return count.size(); }
  bool empty() const { return count.size() == 0; }

  /// Throws std::invalid_argument for that of another number of experts, and where one has contributions alone.
  ExpertUse& operator+=(const ExpertUse& other) {
    require_same(other);
    tokens += other.tokens;
    count += other.count, weight += other.weight, norm += other.norm, square += other.square;
    gated_norm += other.gated_norm, contribution += other.contribution;
    return *this;
  }
  void require_same(const ExpertUse& other) const {
    if (other.num_experts() != num_experts() || other.contribution.size() != contribution.size())
      fail("moe::ExpertUse: += of ", other.num_experts(), " experts and ", other.contribution.size(),
           " contributions, expected ", num_experts(), " and ", contribution.size());
  }

  /// Share of the tokens that choose an expert, [num_experts]; their sum is the choices per token.
  std::vector<double> frequencies() const { return per(count, tokens); }
  /// Mean over tokens of the weight of an expert, 0 where it is not chosen.
  std::vector<double> mean_weights() const { return per(weight, tokens); }
  /// Sum over tokens of |g| |y|: how much of the outputs is an expert's.
  std::vector<double> gated_norms() const { return per(gated_norm, 1); }
  /// Mean over an expert's tokens of |g| |y|: what it does where it is used.
  /// Lasby et al., "REAP the experts" (arXiv:2510.13999).
  std::vector<double> saliencies() const {
    std::vector<double> result = per(gated_norm, 1);
    for (std::size_t e = 0; e < result.size(); ++e) result[e] /= std::max(1.0, count[static_cast<Index>(e)]);
    return result;
  }
  /// Sum over an expert's tokens of s |g| |y|, s = max(0, 1 - cos(x, x + r)): x is the stream that the output is added
  /// to, r what all experts of the token add. A token that the layer does not turn counts for nothing; s is 0 where x
  /// is 0, and 1 where x + r is. Throws std::invalid_argument unless calibrate() was asked for contributions.
  /// Dong et al., "Domain-specific pruning of large mixture-of-experts models with few-shot demonstrations" (EASY-EP,
  /// arXiv:2504.06792).
  std::vector<double> contributions() const {
    if (contribution.size() != num_experts())
      fail("moe::ExpertUse: there are no contributions, expected a calibration with .contribution = Gather::On");
    return per(contribution, 1);
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("tokens", self.tokens...);
    f("count", self.count...);
    f("weight", self.weight...);
    f("norm", self.norm...);
    f("square", self.square...);
    f("gated_norm", self.gated_norm...);
    if (std::get<0>(std::tie(self...)).contribution.size() > 0) f("contribution", self.contribution...);
  }

 private:
  static std::vector<double> per(const Eigen::VectorXd& sums, double number) {
    std::vector<double> result(sums.data(), sums.data() + sums.size());
    for (double& value : result) value = number > 0 ? value / number : 0;
    return result;
  }
};

/// How many tokens chose two experts together, [num_experts, num_experts]; on the diagonal, how many chose one.
struct CoActivation {
  Matrix<double> tokens = {};

  bool empty() const { return tokens.size() == 0; }
  /// Throws std::invalid_argument for those of another number of experts.
  CoActivation& operator+=(const CoActivation& other) {
    detail::require_shape("moe::CoActivation", "the other", other.tokens, tokens.rows(), tokens.cols());
    tokens += other.tokens;
    return *this;
  }

  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("tokens", self.tokens...);
  }
};

namespace detail {

/// max(0, 1 - cos(x, x + r)) of every token, r the sum over its rows of weight times row, in the order of its choices.
template <class S, class Stream>
std::vector<double> turns(const DispatchPlan& plan, const RowBuffer<S>& rows, const std::vector<double>& weight_of_row,
                          const Stream& x) {
  const Index dim = x.cols();
  std::vector<double> result(static_cast<std::size_t>(plan.num_tokens()));
  parallel_ranges(plan.num_tokens(), 64, [&](Index begin, Index end, Index) {
    std::vector<double> added(static_cast<std::size_t>(dim));
    for (Index t = begin; t < end; ++t) {
      std::ranges::fill(added, 0.0);
      for (Index a = plan.begin(t); a < plan.end(t); ++a) {
        const Index row = plan.row_of_assignment()[static_cast<std::size_t>(a)];
        if (row < 0) continue;
        const double weight = weight_of_row[static_cast<std::size_t>(row)];
        for (Index i = 0; i < dim; ++i)
          added[static_cast<std::size_t>(i)] += weight * static_cast<double>(rows.row(row)[i]);
      }
      double before = 0, after = 0, both = 0;
      for (Index i = 0; i < dim; ++i) {
        const auto old = static_cast<double>(x(t, i)), now = old + added[static_cast<std::size_t>(i)];
        before += old * old, after += now * now, both += old * now;
      }
      const double cosine = after > 0 ? both / (std::sqrt(before) * std::sqrt(after)) : 0;
      result[static_cast<std::size_t>(t)] = before > 0 ? std::max(0.0, 1 - cosine) : 0;
    }
  });
  return result;
}

/// Adds the rows of a pass, [all rows of the plan, at least dim]; `turn` of every token, or none.
template <class S>
void gather_use(const DispatchPlan& plan, const RowBuffer<S>& rows, Index dim, std::span<const S> weights,
                const std::vector<double>& weight_of_row, const std::vector<double>& turn, ExpertUse& to) {
  std::vector<double> square(static_cast<std::size_t>(plan.num_rows()));
  parallel_ranges(plan.num_rows(), 64, [&](Index begin, Index end, Index) {
    for (Index r = begin; r < end; ++r)
      for (Index i = 0; i < dim; ++i) {
        const auto y = static_cast<double>(rows.row(r)[i]);
        square[static_cast<std::size_t>(r)] += y * y;
      }
  });
  for (Index e = 0; e < plan.num_experts(); ++e)
    for (Index r = plan.offset(e); r < plan.offset(e + 1); ++r) {
      const auto row = static_cast<std::size_t>(r);
      const double norm = std::sqrt(square[row]), gated = std::abs(weight_of_row[row]) * norm;
      to.count[e] += 1;
      to.weight[e] += static_cast<double>(weights[static_cast<std::size_t>(plan.assignment_of_row()[row])]);
      to.norm[e] += norm;
      to.square[e] += square[row];
      to.gated_norm[e] += gated;
      if (!turn.empty()) to.contribution[e] += turn[static_cast<std::size_t>(plan.token_of_row()[row])] * gated;
    }
}

/// Adds the pairs of experts that tokens have reached.
inline void gather_pairs(const DispatchPlan& plan, std::span<const Index> expert_of_assignment, Matrix<double>& pairs) {
  const auto reached = [&](Index a) { return plan.row_of_assignment()[static_cast<std::size_t>(a)] >= 0; };
  for (Index t = 0; t < plan.num_tokens(); ++t)
    for (Index a = plan.begin(t); a < plan.end(t); ++a)
      for (Index b = plan.begin(t); b <= a; ++b) {
        if (!reached(a) || !reached(b)) continue;
        const Index i = expert_of_assignment[static_cast<std::size_t>(a)];
        const Index j = expert_of_assignment[static_cast<std::size_t>(b)];
        pairs(i, j) += 1;
        if (a != b) pairs(j, i) += 1;
      }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
