// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/em.hpp"

namespace moe::inline MOE_ABI::detail {

/// Has the likelihood its supremum where a gate is infinitely steep? Large coefficients do not say so: with enough rows
/// near a border, or with inputs that are nearly collinear, they are estimated well. What says so is, in this order,
///   the information   a direction v of gate coefficients about which the data, even if they told the expert of every
///                     row, say less than kNothing: v^T C v / 2 for logits that change by 1 along it (RMS over rows)
///   the data          at the far end of the ray from the model along what the gate has of such directions, where
///                     weights are 0 or 1 to the last bit, the criterion is no lower than here
/// Directions are those of the whole gate, of each expert against each other, and of a temperature that falls to 0;
/// the part of each that the data know about is taken out, so that borders that are smooth stay as they are.
/// With a ridge there is a finite maximum. O(n k^2 d^2) for the information, O(g^3) for its eigenvalues, g <= 200 gate
/// coefficients (beyond, the directions are taken whole), and a pass of the likelihood for each direction that is left.
/// Albert & Anderson, "On the existence of maximum likelihood estimates in logistic regression models", Biometrika
/// 1984.
template <class = WhenUsed>
class Separation {
 public:
  /// A change of the criterion that is none: well above what an optimiser leaves (remaining_tolerance, 1e-6), and far
  /// below the 1/2 that one standard error costs.
  static constexpr double kNothing = 1e-3;

  Separation(const Objective& objective, const GaussianParameters& model)
      : objective_(objective), at_(objective.layout()), model_(model), theta_(coefficients(model)) {
    if (at_.num_gate() == 0 || objective.form().active == 1) return;  // top-1 weights are 1 whatever the gate's size
    if (!objective.form().score.is_product()) return;                 // scores are bounded, or grow with the rows alone
    Eigen::VectorXd score;
    Eigen::MatrixXd information;
    here_ = objective_.complete(model_, score, information);
    const Index g = theta_.size();
    known_ = information.topLeftCorner(g, g);
    logits_ = parameter_gram(at_, objective.rows()).topLeftCorner(g, g) / (model.temperature * model.temperature);
    if (at_.free_temperature) known_of_temperature_ = information(at_.log_temperature(), at_.log_temperature());
    if (g <= kMostFactorised) find_unknown();
  }

  /// Are there directions to infinity that lose nothing?
  bool exists() const {
    if (known_.size() == 0) return false;
    if (unknown_.size() == 0 && theta_.size() <= kMostFactorised) return colder();
    return colder() || any_direction([&](const Eigen::VectorXd& direction) { return gains_nothing_here(direction); });
  }

  /// The same for a model that a box holds, where the score is not 0: does the criterion still not fall as far out as
  /// where logits are twice as large as the box lets a single input make them? With collinear inputs it falls long
  /// before that.
  bool exists_beyond(double box) const {
    if (known_.size() == 0) return false;
    return any_direction([&](const Eigen::VectorXd& direction) {
      const double size = norm(direction);
      return size > 0 && keeps_criterion(direction * std::max(1.0, 2 * box / model_.temperature / size));
    });
  }

 private:
  static constexpr Index kMostFactorised = 200;

  /// The free coefficients of the gate, the temperature apart.
  Eigen::VectorXd coefficients(const GaussianParameters& m) const {
    return pack(m, at_).head(at_.gate_bias(at_.free_biases));
  }

  /// The directions about which there is no information, orthonormal in logits.
  void find_unknown() {
    const Eigen::GeneralizedSelfAdjointEigenSolver<Eigen::MatrixXd> eigen(known_, logits_);
    const Index count = (eigen.eigenvalues().array() <= 2 * kNothing).count();
    unknown_ = eigen.eigenvectors().leftCols(count);
  }

  double norm(const Eigen::VectorXd& direction) const { return std::sqrt(direction.dot(logits_ * direction)); }

  /// visit(direction) for all candidates, until one is true: the whole gate; expert j, alone and with all experts that
  /// are closer to it, away from expert l; behind an activation each expert alone.
  template <class F>
  bool any_direction(F&& visit) const {
    if (visit(theta_)) return true;
    for (Index j = 0; j < at_.free_slopes; ++j) {
      const auto alone = [&](Index m) { return m == j; };
      if (!objective_.linear() && visit(on(gate(j), alone))) return true;
      for (Index l = 0; objective_.linear() && l < at_.num_experts; ++l) {
        if (l == j) continue;
        const Eigen::VectorXd away = gate(j) - gate(l);
        const auto closer = [&](Index m) { return (gate(m) - gate(j)).norm() < (gate(m) - gate(l)).norm(); };
        if (visit(on(away, alone)) || (at_.num_experts > 2 && visit(on(away, closer)))) return true;
      }
    }
    return false;
  }

  /// (beta_1j, beta_0j)
  Eigen::VectorXd gate(Index j) const {
    Eigen::VectorXd out(at_.gate_dim() + 1);
    for (Index c = 0; c < at_.gate_dim(); ++c) out(c) = model_.gate_slope(j, at_.gate_input(c));
    out(at_.gate_dim()) = model_.gate_bias(j);
    return out;
  }

  /// The direction that moves those experts by `change`; the pinned one stays, so all others move against it instead.
  template <class In>
  Eigen::VectorXd on(const Eigen::VectorXd& change, In&& in) const {
    Eigen::VectorXd out = Eigen::VectorXd::Zero(theta_.size());
    const Index d = at_.gate_dim();
    const bool pinned = objective_.linear() && in(at_.num_experts - 1);
    for (Index m = 0; m < at_.free_slopes; ++m) {
      const double sign = (in(m) ? 1 : 0) - (pinned ? 1 : 0);
      out.segment(at_.gate_slope(m), d) = sign * change.head(d);
      if (m < at_.free_biases) out(at_.gate_bias(m)) = sign * change(d);
    }
    return out;
  }

  /// Both tests.
  bool gains_nothing_here(Eigen::VectorXd direction) const {
    if (unknown_.size() > 0) direction = unknown_ * (unknown_.transpose() * (logits_ * direction)).eval();
    const double size = norm(direction);
    if (!(size > 1e-9) || direction.dot(known_ * direction) > 2 * kNothing * size * size) return false;
    return keeps_criterion(direction * std::max(1.0, kSaturated / size));
  }

  bool keeps_criterion(const Eigen::VectorXd& step) const {
    Eigen::VectorXd theta = pack(model_, at_);
    theta.head(step.size()) += step;
    GaussianParameters steeper = model_;
    unpack(theta, at_, steeper);
    return objective_.value(steeper) >= here_ - kNothing;
  }

  /// A temperature that goes to 0.
  bool colder() const {
    const double size = norm(theta_);
    if (!at_.free_temperature || !(size > 0) || known_of_temperature_ > 2 * kNothing * size * size) return false;
    GaussianParameters steeper = model_;
    steeper.temperature /= 1 + std::max(1.0, kSaturated / size);
    return objective_.value(steeper) >= here_ - kNothing;
  }

  /// Logits this far apart make weights of 0 and 1.
  static inline const double kSaturated = -std::log(std::numeric_limits<double>::epsilon());

  const Objective& objective_;
  ParameterLayout at_;
  const GaussianParameters& model_;
  Eigen::VectorXd theta_;
  double here_ = 0, known_of_temperature_ = 0;
  Eigen::MatrixXd known_ = {}, logits_ = {};  // information, and sum_j mean_i (change of logit j)^2
  Eigen::MatrixXd unknown_ = {};              // [g, directions]
};

}  // namespace moe::inline MOE_ABI::detail
