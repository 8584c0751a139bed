// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "moe/core/random.hpp"
#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/segments.hpp"

namespace moe::inline MOE_ABI::detail {

/// Moves the borders between the regions of a sparse gate. A row changes its active experts there, so the likelihood
/// jumps, and a point where the score vanishes need not be a maximum. Top-1 on one input: SegmentSearch. Else random
/// moves of one expert's gate, of all sizes between 0.0003 and 0.3 of it, each kept if it gains: 100 (d + 1) passes.
/// Rechenberg, "Evolutionsstrategie", 1973.
template <class = WhenUsed>
class BoundarySearch {
 public:
  BoundarySearch(const Objective& objective, const Bounds& bounds) : bounds_(bounds) {
    sparse_ = objective.form().active < objective.layout().num_experts;
    const ParameterLayout& at = objective.layout();
    const bool line = at.input_dim == 1 && at.gate_dim() == 1 && at.expert_dim() == 1;
    if (sparse_ && objective.form().active == 1 && line && objective.form().ranks_bias)
      segments_ = std::make_unique<SegmentSearch<>>(objective, bounds);
  }

  bool sparse() const { return sparse_; }

  /// Puts borders that can lie anywhere between two rows half way.
  void centre(GaussianParameters& m) const {
    if (segments_) segments_->centre(m);
  }

  /// Raises the criterion of a model, which it returns true for; false when no border that was tried is better.
  bool improve(const Objective& objective, GaussianParameters& m) const {
    if (!sparse_) return false;
    if (segments_) return segments_->improve(m);
    const double before = objective.value(m);
    const ParameterLayout& at = objective.layout();
    const RandomField random(Purpose::Noise, at.size());
    double best = before;
    for (Index draw = 0; draw < kDraws * (at.gate_dim() + 1); ++draw) {
      const auto j = static_cast<Index>(random.below(static_cast<std::uint64_t>(at.free_slopes), draw, -1));
      const double step = std::pow(10.0, -0.5 - 3 * random.uniform(draw, -2)) * (1 + m.gate_slope.row(j).norm());
      GaussianParameters moved = m;
      for (Index c = 0; c < at.gate_dim(); ++c) moved.gate_slope(j, at.gate_input(c)) += step * random.normal(draw, c);
      if (objective.form().ranks_bias) moved.gate_bias(j) += step * random.normal(draw, at.gate_dim());
      bounds_.clamp(at, moved);
      const double value = objective.value(moved);
      if (!(value > best + 1e-9 * (1 + std::abs(best)))) continue;
      best = value;
      m = std::move(moved);
    }
    return best > before;
  }

 private:
  static constexpr Index kDraws = 100;

  Bounds bounds_;
  bool sparse_ = false;
  std::unique_ptr<SegmentSearch<>> segments_;
};

}  // namespace moe::inline MOE_ABI::detail
