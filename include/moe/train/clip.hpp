// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>

#include "moe/core/block_sum.hpp"
#include "moe/train/elementwise.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Sum of squares in double. Eight accumulators hide the latency of the multiply-add; their order is fixed. Blocks of
/// eight, because the compiler then keeps them in registers: 1.5 against 6 elements per ns with AVX2.
template <class S>
double sum_of_squares(const S* values, Index n) {
  std::array<double, 8> sum{};
  const auto add = [&](Index from, Index count) {
    for (Index j = 0; j < count; ++j) {
      const double value = static_cast<double>(values[from + j]);
      double& slot = sum[static_cast<std::size_t>(j)];
      slot = simd::fma(value, value, slot);
    }
  };
  const Index body = n - n % 8;
  for (Index i = 0; i < body; i += 8) add(i, 8);
  add(body, n - body);
  return std::accumulate(sum.begin(), sum.end(), 0.0);
}

}  // namespace detail

/// Euclidean norm over all parameters of a gradient, accumulated in double: sqrt(sum g^2). Padding is zero and
/// adds nothing. The same bits for any number of threads. NaN or infinite where an element is, and infinite where a
/// square overflows double (|g| above 1e154, in double leaves only). Allocates a cache line per 16384 elements.
template <class T>
double gradient_norm(const T& gradient) {
  static_assert(HasParameters<T>, "moe::gradient_norm: what is trained declares visit (see moe/core/visit.hpp)");
  double total = 0;
  visit(
      [&](const std::string&, const auto& leaf) {
        const auto values = parameter_span(leaf);
        detail::add_blocks({std::ssize(values), detail::kElementGrain}, {&total, 1},
                           [&](Index begin, Index end, double* sum, Index) {
                             *sum = detail::sum_of_squares(values.data() + begin, end - begin);
                           });
      },
      gradient);
  return std::sqrt(total);
}

/// Scales the gradient by max_norm / norm where its norm is above max_norm, and returns the norm before.
/// A norm that is not finite leaves the gradient as it is: test the result with std::isfinite and skip the update.
///   if (std::isfinite(moe::clip_by_norm(gradient, 1.0))) adam.step(layer, gradient, state, rate);
/// Throws std::invalid_argument unless max_norm > 0.
/// Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013 (arXiv:1211.5063).
template <class T>
double clip_by_norm(T& gradient, double max_norm) {
  if (!(max_norm > 0)) fail("moe::clip_by_norm: max_norm is ", max_norm, ", expected a value above 0");
  const double norm = gradient_norm(gradient);
  if (!std::isfinite(norm) || norm <= max_norm) return norm;
  visit(
      [&](const std::string&, auto& leaf) {
        using V = simd::Batch<ParameterScalar<decltype(leaf)>>;
        const V scale(static_cast<ParameterScalar<decltype(leaf)>>(max_norm / norm));
        detail::update_leaf([&](V& value) { value = value * scale; }, leaf);
      },
      gradient);
  return norm;
}

}  // namespace moe::inline MOE_ABI
