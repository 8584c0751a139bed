// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/fit/symmetric.hpp"
#include "moe/gaussian/pass/gram.hpp"
#include "moe/gaussian/pass/objective.hpp"

namespace moe::inline MOE_ABI::detail {

/// Bounds that every optimiser keeps, on standardised data.
struct Bounds {
  double variance_floor = 1e-6, gate_box = 500;
  static constexpr double kColdest = 1e-4, kHottest = 1e4;  ///< of a free temperature
  static constexpr double kWidest = 1e8;  ///< a variance: nothing holds that of an expert without rows

  void clamp(const ParameterLayout& at, GaussianParameters& m) const {
    if (at.free_temperature) m.temperature = std::clamp(m.temperature, kColdest, kHottest);
    for (Index j = 0; j < at.num_experts; ++j) {
      m.variance(j) = std::clamp(m.variance(j), variance_floor, kWidest);
      if (j < at.free_biases) m.gate_bias(j) = std::clamp(m.gate_bias(j), -gate_box, gate_box);
      if (j >= at.free_slopes) continue;
      for (Index c = 0; c < at.input_dim; ++c) m.gate_slope(j, c) = std::clamp(m.gate_slope(j, c), -gate_box, gate_box);
    }
  }

  /// The best variance of residuals with that sum of squares over `rows` rows, under Penalty::map.
  double variance(double squares, double rows, double map) const {
    return std::max(variance_floor, (squares + 2 * map) / (rows + 2 * map));
  }

  /// Is a coefficient of the gate, or a free temperature, at its bound?
  bool hold_gate(const ParameterLayout& at, const GaussianParameters& m) const {
    constexpr double kInside = 1 - 1e-9;
    const double largest = std::max(m.gate_slope.cwiseAbs().maxCoeff(), m.gate_bias.cwiseAbs().maxCoeff());
    const bool temperature =
        at.free_temperature && (m.temperature * kInside <= kColdest || m.temperature >= kHottest * kInside);
    return largest >= gate_box * kInside || temperature;
  }
};

/// A point of a run: parameters, criterion, and what an M-step there needs.
struct EmState {
  GaussianParameters model = {};
  double criterion = 0;
  Eigen::VectorXd score = {};        ///< without penalties
  Eigen::MatrixXd information = {};  ///< of the complete data; with GateStep::Majorise that of the experts alone
};

/// Generalised EM: each iteration solves the weighted least squares of every expert, sets the variances, and takes one
/// step in the gate. One pass over the data does it all, as the next E-step tells whether the criterion has risen; if
/// not, the step of the gate is halved, down to none at all, where EM cannot fail. So the criterion never falls.
/// Dempster, Laird & Rubin, JRSS B 1977; Jordan & Jacobs, Neural Computation 1994; fixed curvature: Boehning & Lindsay,
/// Ann. Inst. Statist. Math. 1988.
template <class = WhenUsed>
class Em {
 public:
  Em(const Objective& objective, const Bounds& bounds, GateStep step)
      : objective_(objective),
        at_(objective.whole()),
        held_(!objective.layout().has_intercept()),
        bounds_(bounds),
        step_(step) {
    if (step_ == GateStep::Automatic)
      step_ = at_.num_gate() <= 200 || !objective.linear() ? GateStep::Newton : GateStep::Majorise;
  }

  EmState start(GaussianParameters model) const {
    bounds_.clamp(at_, model);
    EmState state{.model = std::move(model)};
    evaluate(state);
    return state;
  }

  /// Rows of each expert, sum_i r_ij.
  Eigen::RowVectorXd expert_rows(const EmState& s) const {
    Eigen::RowVectorXd rows(at_.num_experts);
    for (Index j = 0; j < at_.num_experts; ++j) rows(j) = rows_of(s, j);
    return rows;
  }

