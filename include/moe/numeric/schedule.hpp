// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <numbers>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// A number that changes during training: a pure function of the optimiser updates done so far. Temperatures, learning
/// rates and loss weights are schedules; a checkpoint needs the update counter only. A lambda is one:
///   [](std::uint64_t update) { return update < 100 ? 1.0 : 0.5; }
/// It may be asked for any update, kFinished included.
template <class F>
concept Schedule = requires(const F& schedule, std::uint64_t update) {
  { schedule(update) } -> std::convertible_to<double>;
};

/// The update at which every schedule has reached its end: what inference asks for.
inline constexpr std::uint64_t kFinished = UINT64_MAX;

namespace detail {

inline void require_finite(const char* function, const char* name, double value) {
  if (!std::isfinite(value)) fail(function, ": ", name, " is ", value, ", expected a finite number");
}

/// What the schedules that lead from start to end have in common.
inline void validate_ramp(const char* function, double start, double end, std::uint64_t updates) {
  require_finite(function, "start", start);
  require_finite(function, "end", end);
  if (updates == 0) fail(function, ": updates is 0, expected at least 1");
}

/// Share of the way from 0 to `updates`, below 1 for update < updates.
inline double progress(std::uint64_t update, std::uint64_t updates) {
  return static_cast<double>(update) / static_cast<double>(updates);
}

}  // namespace detail

/// The same value always.
struct ConstantSchedule {
  double value = 1;

  double operator()(std::uint64_t) const { return value; }
  /// Throws std::invalid_argument unless the value is finite.
  void validate() const { detail::require_finite("moe::ConstantSchedule", "value", value); }

  friend bool operator==(const ConstantSchedule&, const ConstantSchedule&) = default;
};

/// start + (end - start) * u / updates, then end.
struct LinearSchedule {
  double start = 1, end = 0.1;
  std::uint64_t updates = 1000;

  double operator()(std::uint64_t update) const {
    return update >= updates ? end : start + (end - start) * detail::progress(update, updates);
  }
  /// Throws std::invalid_argument unless start and end are finite and updates > 0.
  void validate() const { detail::validate_ramp("moe::LinearSchedule", start, end, updates); }

  friend bool operator==(const LinearSchedule&, const LinearSchedule&) = default;
};

/// start * (end / start)^(u / updates), then end: equal ratios in equal times.
struct ExponentialSchedule {
  double start = 1, end = 0.1;
  std::uint64_t updates = 1000;

  double operator()(std::uint64_t update) const {
    return update >= updates ? end : start * std::pow(end / start, detail::progress(update, updates));
  }
  /// Throws std::invalid_argument unless start and end are finite and positive and updates > 0.
  void validate() const {
    detail::validate_ramp("moe::ExponentialSchedule", start, end, updates);
    if (!(start > 0 && end > 0))
      fail("moe::ExponentialSchedule: start is ", start, " and end is ", end, ", expected both positive");
  }

  friend bool operator==(const ExponentialSchedule&, const ExponentialSchedule&) = default;
};

/// end + (start - end) * (1 + cos(pi u / updates)) / 2, then end.
/// Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", without restarts (arXiv:1608.03983).
struct CosineSchedule {
  double start = 1, end = 0.1;
  std::uint64_t updates = 1000;

  double operator()(std::uint64_t update) const {
    if (update >= updates) return end;
    return end + (start - end) * 0.5 * (1 + std::cos(std::numbers::pi * detail::progress(update, updates)));
  }
  /// Throws std::invalid_argument unless start and end are finite and updates > 0.
  void validate() const { detail::validate_ramp("moe::CosineSchedule", start, end, updates); }

  friend bool operator==(const CosineSchedule&, const CosineSchedule&) = default;
};

/// max(end, start * factor^floor(u / interval)): one drop every `interval` updates.
struct StepSchedule {
  double start = 1, end = 0.1, factor = 0.5;
  std::uint64_t interval = 1000;

  double operator()(std::uint64_t update) const {
    return std::max(end, start * std::pow(factor, static_cast<double>(update / interval)));
  }
  /// Throws std::invalid_argument unless start >= end, both finite, 0 < factor < 1 and interval > 0.
  void validate() const {
    detail::validate_ramp("moe::StepSchedule", start, end, /*updates=*/1);
    if (start < end) fail("moe::StepSchedule: start is ", start, ", expected at least end = ", end);
    if (!(factor > 0 && factor < 1)) fail("moe::StepSchedule: factor is ", factor, ", expected a value in (0, 1)");
    if (interval == 0) fail("moe::StepSchedule: interval is 0, expected at least 1");
  }

  friend bool operator==(const StepSchedule&, const StepSchedule&) = default;
};

static_assert(Schedule<ConstantSchedule> && Schedule<LinearSchedule> && Schedule<ExponentialSchedule> &&
              Schedule<CosineSchedule> && Schedule<StepSchedule>);

}  // namespace moe::inline MOE_ABI
