// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>

#include "moe/core/error.hpp"

namespace moe::inline MOE_ABI::simd {

namespace detail {
template <int... I, class F>
[[gnu::always_inline]] constexpr void unroll(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}
}  // namespace detail

/// Calls f(std::integral_constant<int, i>) for i in [0, N), unrolled. For loops over arrays of registers: left as
/// loops, g++ 12 keeps such arrays on the stack. Inlined by force: clang 14 else calls it from ten steps on, with the
/// arrays in memory.
template <int N, class F>
[[gnu::always_inline]] constexpr void unroll(F&& f) {
  detail::unroll(std::make_integer_sequence<int, N>{}, f);
}

/// Calls f(std::integral_constant<int, n>) for the run-time n in [1, Max].
template <int Max, class F>
void with_constant(int n, F&& f) {
  MOE_ASSERT(n >= 1 && n <= Max);
  unroll<Max>([&](auto i) {
    if (n == i + 1) f(std::integral_constant<int, i + 1>{});
  });
}

}  // namespace moe::inline MOE_ABI::simd
