// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <utility>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

inline constexpr double kUlp = std::numeric_limits<double>::epsilon();

/// z with Phi(z) = p, for 1e-300 <= p <= 1/2. Newton on log Phi, which is concave, from below: Phi(-s) <= exp(-s^2/2) /
/// 2 bounds the start, every step rises, and the first that does not ends it.
inline double normal_quantile(double p) {
  double z = -std::sqrt(-2 * std::log(2 * p));
  while (true) {
    const double below = 0.5 * std::erfc(-z / std::numbers::sqrt2);
    const double density = std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi);
    const double next = z - std::log1p((below - p) / p) * below / density;
    if (!(next > z)) return z;
    z = next;
  }
}

/// low <= start <= high.
struct Bracket {
  double low, start, high;
};

/// t in the bracket with tail(t) = p > 0 to 2 ulp, or the best that neighbouring doubles can do; density is the
/// derivative of tail. Newton on log tail, which is nearly straight far out; bisection where that leaves the bracket or
/// does not halve the step before the last one.
template <class Tail, class Density>
double solve_tail(double p, Bracket bracket, Tail&& tail, Density&& density) {
  auto [low, t, high] = bracket;
  double step = high - low, step_before = step;
  while (true) {
    const double below = tail(t), error = below - p;
    if (std::abs(error) <= 2 * kUlp * p) return t;
    (error < 0 ? low : high) = t;
    double next = t - std::log1p(error / p) * below / density(t);  // NaN where the tail underflows
    if (next == t) return t;
    if (!(next > low && next < high && 2 * std::abs(next - t) < step_before)) next = std::midpoint(low, high);
    if (!(next > low && next < high)) return t;  // neighbours
    step_before = std::exchange(step, std::abs(next - t));
    t = next;
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
