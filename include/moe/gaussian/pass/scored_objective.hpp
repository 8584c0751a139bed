// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/pass/objective.hpp"

// Scores that are not beta_1 . x: a sum of features phi(x) of the row with coefficients gamma_j(beta_1j), in a
// function.
//   Cosine    phi = x / (|x| + t2)       gamma_j = beta_1j / (|beta_1j| + t1)
//   Distance  phi = (x, |x|^2, 1)        gamma_j = (-2 beta_1j, 1, |beta_1j|^2), and -sqrt behind
// So the loops of inner products serve them, and the chain rule takes their sums to beta_1.
namespace moe::inline MOE_ABI::detail {

/// gamma_j and its derivatives in beta_1j, inputs times `unit`. Immutable.
template <class = WhenUsed>
class CoefficientMap {
 public:
  CoefficientMap(const GateScore& score, Index inputs) : score_(score), d_(inputs) {}

  Index num_features() const { return score_.kind == GateScoreKind::Cosine ? d_ : d_ + 2; }

  Eigen::VectorXd coefficients(const Eigen::VectorXd& beta) const {
    if (score_.kind == GateScoreKind::Cosine) return share(beta.stableNorm()) * beta;
    Eigen::VectorXd gamma(d_ + 2);
    const double square = score_.unit * score_.unit;
    gamma << -2 * square * beta, square, square * beta.squaredNorm();
    return gamma;
  }

  /// [features, inputs]
  Eigen::MatrixXd jacobian(const Eigen::VectorXd& beta) const {
    const Eigen::MatrixXd one = Eigen::MatrixXd::Identity(d_, d_);
    if (score_.kind == GateScoreKind::Cosine) {
      const double r = beta.stableNorm(), w = share(r);
      if (!(r > 0)) return w * one;
      const Eigen::VectorXd unit = beta / r;
      return w * (one - (w * r) * unit * unit.transpose());
    }
    Eigen::MatrixXd out = Eigen::MatrixXd::Zero(d_ + 2, d_);
    const double square = score_.unit * score_.unit;
    out.topRows(d_) = -2 * square * one;
    out.row(d_ + 1) = 2 * square * beta.transpose();
    return out;
  }

  /// sum_a s_a d^2 gamma_a / d beta^2 [inputs, inputs]
  Eigen::MatrixXd curvature(const Eigen::VectorXd& beta, const Eigen::VectorXd& s) const {
    const Eigen::MatrixXd one = Eigen::MatrixXd::Identity(d_, d_);
    if (score_.kind == GateScoreKind::Distance) return (2 * score_.unit * score_.unit * s(d_ + 1)) * one;
    const double r = beta.stableNorm(), w = share(r);
    if (!(r > 0)) return Eigen::MatrixXd::Zero(d_, d_);
    const Eigen::VectorXd unit = beta / r;
    const double along = s.dot(unit);
    const Eigen::MatrixXd cross = unit * s.transpose();
    return w * w * ((2 * w * r + 1) * along * unit * unit.transpose() - along * one - cross - cross.transpose());
  }

  /// phi of the rows of a block, from their inputs in `columns`.
  void features(const double* x, const std::vector<Index>& columns, Index rows, double* out) const {
    for (Index i = 0; i < rows; ++i) {
      const auto at = [&](Index c) { return x[columns[static_cast<std::size_t>(c)] * kBlockRows + i]; };
      const auto to = [&](Index c) -> double& { return out[c * kBlockRows + i]; };
      const double r = length_of(d_, at), length = score_.unit * r + score_.input_shift;
      const bool cosine = score_.kind == GateScoreKind::Cosine;
      for (Index c = 0; c < d_; ++c) to(c) = !cosine ? at(c) : length > 0 ? score_.unit * at(c) / length : 0.0;
      if (cosine) continue;
      to(d_) = r * r;
      to(d_ + 1) = 1;
    }
  }

 private:
  /// 1 / (r + t1); a direction of length 0 has no cosine, and stays where it is.
  double share(double r) const { return r + score_.weight_shift > 0 ? 1 / (r + score_.weight_shift) : 0; }

  GateScore score_;
  Index d_;
};

/// The objective of a gate whose score is of another kind: one of features, and the chain rule. Twice the columns.
template <ScoredInner Inner>
class ObjectiveOf<Inner> final : public Objective {
 public:
  static constexpr bool kLinear = false;

