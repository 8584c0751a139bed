// SPDX-License-Identifier: MIT
#pragma once

#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/shown.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// What the system says about the call that has just failed.
inline std::string system_reason() {
  return errno == 0 ? "the system gives no reason" : std::error_code(errno, std::generic_category()).message();
}

inline std::string join(const std::vector<Index>& shape, const char* separator) {
  std::string text;
  for (const Index extent : shape) {
    if (!text.empty()) text += separator;
    text += std::to_string(extent);
  }
  return text;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
