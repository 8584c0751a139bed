// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "moe/gaussian/pass/objective.hpp"

namespace moe::inline MOE_ABI::detail {

/// The log-likelihood of a mixture as a function of its gate alone, sum_i w_i log sum_j pi_j f_ij with the densities f
/// of the experts given. The optimisers of moe/gaussian see an Objective whose experts have no parameters; Em then
/// takes a step in the gate, and border searches move it.
class GateObjective : public Objective {
 public:
  /// log f_ij of the components [n, k]; bounded below, so that a row that no component explains is no NaN.
  void set_log_densities(const Matrix<double>& values) {
    constexpr double kLeast = -1e300;
    const Index k = layout().num_experts;
    densities_.resize(rows().num_blocks() * k, kBlockRows);
    densities_.setZero();
    for (Index i = 0; i < values.rows(); ++i)
      for (Index j = 0; j < k; ++j) densities_(i / kBlockRows * k + j, i % kBlockRows) = std::max(values(i, j), kLeast);
  }

  Eigen::VectorXd log_density(const GaussianParameters& m) const override {
    Eigen::VectorXd out(num_rows());
    for_each_block(m, [&](Index first, Index count, const PosteriorColumns& columns) {
      for (Index i = 0; i < count; ++i) out(first + i) = columns.shift[i] + std::log(columns.ratio[i]);
    });
    return out;
  }

  /// Calls visit(first row, number of rows, columns), with posteriors of the densities, for every block in parallel.
  /// The scales of the weights are 1.
  virtual void for_each_block(const GaussianParameters& m,
                              const std::function<void(Index, Index, const PosteriorColumns&)>& visit) const = 0;
  /// dz_j / du_j and, of the second kind, d z_j / d beta_0j at u.
  virtual double slope(double u) const = 0;

  /// A model of the gate alone, whose experts are all the same.
  static GaussianParameters gate_of(Matrix<double> slope, Eigen::RowVectorXd bias, double temperature) {
    GaussianParameters m;
    const Index k = slope.rows(), d = slope.cols();
    m.gate_slope = std::move(slope);
    m.gate_bias = std::move(bias);
    m.temperature = temperature;
    m.slope = Matrix<double>::Zero(k, d);
    m.intercept = Eigen::RowVectorXd::Zero(k);
    m.variance = Eigen::RowVectorXd::Ones(k);
    m.expert_inputs = std::vector<Index>();
    return m;
  }

 protected:
  GateObjective(const RowBlocks& rows, const ParameterLayout& at, const GateForm& form, const Penalty& penalty)
      : Objective(rows, at, form, penalty) {}

  /// Replaces the posteriors of a block by those of the densities.
  void replace(Index block, const PosteriorColumns& c) const {
    const Index k = layout().num_experts;
    const double* log_density = densities_.row(block * k).data();
    for (Index i = 0; i < kBlockRows; ++i) {
      double most_z = -std::numeric_limits<double>::infinity(), most_t = most_z, sum = 0;
      for (Index j = 0; j < k; ++j) {
        const Index at = j * kBlockRows + i;
        most_z = std::max(most_z, c.score[at]);
        most_t = std::max(most_t, c.posterior[at] = c.score[at] + log_density[at]);
      }
      for (Index j = 0; j < k; ++j) {
        double& t = c.posterior[j * kBlockRows + i];
        sum += t = std::exp(t - most_t);
      }
      c.posterior_scale[i] = 1 / sum;
      c.shift[i] = most_t - most_z;
      c.ratio[i] = sum * c.prior_scale[i];
    }
  }

 private:
  Matrix<double> densities_ = {};  // [blocks * k, kBlockRows]
};

/// One for each function between u and z.
template <class Inner>
class GateObjectiveOf final : public GateObjective {
 public:
  static constexpr bool kLinear = std::is_same_v<Inner, Identity>;

  GateObjectiveOf(const RowBlocks& rows, const ParameterLayout& at, const GateForm& form, const Penalty& penalty = {})
      : GateObjective(rows, at, form, penalty),
        blocks_(at, bias_follows_slope(form, kLinear)),
        pairs_(blocks_, [](const ScoreBlock& p, const ScoreBlock& q) { return p.is_gate() && q.is_gate(); }) {
    linear_ = kLinear;
  }

  std::unique_ptr<Objective> clone() const override { return std::make_unique<GateObjectiveOf>(*this); }

  double slope(double u) const override { return Inner::derivative(u); }

  void for_each_block(const GaussianParameters& m,
                      const std::function<void(Index, Index, const PosteriorColumns&)>& visit) const override {
    const MixtureCoefficients coefficients(m, form());
    parallel_ranges(rows().num_blocks(), /*grain=*/4, [&](Index begin, Index end, Index) {
      AlignedBuffer<double> memory(PosteriorColumns::size(m.num_experts()));
      const PosteriorColumns columns(memory.data(), m.num_experts());
      const Posterior<Inner> posterior(coefficients, columns);
      for (Index b = begin; b < end; ++b) {
        posterior(rows().features(b), rows().output(b));
        replace(b, columns);
        normalise_weights(columns, m.num_experts());
        visit(b * kBlockRows, rows().rows(b), columns);
      }
    });
  }

 private:
  template <class Sums>
  std::vector<double> sweep_rows(const MixtureCoefficients& coefficients, const Sums& sums) const {
    return sweep<Inner>(rows(), coefficients, sums,
                        [this](Index block, const PosteriorColumns& columns) { replace(block, columns); });
  }

  double raw_value(const GaussianParameters& m) const override {
    return sweep_rows(MixtureCoefficients(m, form()), NoSums{}).front();
  }

  double raw_score(const GaussianParameters& m, Eigen::VectorXd& score) const override {
    const MixtureCoefficients coefficients(m, form());
    const ScoreSums<Inner> sums(coefficients, blocks_);
    const std::vector<double> total = sweep_rows(coefficients, sums);
    score.setZero(layout().size());
    sums.scatter(total.data() + 1, score);
    return total.front();
  }

  double raw_pairs(const GaussianParameters& m, Eigen::VectorXd& score, Eigen::MatrixXd& information,
                   Pairs which) const override {
    information.setZero(layout().size(), layout().size());
    if (which == Pairs::Experts || pairs_.size() == 0) return raw_score(m, score);
    const MixtureCoefficients coefficients(m, form());
    if (which == Pairs::Observed)
      return joined(coefficients, PairSums<Inner, InformationWeight>(coefficients, blocks_, pairs_), score,
                    information);
    return joined(coefficients, PairSums<Inner, CompleteWeight>(coefficients, blocks_, pairs_), score, information);
  }

  template <class Sums>
  double joined(const MixtureCoefficients& coefficients, const Sums& pairs, Eigen::VectorXd& score,
                Eigen::MatrixXd& information) const {
    const ScoreSums<Inner> scores(coefficients, blocks_);
    const std::vector<double> total = sweep_rows(coefficients, JoinedSums(scores, pairs));
    score.setZero(layout().size());
    scores.scatter(total.data() + 1, score);
    pairs.scatter(total.data() + 1 + scores.size(), information);
    return total.front();
  }

  ScoreBlocks blocks_;
  BlockPairs pairs_;
};

}  // namespace moe::inline MOE_ABI::detail