  ObjectiveOf(const RowBlocks& rows, const ParameterLayout& at, const GateForm& form, const Penalty& penalty = {})
      : Objective(rows, at, form, penalty),
        map_(form.score, at.gate_dim()),
        columns_(columns_of(at)),
        inner_at_(inner_layout(whole(), map_.num_features())),
        features_(std::make_shared<RowBlocks>(
            rows, map_.num_features(),
            [&](const double* x, Index count, double* out) { map_.features(x, columns_, count, out); })),
        inner_(*features_, inner_at_, {.active = form.active, .bias = BiasPlace::Outside}) {}

  std::unique_ptr<Objective> clone() const override { return std::make_unique<ObjectiveOf>(*this); }
  Eigen::VectorXd log_density(const GaussianParameters& m) const override { return inner_.log_density(inner(m)); }
  template <class F>
  void for_each_block(const GaussianParameters& m, F&& visit) const {
    inner_.for_each_block(inner(m), visit);
  }
  Eigen::MatrixXd score_covariance(const GaussianParameters& m) const {
    const Eigen::MatrixXd to_inner = jacobian(m);
    Eigen::MatrixXd out = to_inner.transpose() * inner_.score_covariance(inner(m)) * to_inner;
    held().reduce(out);
    return out;
  }

 private:
  static std::vector<Index> columns_of(const ParameterLayout& at) {
    std::vector<Index> columns;
    for (Index c = 0; c < at.gate_dim(); ++c) columns.push_back(at.gate_input(c));
    return columns;
  }

  static ParameterLayout inner_layout(ParameterLayout at, Index more) {
    std::vector<Index> gate, experts;
    for (Index c = 0; c < at.expert_dim(); ++c) experts.push_back(at.expert_input(c));
    for (Index c = 0; c < more; ++c) gate.push_back(at.input_dim + c);
    at.input_dim += more;
    at.gate_inputs = std::move(gate);
    at.expert_inputs = std::move(experts);
    at.score = GateScoreKind::Product;
    return at;
  }

  Eigen::VectorXd beta(const GaussianParameters& m, Index j) const { return m.gate_slope.row(j)(columns_).transpose(); }

  GaussianParameters inner(const GaussianParameters& m) const {
    const Index k = m.num_experts(), d = m.input_dim(), more = map_.num_features();
    GaussianParameters out{.gate_slope = Matrix<double>::Zero(k, d + more),
                           .gate_bias = m.gate_bias,
                           .temperature = m.temperature,
                           .slope = Matrix<double>::Zero(k, d + more),
                           .intercept = m.intercept,
                           .variance = m.variance};
    out.slope.leftCols(d) = m.slope;
    for (Index j = 0; j < k; ++j) out.gate_slope.row(j).tail(more) = map_.coefficients(beta(m, j)).transpose();
    return out;
  }

  /// d theta of features / d theta.
  Eigen::MatrixXd jacobian(const GaussianParameters& m) const {
    const ParameterLayout& at = whole();
    const Index d = at.gate_dim(), more = map_.num_features(), rest = at.size() - at.gate_bias(0);
    Eigen::MatrixXd out = Eigen::MatrixXd::Zero(inner_at_.size(), at.size());
    for (Index j = 0; j < at.free_slopes; ++j)
      out.block(inner_at_.gate_slope(j), at.gate_slope(j), more, d) = map_.jacobian(beta(m, j));
    out.bottomRightCorner(rest, rest).setIdentity();
    return out;
  }

  double raw_value(const GaussianParameters& m) const override { return inner_.value(inner(m)); }

  double raw_score(const GaussianParameters& m, Eigen::VectorXd& score) const override {
    const double value = inner_.score(inner(m), score);
    score = (jacobian(m).transpose() * score).eval();
    return value;
  }

  double raw_pairs(const GaussianParameters& m, Eigen::VectorXd& score, Eigen::MatrixXd& information,
                   Pairs which) const override {
    const Eigen::MatrixXd to_inner = jacobian(m);
    const double value = which == Pairs::Observed
                             ? inner_.information(inner(m), score, information)
                             : inner_.complete(inner(m), score, information, which == Pairs::Complete);
    information = (to_inner.transpose() * information * to_inner).eval();
    const Index d = layout().gate_dim(), more = map_.num_features();
    for (Index j = 0; which == Pairs::Observed && j < layout().free_slopes; ++j)
      information.block(layout().gate_slope(j), layout().gate_slope(j), d, d) -=
          map_.curvature(beta(m, j), score.segment(inner_at_.gate_slope(j), more));
    score = (to_inner.transpose() * score).eval();
    return value;
  }

  CoefficientMap<> map_;
  std::vector<Index> columns_;
  ParameterLayout inner_at_;
  std::shared_ptr<const RowBlocks> features_;
  ObjectiveOf<typename Inner::OfFeatures> inner_;
};

}  // namespace moe::inline MOE_ABI::detail
