// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include "moe/numeric/softmax.hpp"

namespace moe::inline MOE_ABI {

/// log(sum_i exp(z_i)) of n logits: -inf for n = 0 or all -inf, +inf for a row with +inf, NaN for one with NaN (with
/// both, either). Absolute error below (2 max |z_i| + n / lanes + 8) epsilon. No overflow, no allocation; the bits
/// depend on the row alone.
template <class S>
S log_sum_exp(const S* logits, Index n) {
  using V = simd::Batch<S>;
  constexpr S kInfinity = std::numeric_limits<S>::infinity();
  const S most = detail::largest(logits, n);
  if (most == -kInfinity || most == kInfinity) return most;
  const V shift(most);
  V sum(S{0});
  simd::for_each<S>(
      n, [&](Index i) { sum = sum + simd::exp_nonpositive(simd::load(logits + i) - shift); },
      [&](Index i, Index count) {
        sum = sum + simd::exp_nonpositive(simd::load_partial(logits + i, count, -kInfinity) - shift);
      });
  return most + std::log(simd::reduce_add(sum));
}

}  // namespace moe::inline MOE_ABI
