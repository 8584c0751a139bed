// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <type_traits>

#include "moe/core/visit.hpp"

// How composites whose backward takes a gradient or NoGradient hand on to their parts what is theirs.
namespace moe::inline MOE_ABI::detail {

template <class Gradient>
inline constexpr bool kIsNoGradient = std::is_same_v<std::remove_const_t<Gradient>, NoGradient>;

/// What `part`, a member or a function, gives of a gradient; NoGradient of none.
template <class Gradient, class Part>
decltype(auto) part_of(Gradient& gradient, const Part& part) {
  if constexpr (kIsNoGradient<Gradient>)
    return NoGradient{};
  else
    return std::invoke(part, gradient);
}

/// require_backward_of() without a gradient: the tape alone, of parts that can tell.
template <class Part, class Rows, class Tape>
void require_backward_of(const char*, const char*, const Part& part, const Rows& rows, const Tape& tape,
                         NoGradient none) {
  if constexpr (requires { part.require_backward(rows, tape, none); }) part.require_backward(rows, tape, none);
}

}  // namespace moe::inline MOE_ABI::detail
