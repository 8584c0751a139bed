// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <numbers>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Whether actions are latent numbers as they are, or squashed into a range.
enum class Squash { Off, Tanh };

/// How actions come of latent numbers u, coordinate by coordinate: a = u, or a = scale tanh(u), in [-scale, scale].
/// A density of u becomes one of a by log p(a) = log p(u) - sum_d log |da_d / du_d|, with
///   log |da / du| = log scale + log(1 - tanh(u)^2) = log scale + 2 (log 2 - u - softplus(-2 u)),
/// finite for every finite u, also where tanh(u) is rounded to 1: densities are taken at u, which whoever has drawn an
/// action knows. Plain value; functions are in double. Haarnoja et al., "Soft actor-critic", ICML 2018
/// (arXiv:1801.01290), appendix C.
struct ActionRange {
  Squash squash = Squash::Off;
  double scale = 1;  ///< above 0; of Tanh

  /// Throws std::invalid_argument unless the scale is finite and above 0.
  void validate() const {
    if (!(scale > 0) || !std::isfinite(scale))
      fail("moe::ActionRange: scale is ", scale, ", expected a finite value above 0");
  }

  double action(double u) const { return squash == Squash::Off ? u : scale * std::tanh(u); }
  /// da / du; 0 where tanh is flat.
  double slope(double u) const { return squash == Squash::Off ? 1.0 : std::exp(log_slope(u)); }
  double log_slope(double u) const {
    if (squash == Squash::Off) return 0;
    const double magnitude = std::abs(u);  // even in u, and log1p(exp(-2 |u|)) does not overflow
    return std::log(scale) + 2 * (std::numbers::ln2 - magnitude - std::log1p(std::exp(-2 * magnitude)));
  }
  /// d log_slope / du.
  double log_slope_gradient(double u) const { return squash == Squash::Off ? 0.0 : -2 * std::tanh(u); }
  /// The u of an action. At the ends of the range and beyond, where there is none, that of the last number of type S
  /// inside: about +-9 in float, +-19 in double.
  template <class S>
  S latent(S action) const {
    if (squash == Squash::Off) return action;
    constexpr double kMost = 1 - static_cast<double>(std::numeric_limits<S>::epsilon()) / 2;
    const double share = static_cast<double>(action) / scale;
    return static_cast<S>(std::atanh(share < -kMost ? -kMost : share > kMost ? kMost : share));
  }
  friend bool operator==(const ActionRange&, const ActionRange&) = default;
};

}  // namespace moe::inline MOE_ABI
