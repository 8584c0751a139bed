// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>

#include "moe/numeric/schedule.hpp"

namespace moe::inline MOE_ABI {

/// start * sqrt(timescale / (timescale + u)): after a warm-up of `timescale` updates, the decay with the inverse root
/// of the updates done. Vaswani et al., "Attention is all you need", 2017, section 5.3 (arXiv:1706.03762).
struct InverseSqrtSchedule {
  double start = 1;
  std::uint64_t timescale = 1000;

  double operator()(std::uint64_t update) const {
    const double scale = static_cast<double>(timescale);
    return start * std::sqrt(scale / (scale + static_cast<double>(update)));
  }
  /// Throws std::invalid_argument unless start is finite and timescale > 0.
  void validate() const {
    detail::require_finite("moe::InverseSqrtSchedule", "start", start);
    if (timescale == 0) fail("moe::InverseSqrtSchedule: timescale is 0, expected at least 1");
  }
};

/// Rises in equal steps to where a schedule starts, then follows it: with w = warm_up updates,
///   schedule(0) * (u + 1) / w  for u < w,   schedule(u - w) after. The first update already has a rate above 0.
///   const moe::WithWarmUp rate{1000, moe::CosineSchedule{.start = 3e-4, .end = 3e-5, .updates = 9000}};
/// Goyal et al., "Accurate, large minibatch SGD", 2017 (arXiv:1706.02677).
template <Schedule S>
struct WithWarmUp {
  std::uint64_t warm_up = 0;
  S schedule = {};

  double operator()(std::uint64_t update) const {
    if (update >= warm_up) return schedule(update - warm_up);
    return schedule(std::uint64_t{0}) * (static_cast<double>(update + 1) / static_cast<double>(warm_up));
  }
  /// Throws std::invalid_argument where the schedule's own validate() does.
  void validate() const {
    if constexpr (requires { schedule.validate(); }) schedule.validate();
  }
};
template <class S>
WithWarmUp(std::uint64_t, S) -> WithWarmUp<S>;

static_assert(Schedule<InverseSqrtSchedule> && Schedule<WithWarmUp<CosineSchedule>>);

}  // namespace moe::inline MOE_ABI
