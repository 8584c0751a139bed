// SPDX-License-Identifier: MIT
// Errors of float and double functions against long double, over a sweep of arguments.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/core/simd.hpp"

namespace test {

using Long = long double;

/// Error in units in the last place of the exact value; 0 where that is too small to be a normal number.
template <class S>
Long ulps(S computed, Long exact) {
  if (std::fabs(exact) < std::numeric_limits<S>::min()) return 0;
  int exponent = 0;
  (void)std::frexp(exact, &exponent);
  return std::fabs(computed - exact) / std::ldexp(Long{1}, exponent - std::numeric_limits<S>::digits);
}

/// Evenly spaced arguments from `low` to `high`, and 2^0 ... 2^-30 of both signs where they lie between; whole
/// registers.
template <class S>
std::vector<S> arguments(Long low, Long high) {
  std::vector<S> all;
  for (int i = 0; i < 20000; ++i) all.push_back(static_cast<S>(low + (high - low) * i / 20000));
  for (int i = 0; i < 3000; ++i)
    for (const Long x : {std::exp2(-0.01L * i), -std::exp2(-0.01L * i)})
      if (low <= x && x <= high) all.push_back(static_cast<S>(x));
  while (all.size() % static_cast<std::size_t>(moe::simd::kLanes<S>) != 0) all.push_back(all.back());
  return all;
}

/// Largest error(computed, exact, x) of f, which works on registers, against `exact`; infinite for NaN.
template <class S, class F, class Exact, class Error>
Long worst_error(Long low, Long high, F f, Exact exact, Error error) {
  const std::vector<S> x = arguments<S>(low, high);
  std::vector<S> y(x.size());
  moe::simd::transform(static_cast<moe::Index>(x.size()), x.data(), y.data(), f);
  Long worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(y[i])) return INFINITY;
    worst = std::max(worst, error(y[i], exact(Long{x[i]}), Long{x[i]}));
  }
  return worst;
}

template <class S, class F, class Exact>
Long worst_ulps(Long low, Long high, F f, Exact exact) {
  return worst_error<S>(low, high, f, exact, [](S computed, Long right, Long) { return ulps(computed, right); });
}

/// The same in epsilons, absolute: for functions of size 1 that cross zero.
template <class S, class F, class Exact>
Long worst_epsilons(Long low, Long high, F f, Exact exact) {
  return worst_error<S>(low, high, f, exact, [](S computed, Long right, Long) {
    return std::fabs(computed - right) / std::numeric_limits<S>::epsilon();
  });
}

}  // namespace test
