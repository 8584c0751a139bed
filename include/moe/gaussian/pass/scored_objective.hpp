// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/pass/objective.hpp"

// Scores that are not beta_1 . x: a sum of features phi(x) of the row with coefficients gamma_j(beta_1j), in a
// function.
//   Cosine    phi = x / (|x| + t2)       gamma_j = beta_1j / (|beta_1j| + t1)
//   Distance  phi = (x, |x|^2, 1)        gamma_j = (-2 beta_1j, 1, |beta_1j|^2), and -sqrt behind
//   Product   phi = x                    gamma_j = beta_1j
// A temperature of the score, and not of z, divides gamma_j: by tau, or tau^2 where -sqrt is behind. Behind them are
// then log sigmoid, or log sigmoid(-sqrt).
// So the loops of inner products serve them, and the chain rule takes their sums to beta_1.
namespace moe::inline MOE_ABI::detail {

/// gamma_j and its derivatives in beta_1j, inputs times `unit`. Immutable.
template <class = WhenUsed>
class CoefficientMap {
 public:
  CoefficientMap(const GateScore& score, Index inputs) : score_(score), d_(inputs) {}

  Index num_features() const { return score_.kind == GateScoreKind::Distance ? d_ + 2 : d_; }
  /// p of tau^-p, which multiplies gamma_j where a temperature divides the score; 0 where it divides z.
  double power() const {
    return score_.link == ScoreLink::Identity ? 0 : score_.kind == GateScoreKind::Distance ? 2 : 1;
  }

  Eigen::VectorXd coefficients(const Eigen::VectorXd& beta) const {
    if (score_.is_product()) return beta;
    if (score_.kind == GateScoreKind::Cosine) return share(beta.stableNorm()) * beta;
    Eigen::VectorXd gamma(d_ + 2);
    const double square = score_.unit * score_.unit;
    gamma << -2 * square * beta, square, square * beta.squaredNorm();
    return gamma;
  }

  /// [features, inputs]
  Eigen::MatrixXd jacobian(const Eigen::VectorXd& beta) const {
    const Eigen::MatrixXd one = Eigen::MatrixXd::Identity(d_, d_);
    if (score_.is_product()) return one;
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
    if (!(r > 0) || score_.is_product()) return Eigen::MatrixXd::Zero(d_, d_);
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
      if (score_.kind != GateScoreKind::Distance) continue;
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
        inner_at_(inner_layout(whole(), map_)),
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

  static ParameterLayout inner_layout(ParameterLayout at, const CoefficientMap<>& map) {
    const Index more = map.num_features();
    at.free_temperature = at.free_temperature && map.power() == 0;
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
                           .temperature = map_.power() == 0 ? m.temperature : 1,
                           .slope = Matrix<double>::Zero(k, d + more),
                           .intercept = m.intercept,
                           .variance = m.variance};
    out.slope.leftCols(d) = m.slope;
    for (Index j = 0; j < k; ++j)
      out.gate_slope.row(j).tail(more) = cooled(m) * map_.coefficients(beta(m, j)).transpose();
    return out;
  }

  /// tau^-p.
  double cooled(const GaussianParameters& m) const { return std::pow(m.temperature, -map_.power()); }

  /// d theta of features / d theta.
  Eigen::MatrixXd jacobian(const GaussianParameters& m) const {
    const ParameterLayout& at = whole();
    const Index d = at.gate_dim(), more = map_.num_features(), experts = at.size() - at.num_gate();
    Eigen::MatrixXd out = Eigen::MatrixXd::Zero(inner_at_.size(), at.size());
    for (Index j = 0; j < at.free_slopes; ++j) {
      out.block(inner_at_.gate_slope(j), at.gate_slope(j), more, d) = cooled(m) * map_.jacobian(beta(m, j));
      if (cools()) out.block(inner_at_.gate_slope(j), at.log_temperature(), more, 1) = by_temperature(m, j);
    }
    const Index biases = inner_at_.num_gate() - inner_at_.gate_bias(0);  // and a temperature that divides z
    out.block(inner_at_.gate_bias(0), at.gate_bias(0), biases, biases).setIdentity();
    out.bottomRightCorner(experts, experts).setIdentity();
    return out;
  }

  /// Is there a free temperature in gamma?
  bool cools() const { return whole().free_temperature && map_.power() > 0; }

  /// d gamma_j / d log tau.
  Eigen::VectorXd by_temperature(const GaussianParameters& m, Index j) const {
    return -map_.power() * cooled(m) * map_.coefficients(beta(m, j));
  }

  /// Takes sum_a s_a d^2 gamma_ja / d theta^2 off the information, s the score of features.
  void take_curvature(const GaussianParameters& m, Index j, const Eigen::VectorXd& s, Eigen::MatrixXd& out) const {
    const ParameterLayout& at = whole();
    const Index d = at.gate_dim(), from = at.gate_slope(j), tau = at.log_temperature();
    out.block(from, from, d, d) -= cooled(m) * map_.curvature(beta(m, j), s);
    if (!cools()) return;
    const Eigen::VectorXd cross = map_.power() * cooled(m) * (map_.jacobian(beta(m, j)).transpose() * s);
    out.block(from, tau, d, 1) += cross;
    out.block(tau, from, 1, d) += cross.transpose();
    out(tau, tau) += map_.power() * s.dot(by_temperature(m, j));
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
    for (Index j = 0; which == Pairs::Observed && j < layout().free_slopes; ++j)
      take_curvature(m, j, score.segment(inner_at_.gate_slope(j), map_.num_features()), information);
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
