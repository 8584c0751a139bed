// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/core/visit.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/schedule.hpp"

namespace moe::inline MOE_ABI {

/// A temperature that is learnt: tau = minimum + softplus(raw), positive for every raw. Stands where a schedule stands
/// and ignores the update. `raw` is the parameter.
struct LearnableTemperature {
  double raw = 0;
  double minimum = 0.01;  ///< > 0

  /// Throws std::invalid_argument unless temperature > minimum > 0.
  static LearnableTemperature starting_at(double temperature, double minimum = 0.01) {
    if (!(temperature > minimum && minimum > 0 && std::isfinite(temperature)))
      fail("moe::LearnableTemperature::starting_at: temperature is ", temperature, " and minimum is ", minimum,
           ", expected temperature > minimum > 0");
    const double above = temperature - minimum;  // = softplus(raw), so raw = log(e^above - 1), without overflow
    return {.raw = above + std::log(-std::expm1(-above)), .minimum = minimum};
  }

  double operator()(std::uint64_t /*update*/) const { return minimum + Softplus::value(raw); }
  /// Adds dL/draw, given dL/dtemperature.
  void backward(double dtemperature, LearnableTemperature& gradient) const {
    gradient.raw += dtemperature * Softplus::derivative(raw);
  }

  /// Throws std::invalid_argument unless raw is finite and minimum > 0.
  void validate() const {
    if (!(minimum > 0 && std::isfinite(minimum) && std::isfinite(raw)))
      fail("moe::LearnableTemperature: raw is ", raw, " and minimum is ", minimum,
           ", expected raw finite and minimum > 0");
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("raw", self.raw...);
  }

  friend bool operator==(const LearnableTemperature&, const LearnableTemperature&) = default;
};

/// A schedule with parameters, which are told dL/dvalue.
template <class T>
concept LearnableSchedule = Schedule<T> && HasParameters<T> && requires(const T& schedule, double dvalue, T& gradient) {
  schedule.backward(dvalue, gradient);
};

static_assert(LearnableSchedule<LearnableTemperature> && !LearnableSchedule<ExponentialSchedule>);

namespace detail {

/// Well inside float, which temperatures become.
inline constexpr double kLowestTemperature = 1e-30, kHighestTemperature = 1e30;

inline void require_temperature(const char* function, double value, const char* when) {
  if (!(value >= kLowestTemperature && value <= kHighestTemperature))
    fail(function, ": temperature is ", value, when, ", expected a value in [1e-30, 1e30]");
}

/// Checks the numbers of a schedule of temperatures, and that it does not rise from start to end.
template <Schedule T>
void validate_temperature(const char* function, const T& temperature) {
  if constexpr (requires { temperature.validate(); }) temperature.validate();
  const double start = temperature(0), end = temperature(kFinished);
  require_temperature(function, start, " at the start");
  require_temperature(function, end, " at the end");
  if (start < end) fail(function, ": temperature starts at ", start, " and ends at ", end, ", expected it not to rise");
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
