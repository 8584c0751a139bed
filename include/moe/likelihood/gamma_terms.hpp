// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <numbers>

#include "moe/core/abi.hpp"

// What densities need of the gamma function, accurate where its logarithm itself would cancel, and free of the global
// variable that std::lgamma writes.
namespace moe::inline MOE_ABI::detail {

inline constexpr double kHalfLogTwoPi = 0.91893853320467274178;  ///< log(2 pi) / 2

/// log n! - (n + 1/2) log n + n - log(2 pi) / 2, the error of Stirling's formula, for n > 0; to some ulp of 1.
inline double stirling_error(double n) {
  double below = 0;  // of log n! - log (n + m)!, and of the formula at both
  double at = n;
  for (; at < 16; ++at) below += (at + 0.5) * std::log1p(1 / at) - 1;
  const double r = 1 / (at * at);
  return below + (1.0 / 12 - r * (1.0 / 360 - r * (1.0 / 1260 - r * (1.0 / 1680 - r / 1188)))) / at;
}

/// y log(y / m) + m - y >= 0 for y, m > 0, without cancellation: Loader, "Fast and accurate computation of binomial
/// probabilities", 2000.
inline double deviance_term(double y, double m) {
  if (!(std::abs(y - m) < 0.1 * (y + m))) return y * std::log(y / m) + m - y;
  const double v = (y - m) / (y + m), square = v * v;
  double sum = (y - m) * v, power = 2 * y * v;
  for (int j = 3; j < 60; j += 2) {
    power *= square;
    const double next = sum + power / j;
    if (next == sum) break;
    sum = next;
  }
  return sum;
}

/// c(nu) = log Gamma((nu + 1) / 2) - log Gamma(nu / 2) - log(nu / 2) / 2, 0 in the limit, with its first and second
/// derivative in log nu.
struct GammaRatio {
  double value = 0, first = 0, second = 0;

  explicit GammaRatio(double nu) {
    const double z = nu / 2;
    double at = z;  // where the series is good
    double product = 1;
    for (; at < 12; ++at) {
      const double p = z / at, q = z / (at + 0.5);
      product *= 1 + 0.5 / at;
      first += p - q;
      second += p * (at - z) / at - q * (at + 0.5 - z) / (at + 0.5);
    }
    if (at > z) {
      const double p = z / at;
      value += 0.5 * std::log(at / z) - std::log(product);
      first += 0.5 * p - 0.5;
      second += 0.5 * p * (at - z) / at;
    }
    constexpr double kSeries[] = {-1.0 / 8,     1.0 / 192,     -1.0 / 640,
                                  17.0 / 14336, -31.0 / 18432, 691.0 / 180224};  // of at^-1, at^-3, ...
    const double share = z / at;
    double power = 1 / at;
    for (int i = 0; i < 6; ++i, power /= at * at) {
      const double m = 2 * i + 1, term = kSeries[i] * power;
      value += term;
      first -= m * share * term;                               // z s'
      second += m * ((m + 1) * share * share - share) * term;  // z s' + z^2 s''
    }
  }
};

}  // namespace moe::inline MOE_ABI::detail
