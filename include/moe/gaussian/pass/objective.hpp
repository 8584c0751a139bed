// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "moe/gaussian/pass/held_intercept.hpp"
#include "moe/gaussian/pass/information_weight.hpp"
#include "moe/gaussian/pass/sums.hpp"

namespace moe::inline MOE_ABI::detail {

/// Is the gate bias an argument of `inner`, so that it shares the factor of its slope?
inline bool bias_follows_slope(const GateForm& form, bool linear) { return linear || form.bias == BiasPlace::Inside; }

/// What is taken off the log-likelihood: ridge / 2 |gate coefficients|^2 + map sum_j (1 / nu_j + log nu_j), on
/// standardised data.
struct Penalty {
  double ridge = 0, map = 0;

  double operator()(const GaussianParameters& m, const ParameterLayout& at) const {
    double sum = 0;
    for (Index j = 0; j < at.num_experts; ++j) {
      if (j < at.free_slopes) sum += 0.5 * ridge * m.gate_slope.row(j).squaredNorm();
      if (j < at.free_biases) sum += 0.5 * ridge * m.gate_bias(j) * m.gate_bias(j);
      if (map > 0) sum += map * (1 / m.variance(j) + std::log(m.variance(j)));
    }
    return sum;
  }

  void add_to_score(const GaussianParameters& m, const ParameterLayout& at, Eigen::VectorXd& score) const {
    for (Index j = 0; j < at.num_experts; ++j) {
      for (Index c = 0; j < at.free_slopes && c < at.gate_dim(); ++c)
        score(at.gate_slope(j) + c) -= ridge * m.gate_slope(j, at.gate_input(c));
      if (j < at.free_biases) score(at.gate_bias(j)) -= ridge * m.gate_bias(j);
      score(at.log_variance(j)) += map * (1 / m.variance(j) - 1);
    }
  }

  void add_to_information(const GaussianParameters& m, const ParameterLayout& at, Eigen::MatrixXd& information) const {
    for (Index c = 0; c < at.gate_bias(at.free_biases); ++c) information(c, c) += ridge;
    for (Index j = 0; j < at.num_experts; ++j)
      information(at.log_variance(j), at.log_variance(j)) += map / m.variance(j);
  }
};

/// The penalised log-likelihood of some rows, as optimisers see it: whatever the gate, a function of
/// GaussianParameters. Immutable but for `set_active`.
class Objective {
 public:
  virtual ~Objective() = default;

  Index num_rows() const { return rows_.num_rows(); }
  double total_weight() const { return rows_.total_weight(); }
  const RowBlocks& rows() const { return rows_; }
  const ParameterLayout& layout() const { return at_; }
  /// With an intercept for every expert, whether it is free or not.
  const ParameterLayout& whole() const { return whole_; }
  const HeldIntercept<>& held() const { return held_; }
  const Penalty& penalty() const { return penalty_; }
  const GateForm& form() const { return form_; }
  bool linear() const { return linear_; }
  /// Experts per row: for an annealed search of sparse gates.
  void set_active(Index active) { form_.active = active; }

  double value(const GaussianParameters& m) const { return raw_value(m) - penalty_(m, at_); }
  double score(const GaussianParameters& m, Eigen::VectorXd& score) const {
    const double value = raw_score(m, score);
    held_.reduce(score);
    penalty_.add_to_score(m, at_, score);
    return value - penalty_(m, at_);
  }
  /// Also minus the second derivatives.
  double information(const GaussianParameters& m, Eigen::VectorXd& score, Eigen::MatrixXd& information) const {
    const double value = raw_pairs(m, score, information, Pairs::Observed);
    held_.reduce(score);
    held_.reduce(information);
    penalty_.add_to_score(m, at_, score);
    penalty_.add_to_information(m, at_, information);
    return value - penalty_(m, at_);
  }
  /// What an M-step needs, in whole(): the score, without the penalties, and the information of the complete data
  /// (CompleteWeight), with the ridge; of rows with precisions also sum w_i r_ij, at (log nu_j, log nu_j). Returns the
  /// penalised value. O(n k^2 d^2), or without that of the gate (with_gate false: its information is 0 but for the
  /// ridge) O(n k d^2).
  double complete(const GaussianParameters& m, Eigen::VectorXd& score, Eigen::MatrixXd& information,
                  bool with_gate = true) const {
    const double value = raw_pairs(m, score, information, with_gate ? Pairs::Complete : Pairs::Experts);
    for (Index c = 0; c < at_.gate_bias(at_.free_biases); ++c) information(c, c) += penalty_.ridge;
    return value - penalty_(m, at_);
  }
  virtual Eigen::VectorXd log_density(const GaussianParameters& m) const = 0;
  virtual std::unique_ptr<Objective> clone() const = 0;

 protected:
  /// Second derivatives, all of them; of the complete data; of the complete data in the experts alone.
  enum class Pairs { Observed, Complete, Experts };

  Objective(const RowBlocks& rows, const ParameterLayout& at, const GateForm& form, const Penalty& penalty)
      : rows_(rows), at_(at), whole_(at.with_intercept()), form_(form), penalty_(penalty), held_(at) {}

  bool linear_ = false;

