// SPDX-License-Identifier: MIT
#pragma once

#include <deque>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/newton.hpp"

namespace moe::inline MOE_ABI::detail {

/// L-BFGS on the penalised log-likelihood, projected onto the bounds, with a backtracking line search: for models with
/// too many parameters to factorise their information. An iteration costs one or two passes of the score.
/// Liu & Nocedal, "On the limited memory BFGS method for large scale optimization", Math. Programming 1989.
template <class = WhenUsed>
class QuasiNewton : public DirectSearch<> {
 public:
  QuasiNewton(const Objective& objective, const Bounds& bounds, GaussianParameters start)
      : DirectSearch<>(objective, bounds, std::move(start)) {
    state_.criterion = objective_.score(state_.model, score_);
    measure_score();
  }

  /// One iteration; false when no step raises the criterion any more.
  bool iterate() {
    Eigen::VectorXd direction = direction_of_ascent();
    if (try_along(direction)) return true;
    if (pairs_.empty()) return false;
    pairs_.clear();  // the memory misleads: along the score itself
    direction = direction_of_ascent();
    return try_along(direction);
  }

 private:
  struct Pair {
    Eigen::VectorXd step, change;  // of theta, and of minus the score
    double inverse = 0;            // 1 / (step . change)
  };
  static constexpr std::size_t kMemory = 20;

  /// The two-loop recursion at the free coordinates.
  Eigen::VectorXd direction_of_ascent() const {
    Eigen::VectorXd q = Eigen::VectorXd::Zero(at_.size());
    for (const Index c : box_.free(theta_, score_)) q(c) = score_(c);
    const Eigen::VectorXd free = (q.array() != 0).cast<double>();
    std::vector<double> alpha(pairs_.size());
    for (std::size_t i = pairs_.size(); i-- > 0;) {
      alpha[i] = pairs_[i].inverse * pairs_[i].step.dot(q);
      q -= alpha[i] * pairs_[i].change;
    }
    q *= pairs_.empty() ? 1 / std::max(score_.norm(), 1e-300)
                        : 1 / (pairs_.back().inverse * pairs_.back().change.squaredNorm());
    for (std::size_t i = 0; i < pairs_.size(); ++i)
      q += (alpha[i] - pairs_[i].inverse * pairs_[i].change.dot(q)) * pairs_[i].step;
    return q.cwiseProduct(free);
  }

  bool try_along(const Eigen::VectorXd& direction) {
    const double slope = direction.dot(score_);
    if (!(slope > 0)) return false;
    double length = 1;
    for (int attempt = 0; attempt < 40; ++attempt, length *= 0.5) {
      const Eigen::VectorXd theta = box_.clamp(theta_ + length * direction);
      GaussianParameters trial = state_.model;
      unpack(theta, at_, trial);
      Eigen::VectorXd score;
      const double criterion = objective_.score(trial, score), gain = criterion - state_.criterion;
      if (!(gain > 1e-4 * score_.dot(theta - theta_)) || !(gain > 0)) continue;
      remember(theta - theta_, score_ - score);
      state_.remaining = gain * static_cast<double>(at_.size());  // the last gain, for every direction
      state_.model = std::move(trial);
      state_.criterion = criterion;
      theta_ = theta;
      score_ = score;
      measure_score();
      return true;
    }
    return false;
  }

  void remember(Eigen::VectorXd step, Eigen::VectorXd change) {
    const double product = step.dot(change);
    if (!(product > 1e-12 * step.norm() * change.norm())) return;  // no curvature there
    if (pairs_.size() == kMemory) pairs_.pop_front();
    pairs_.push_back({std::move(step), std::move(change), 1 / product});
  }

  std::deque<Pair> pairs_;
};

}  // namespace moe::inline MOE_ABI::detail
