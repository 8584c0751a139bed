// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/em.hpp"

namespace moe::inline MOE_ABI::detail {

/// theta within its bounds.
template <class = WhenUsed>
class BoxedTheta {
 public:
  BoxedTheta(const ParameterLayout& at, const Bounds& bounds)
      : lower_(Eigen::VectorXd::Constant(at.size(), -1e12)), upper_(Eigen::VectorXd::Constant(at.size(), 1e12)) {
    const Index coefficients = at.gate_bias(at.free_biases);
    lower_.head(coefficients).setConstant(-bounds.gate_box);
    upper_.head(coefficients).setConstant(bounds.gate_box);
    if (at.free_temperature) {
      lower_(at.log_temperature()) = std::log(Bounds::kColdest);
      upper_(at.log_temperature()) = std::log(Bounds::kHottest);
    }
    for (Index j = 0; j < at.num_experts; ++j) {
      lower_(at.log_variance(j)) = std::log(bounds.variance_floor);
      upper_(at.log_variance(j)) = std::log(Bounds::kWidest);
    }
  }

  Eigen::VectorXd clamp(const Eigen::VectorXd& theta) const { return theta.cwiseMax(lower_).cwiseMin(upper_); }

  /// Coordinates that are not held at a bound by the score.
  std::vector<Index> free(const Eigen::VectorXd& theta, const Eigen::VectorXd& score) const {
    std::vector<Index> all;
    for (Index c = 0; c < theta.size(); ++c) {
      const double slack = 1e-12 * (1 + std::abs(theta(c)));
      const bool held =
          (theta(c) <= lower_(c) + slack && score(c) <= 0) || (theta(c) >= upper_(c) - slack && score(c) >= 0);
      if (!held) all.push_back(c);
    }
    return all;
  }

  double score_norm(const Eigen::VectorXd& theta, const Eigen::VectorXd& score) const {
    double largest = 0;
    for (const Index c : free(theta, score)) largest = std::max(largest, std::abs(score(c)));
    return largest;
  }

 private:
  Eigen::VectorXd lower_, upper_;
};

/// A point of direct maximisation.
struct DirectState {
  GaussianParameters model;
  double criterion = 0;
  double score_norm = 0;  ///< largest score per row, at free coordinates
  double remaining = 0;   ///< gain that the quadratic model still promises
  bool singular = false;  ///< the information has no full rank
  bool saddle = false;    ///< the information has a negative eigenvalue: no maximum, however small the score
};

/// What direct methods share: the point, and where it may go.
template <class = WhenUsed>
class DirectSearch {
 public:
  const DirectState& state() const { return state_; }

 protected:
  DirectSearch(const Objective& objective, const Bounds& bounds, GaussianParameters start)
      : objective_(objective), at_(objective.layout()), box_(at_, bounds) {
    state_.model = std::move(start);
    theta_ = box_.clamp(pack(state_.model, at_));
    unpack(theta_, at_, state_.model);
  }

  void measure_score() { state_.score_norm = box_.score_norm(theta_, score_) / objective_.total_weight(); }

  const Objective& objective_;
  ParameterLayout at_;
  BoxedTheta<> box_;
  DirectState state_;
  Eigen::VectorXd theta_, score_;
};

/// Newton's method on the penalised log-likelihood, with a trust region: the step is (H + mu D^2)^-1 score with mu >= 0
/// as small as makes it positive definite and |D step| at most the radius. D holds square roots of the diagonal of H,
/// the largest seen. Converges quadratically at regular maxima and moves on where the information is singular.
/// More, "The Levenberg-Marquardt algorithm: implementation and theory", 1978; Conn, Gould & Toint, "Trust-region
/// methods", 2000.
template <class = WhenUsed>
class Newton : public DirectSearch<> {
 public:
  Newton(const Objective& objective, const Bounds& bounds, GaussianParameters start)
      : DirectSearch<>(objective, bounds, std::move(start)) {
    scale_ = Eigen::VectorXd::Constant(at_.size(), 1e-3 * std::sqrt(objective.total_weight()));
    radius_ = std::sqrt(objective.total_weight());
    evaluate();
  }

  /// One iteration; false when no step raises the criterion any more.
  bool iterate() {
    if (free_.empty()) return false;
    for (int attempt = 0; attempt < 30; ++attempt) {
      Eigen::VectorXd step = Eigen::VectorXd::Zero(at_.size());
      const double length = trust_step(step), promised = promise(step);
      GaussianParameters trial = state_.model;
      const Eigen::VectorXd theta = box_.clamp(theta_ + step);
      unpack(theta, at_, trial);
      const double gain = objective_.value(trial) - state_.criterion;
      if (!(gain > 0)) {
        if (lowers_score(theta, trial, std::max(promised, -gain))) return true;
        radius_ = 0.25 * std::min(radius_, length);
        if (radius_ < 1e-12) return false;
        continue;
      }
      if (gain > 0.75 * promised) radius_ = std::max(radius_, 3 * length);
      if (gain < 0.25 * promised) radius_ = 0.5 * std::min(radius_, length);
      theta_ = theta;
      state_.model = std::move(trial);
      evaluate();
      return true;
    }
    return false;
  }