 private:
  virtual double raw_value(const GaussianParameters&) const = 0;
  virtual double raw_score(const GaussianParameters&, Eigen::VectorXd&) const = 0;
  virtual double raw_pairs(const GaussianParameters&, Eigen::VectorXd&, Eigen::MatrixXd&, Pairs) const = 0;

  const RowBlocks& rows_;
  ParameterLayout at_, whole_;
  GateForm form_;
  Penalty penalty_;
  HeldIntercept<> held_;
};

/// One for each function between u and z; moe/gaussian/pass/scored_objective.hpp has those of other scores.
template <class Inner>
class ObjectiveOf final : public Objective {
 public:
  static constexpr bool kLinear = std::is_same_v<Inner, Identity>;

  ObjectiveOf(const RowBlocks& rows, const ParameterLayout& at, const GateForm& form, const Penalty& penalty = {})
      : Objective(rows, at, form, penalty),
        blocks_(whole(), bias_follows_slope(form, kLinear)),
        all_(blocks_),
        complete_(blocks_, with_rows(CompleteWeight::keep, rows)),
        experts_(blocks_, with_rows(CompleteWeight::keep_experts, rows)) {
    linear_ = kLinear;
  }

  std::unique_ptr<Objective> clone() const override { return std::make_unique<ObjectiveOf>(*this); }

  Eigen::VectorXd log_density(const GaussianParameters& m) const override {
    Eigen::VectorXd out(num_rows());
    for_each_block(m, [&](Index first, Index count, const PosteriorColumns& columns) {
      for (Index i = 0; i < count; ++i) out(first + i) = columns.shift[i] + std::log(columns.ratio[i]);
    });
    return out;
  }

  /// Calls visit(first row, number of rows, columns) for every block.
  template <class F>
  void for_each_block(const GaussianParameters& m, F&& visit) const {
    const MixtureCoefficients coefficients(m, form());
    parallel_ranges(rows().num_blocks(), /*grain=*/16, [&](Index begin, Index end, Index) {
      AlignedBuffer<double> memory(PosteriorColumns::size(m.num_experts()));
      const PosteriorColumns columns(memory.data(), m.num_experts());
      const Posterior<Inner> posterior(coefficients, columns);
      for (Index b = begin; b < end; ++b) {
        posterior(rows().features(b), rows().output(b), rows().scale(b));
        visit(b * kBlockRows, rows().rows(b), columns);
      }
    });
  }

  /// sum_i s_i s_i^T of the scores of rows.
  Eigen::MatrixXd score_covariance(const GaussianParameters& m) const {
    const MixtureCoefficients coefficients = prepare(m);
    const PairSums<Inner, ScoreProductWeight> sums(coefficients, blocks_, all_);
    Eigen::MatrixXd out = Eigen::MatrixXd::Zero(whole().size(), whole().size());
    sums.scatter(sweep<Inner>(rows(), coefficients, sums).data() + 1, out);
    held().reduce(out);
    return out;
  }

 private:
  /// Where precisions are in the information of the means, the rows of experts are sums of their own.
  template <class Keep>
  static auto with_rows(Keep keep, const RowBlocks& rows) {
    return [keep, scaled = rows.scaled()](const ScoreBlock& p, const ScoreBlock& q) {
      return keep(p, q) || (scaled && CompleteWeight::keep_rows(p, q));
    };
  }

  MixtureCoefficients prepare(const GaussianParameters& m) const {
    MixtureCoefficients coefficients(m, form());
    coefficients.keep_scores = layout().free_temperature;
    return coefficients;
  }

  double raw_value(const GaussianParameters& m) const override {
    return sweep<Inner>(rows(), prepare(m), NoSums{}).front();
  }

  double raw_score(const GaussianParameters& m, Eigen::VectorXd& score) const override {
    const MixtureCoefficients coefficients = prepare(m);
    const ScoreSums<Inner> sums(coefficients, blocks_);
    const std::vector<double> total = sweep<Inner>(rows(), coefficients, sums);
    score.setZero(whole().size());
    sums.scatter(total.data() + 1, score);
    return total.front();
  }

  double raw_pairs(const GaussianParameters& m, Eigen::VectorXd& score, Eigen::MatrixXd& information,
                   Pairs which) const override {
    const MixtureCoefficients coefficients = prepare(m);
    if (which == Pairs::Observed)
      return joined(coefficients, PairSums<Inner, InformationWeight>(coefficients, blocks_, all_), score, information);
    const BlockPairs& pairs = which == Pairs::Complete ? complete_ : experts_;
    return joined(coefficients, PairSums<Inner, CompleteWeight>(coefficients, blocks_, pairs), score, information);
  }

  template <class Sums>
  double joined(const MixtureCoefficients& coefficients, const Sums& pairs, Eigen::VectorXd& score,
                Eigen::MatrixXd& information) const {
    const ScoreSums<Inner> scores(coefficients, blocks_);
    const JoinedSums both(scores, pairs);
    const std::vector<double> total = sweep<Inner>(rows(), coefficients, both);
    score.setZero(whole().size());
    information.setZero(whole().size(), whole().size());
    scores.scatter(total.data() + 1, score);
    pairs.scatter(total.data() + 1 + scores.size(), information);
    return total.front();
  }

  ScoreBlocks blocks_;
  BlockPairs all_, complete_, experts_;
};

}  // namespace moe::inline MOE_ABI::detail