  /// One iteration; false, and nothing changed, when the criterion cannot be raised any more.
  bool iterate(EmState& state) {
    ++iteration_;
    const GaussianParameters experts = improve_experts(state);
    const Eigen::VectorXd gate = gate_step(state);
    double share = 1;
    for (int halving = 0; halving <= kHalvings; ++halving, share *= 0.5) {
      EmState next{.model = experts};
      if (halving < kHalvings) move_gate(state, share * gate, next.model);
      bounds_.clamp(at_, next.model);
      evaluate(next);
      if (next.criterion >= state.criterion) {
        state = std::move(next);
        return true;
      }
    }
    return false;
  }

 private:
  /// A direction that gains nothing at 1/4096 of its length leads nowhere: the gate then stays.
  static constexpr int kHalvings = 12;

  double rows_of(const EmState& s, Index j) const {
    if (objective_.rows().scaled()) return s.information(at_.log_variance(j), at_.log_variance(j));
    return s.information(at_.intercept(j), at_.intercept(j)) * s.model.variance(j);
  }

  void evaluate(EmState& s) const {
    s.criterion = objective_.complete(s.model, s.score, s.information, step_ != GateStep::Majorise);
  }

  /// Weighted least squares from the residuals: a change of the coefficients and of the sum of squares.
  GaussianParameters improve_experts(const EmState& s) const {
    GaussianParameters next = s.model;
    const Index d = at_.expert_dim();
    const double map = objective_.penalty().map;
    Eigen::MatrixXd information(d + 1, d + 1);
    Eigen::VectorXd score(d + 1);
    for (Index j = 0; j < at_.num_experts; ++j) {
      const double nu = s.model.variance(j);
      const double rows = rows_of(s, j);
      if (!(rows > kLeastRows)) continue;  // nothing to learn from
      information.topLeftCorner(d, d) = s.information.block(at_.slope(j), at_.slope(j), d, d);
      information.col(d).head(d) = s.information.col(at_.intercept(j)).segment(at_.slope(j), d);
      information.row(d).head(d) = information.col(d).head(d).transpose();
      information(d, d) = s.information(at_.intercept(j), at_.intercept(j));
      score.head(d) = s.score.segment(at_.slope(j), d);
      score(d) = s.score(at_.intercept(j));
      const Eigen::VectorXd change = held_ ? held_change(information, score) : solve_semidefinite(information, score);
      const double squares = nu * (2 * s.score(at_.log_variance(j)) + rows) - nu * change.dot(score);
      for (Index c = 0; c < d; ++c) next.slope(j, at_.expert_input(c)) += change(c);
      next.intercept(j) = held_ ? at_.held_intercept(next.slope.row(j)) : next.intercept(j) + change(d);
      next.variance(j) = bounds_.variance(squares, rows, map);
    }
    return next;
  }

  /// Among experts through one point.
  Eigen::VectorXd held_change(const Eigen::MatrixXd& information, const Eigen::VectorXd& score) const {
    const Index d = at_.expert_dim();
    Eigen::MatrixXd along(d + 1, d);
    along << Eigen::MatrixXd::Identity(d, d), HeldIntercept<>::slopes(at_);
    return along * solve_semidefinite(along.transpose() * information * along, along.transpose() * score);
  }

  /// The change of the gate's parameters, in the order of theta.
  Eigen::VectorXd gate_step(const EmState& s) {
    const Index size = at_.num_gate();
    Eigen::VectorXd step = Eigen::VectorXd::Zero(size);
    if (size == 0) return step;
    Eigen::VectorXd score = s.score.head(size);
    const Index coefficients = at_.gate_bias(at_.free_biases);
    Eigen::VectorXd theta = pack(s.model, at_);
    score.head(coefficients) -= objective_.penalty().ridge * theta.head(coefficients);
    if (step_ == GateStep::Majorise) return majorised_step(s, score);
    if (objective_.linear()) return solve_semidefinite(s.information.topLeftCorner(size, size), score);
    // With an activation: the concave part (biases and temperature) and the slopes in turn.
    const Index slopes = at_.gate_bias(0), rest = size - slopes;
    if (iteration_ % 2 == 0)
      step.head(slopes) = solve_semidefinite(s.information.topLeftCorner(slopes, slopes), score.head(slopes));
    else
      step.tail(rest) = solve_semidefinite(s.information.block(slopes, slopes, rest, rest), score.tail(rest));
    return step;
  }

