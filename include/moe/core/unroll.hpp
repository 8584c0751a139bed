// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::simd {

/// Calls f(std::integral_constant<int, i>) for i in [0, N), unrolled. For loops over arrays of registers: left as
/// loops, g++ 12 keeps such arrays on the stack.
template <int N, class F>
constexpr void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
  (std::make_integer_sequence<int, N>{});
}

}  // namespace moe::inline MOE_ABI::simd
