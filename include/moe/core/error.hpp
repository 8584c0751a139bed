// SPDX-License-Identifier: MIT
#pragma once

#include <cassert>
#include <sstream>
#include <stdexcept>

#include "moe/core/abi.hpp"

/// Checks an invariant of the library itself (never of its input), in debug builds only.
#define MOE_ASSERT(condition) assert(condition)

namespace moe::inline MOE_ABI {

/// Throws std::invalid_argument with the parts streamed one after the other.
/// Sentence shape: function, value found, name and value expected, as in
/// `moe::MoeLayer::forward: tokens has 32 columns, expected model_dim = 64`.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

/// Throws std::runtime_error: for broken files and environments, where fail() is for wrong arguments.
template <class... Parts>
[[noreturn]] void fail_environment(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace moe::inline MOE_ABI