  /// 2 (I + 1 1^T) (score matrix) (X^T X)^-1: the inverse of a bound on the information that no weights exceed.
  Eigen::VectorXd majorised_step(const EmState& s, const Eigen::VectorXd& score) {
    const Index k = at_.num_experts, d = at_.gate_dim();
    if (gram_.size() == 0) gram_ = gram_matrix();
    Eigen::MatrixXd by_expert(d + 1, k - 1);
    for (Index j = 0; j + 1 < k; ++j) {
      by_expert.col(j).head(d) = score.segment(at_.gate_slope(j), d);
      by_expert(d, j) = score(at_.gate_bias(j));
    }
    const Eigen::VectorXd sums = by_expert.rowwise().sum();
    Eigen::VectorXd step = Eigen::VectorXd::Zero(at_.num_gate());
    const double tau = s.model.temperature;
    for (Index j = 0; j + 1 < k; ++j) {
      const Eigen::VectorXd change = 2 * tau * tau * solve_semidefinite(gram_, by_expert.col(j) + sums);
      step.segment(at_.gate_slope(j), d) = change.head(d);
      step(at_.gate_bias(j)) = change(d);
    }
    return step;
  }

  /// X^T X of what the gate reads, with as much of the ridge as keeps the bound valid.
  Eigen::MatrixXd gram_matrix() const {
    Eigen::MatrixXd gram = gram_of(objective_.rows());
    if (at_.gate_inputs) {
      std::vector<Index> columns = *at_.gate_inputs;
      columns.push_back(at_.input_dim);  // ones
      gram = gram(columns, columns).eval();
    }
    gram.diagonal().array() += 2 * objective_.penalty().ridge * static_cast<double>(at_.num_experts);
    return gram;
  }

  /// Adds a step of the gate. The temperature moves in 1 / tau, with beta_0 / tau where it divides both, in
  /// which Q is then concave.
  void move_gate(const EmState& from, const Eigen::VectorXd& step, GaussianParameters& to) const {
    const double largest = step.size() > 0 ? step.cwiseAbs().maxCoeff() : 0;
    const double scale = largest > kLongest ? kLongest / largest : 1;
    for (Index j = 0; j < at_.num_experts; ++j) {
      for (Index c = 0; j < at_.free_slopes && c < at_.gate_dim(); ++c)
        to.gate_slope(j, at_.gate_input(c)) += scale * step(at_.gate_slope(j) + c);
      if (j < at_.free_biases) to.gate_bias(j) += scale * step(at_.gate_bias(j));
    }
    if (!at_.free_temperature) return;
    const double log_step = scale * step(at_.log_temperature()), tau = from.model.temperature;
    const double factor = std::max(1 - log_step, 0.1);  // of 1 / tau
    to.temperature = std::clamp(tau / factor, Bounds::kColdest, Bounds::kHottest);
    if (objective_.form().score.link != ScoreLink::Identity) return;  // biases are not divided by it
    for (Index j = 0; j < at_.free_biases; ++j) {
      const double change = to.gate_bias(j) - from.model.gate_bias(j), before = from.model.gate_bias(j);
      to.gate_bias(j) = (before / tau + change / tau - before / tau * log_step) * to.temperature;
    }
  }

  static constexpr double kLeastRows = 1e-9;  ///< below, an expert is left as it is
  /// Of a change of a coefficient in one iteration. exp(50) is 5e21: where a Newton step is longer, the classes are
  /// separated or the curvature has vanished, and it means nothing.
  static constexpr double kLongest = 50;

  const Objective& objective_;
  ParameterLayout at_;
  bool held_;  // are intercepts no parameters?
  Bounds bounds_;
  GateStep step_;
  Index iteration_ = 0;
  Eigen::MatrixXd gram_;
};

}  // namespace moe::inline MOE_ABI::detail
