// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::detail {

template <class T>
struct TapeOfPart {
  struct type {};
};
template <class T>
  requires requires { typename T::Tape; }
struct TapeOfPart<T> {
  using type = typename T::Tape;
};

/// T::Tape, or nothing for a part that cannot be trained through.
template <class T>
using TapeOf = typename TapeOfPart<T>::type;

}  // namespace moe::inline MOE_ABI::detail
