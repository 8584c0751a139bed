// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "moe/gaussian/segments.hpp"

namespace moe::inline MOE_ABI::detail {

/// Moves the borders between the regions of a sparse gate. A row changes its active experts there, so the likelihood
/// jumps, and a point where the score vanishes need not be a maximum. Top-1 on one input: SegmentSearch. Else a pattern
/// search: each free coefficient of the gate is tried at steps from 0.3 to 0.001 to both sides.
/// Hooke & Jeeves, "Direct search solution of numerical and statistical problems", J. ACM 1961.
class BoundarySearch {
 public:
  BoundarySearch(const Objective& objective, const Bounds& bounds) : bounds_(bounds) {
    sparse_ = objective.form().active < objective.layout().num_experts;
    if (sparse_ && objective.form().active == 1 && objective.layout().input_dim == 1 && objective.form().ranks_bias)
      segments_ = std::make_unique<SegmentSearch>(objective, bounds);
  }

  /// Raises the criterion of a model, which it returns true for; false when no border that was tried is better.
  bool improve(const Objective& objective, GaussianParameters& m) const {
    if (!sparse_) return false;
    if (segments_) return segments_->improve(m);
    const ParameterLayout& at = objective.layout();
    const Index coefficients = at.gate_bias(at.free_biases);
    Eigen::VectorXd theta = pack(m, at);
    const double before = objective.value(m);
    double best = before;
    for (double step = 0.3; step > 5e-4; step *= 0.32)
      for (Index c = 0; c < coefficients; ++c)
        for (const double sign : {1.0, -1.0}) {
          if (!objective.form().ranks_bias && c >= at.gate_bias(0)) continue;  // moves no border
          Eigen::VectorXd trial = theta;
          trial(c) += sign * step * (1 + std::abs(theta(c)));
          GaussianParameters moved = m;
          unpack(trial, at, moved);
          bounds_.clamp(at, moved);
          const double value = objective.value(moved);
          if (!(value > best + 1e-9 * (1 + std::abs(best)))) continue;
          best = value;
          theta = trial;
          m = std::move(moved);
        }
    return best > before;
  }

 private:
  Bounds bounds_;
  bool sparse_ = false;
  std::unique_ptr<SegmentSearch> segments_;
};

}  // namespace moe::inline MOE_ABI::detail