 private:
  void evaluate() {
    state_.criterion = objective_.information(state_.model, score_, information_);
    measure_score();
    for (Index c = 0; c < at_.size(); ++c) scale_(c) = std::max(scale_(c), std::sqrt(std::abs(information_(c, c))));
    free_ = box_.free(theta_, score_);
    if (!free_.empty()) decompose(free_);
  }

  /// Where a step changes the criterion by no more than rounding does, the score decides: beside a variance at its
  /// floor it is far from small long after the criterion has nothing more to tell.
  bool lowers_score(const Eigen::VectorXd& theta, const GaussianParameters& trial, double change) {
    if (!(change <= 1e-14 * (1 + std::abs(state_.criterion) + objective_.total_weight()))) return false;
    Newton other(*this);
    other.theta_ = theta;
    other.state_.model = trial;
    other.evaluate();
    if (!(other.state_.score_norm < 0.5 * state_.score_norm)) return false;
    swap(other);
    return true;
  }

  void swap(Newton& other) {
    std::swap(state_, other.state_);
    std::swap(free_, other.free_);
    theta_.swap(other.theta_);
    score_.swap(other.score_);
    for (auto member : {&Newton::scale_, &Newton::values_, &Newton::score_in_basis_})
      (this->*member).swap(other.*member);
    for (auto member : {&Newton::information_, &Newton::vectors_}) (this->*member).swap(other.*member);
  }

  /// Eigenvalues of D^-1 H D^-1 at the free coordinates.
  void decompose(const std::vector<Index>& free) {
    const Index n = static_cast<Index>(free.size());
    Eigen::MatrixXd scaled(n, n);
    Eigen::VectorXd right(n);
    for (Index a = 0; a < n; ++a) {
      const Index row = free[static_cast<std::size_t>(a)];
      right(a) = score_(row) / scale_(row);
      for (Index b = 0; b < n; ++b) {
        const Index col = free[static_cast<std::size_t>(b)];
        scaled(a, b) = information_(row, col) / (scale_(row) * scale_(col));
      }
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(scaled);
    values_ = eigen.eigenvalues();
    vectors_ = eigen.eigenvectors();
    score_in_basis_ = vectors_.transpose() * right;
    const double largest = values_(n - 1);
    state_.singular = values_(0) < kSingular * largest && is_singular(free);
    state_.saddle = values_(0) < -kSingular * largest;
    state_.remaining = 0;
    for (Index a = 0; a < n; ++a)
      state_.remaining +=
          0.5 * score_in_basis_(a) * score_in_basis_(a) / std::max(std::abs(values_(a)), 1e-12 * largest);
  }

  /// Whatever the inputs: the unit diagonal alone takes collinear ones for a flat likelihood.
  bool is_singular(const std::vector<Index>& free) const {
    const Eigen::MatrixXd gram = parameter_gram(at_, objective_.rows());
    return ScaledEigen(information_(free, free), gram(free, free)).ratio() < kSingular;
  }

  Eigen::VectorXd in_basis(double mu) const {
    Eigen::VectorXd step(values_.size());
    for (Index a = 0; a < values_.size(); ++a) step(a) = score_in_basis_(a) / (values_(a) + mu);
    return step;
  }

  /// The step within the radius; returns |D step|.
  double trust_step(Eigen::VectorXd& step) const {
    const double largest = std::max(values_(values_.size() - 1), 1e-300);
    double low = std::max(0.0, 1e-12 * largest - values_(0));  // H + low is positive definite
    Eigen::VectorXd s = in_basis(low);
    if (s.norm() > radius_) {
      double high = low + score_in_basis_.norm() / radius_;  // short enough
      for (int i = 0; i < 60 && high - low > 1e-3 * high; ++i) {
        const double middle = 0.5 * (low + high);
        (in_basis(middle).norm() > radius_ ? low : high) = middle;
      }
      s = in_basis(high);
    } else if (state_.saddle) {  // the score says nothing of the direction in which the criterion bends upwards
      s(0) += std::copysign(std::sqrt(radius_ * radius_ - s.squaredNorm()), s(0));
    }
    const Eigen::VectorXd scaled = vectors_ * s;
    for (std::size_t a = 0; a < free_.size(); ++a) step(free_[a]) = scaled(static_cast<Index>(a)) / scale_(free_[a]);
    return s.norm();
  }

  /// Gain that the quadratic model promises for a step.
  double promise(const Eigen::VectorXd& step) const {
    Eigen::VectorXd scaled(static_cast<Index>(free_.size()));
    for (std::size_t a = 0; a < free_.size(); ++a) scaled(static_cast<Index>(a)) = step(free_[a]) * scale_(free_[a]);
    const Eigen::VectorXd s = vectors_.transpose() * scaled;
    return s.dot(score_in_basis_) - 0.5 * s.cwiseProduct(values_).dot(s);
  }

  Eigen::VectorXd scale_, values_, score_in_basis_;
  Eigen::MatrixXd information_, vectors_;
  std::vector<Index> free_;
  double radius_ = 1;
};

}  // namespace moe::inline MOE_ABI::detail
