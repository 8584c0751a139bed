// SPDX-License-Identifier: MIT
#pragma once

#include <limits>

#include "moe/likelihood/expert_family.hpp"

namespace moe::inline MOE_ABI {

/// Experts of a continuous family, and beside them one component of noise: a uniform density on [low, high], which
/// has no parameters. It is the last component of the gate, so that rows that fit no expert cost log(1 / (high - low))
/// at most and do not draw the experts to them.
///   moe::fit_mixture(data, 2, moe::UniformNoise<moe::Normal>{})        // two experts, three components
/// A y outside of the range has no density of noise.
/// Banfield & Raftery, "Model-based Gaussian and non-Gaussian clustering", Biometrics 1993.
template <ExpertFamily Family>
  requires(Family::kContinuous)
struct UniformNoise : Family {
  /// Where y may lie; not given: from the least to the largest y that the model is fitted to.
  double low = std::numeric_limits<double>::quiet_NaN(), high = std::numeric_limits<double>::quiet_NaN();

  static_assert(
      !requires { Family::kOutputs; }, "moe::UniformNoise: is noise of one output, expected a family of one");
  static constexpr bool kNoise = true;

  UniformNoise() = default;
  explicit UniformNoise(Family family) : Family(std::move(family)) {}
  UniformNoise(Family family, double lowest, double highest) : Family(std::move(family)), low(lowest), high(highest) {}

  double noise_log_density(double y) const {
    return y >= low && y <= high ? -std::log(high - low) : -std::numeric_limits<double>::infinity();
  }
  double noise_mean() const { return low + 0.5 * (high - low); }

  /// The range of y where none is given.
  void prepare(const ResponseData& data) {
    if (std::isnan(low)) low = data.y.minCoeff();
    if (std::isnan(high)) high = data.y.maxCoeff();
  }
  void require_range(const char* function) const {
    if (!(high > low && std::isfinite(high - low)))
      fail(function, ": UniformNoise has the range ", low, " to ", high, ", expected low < high, and a y that varies");
  }
};

namespace detail {

/// Components of the gate that are no experts.
template <class F>
constexpr Index num_noise() {
  if constexpr (requires { F::kNoise; }) return 1;
  return 0;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
