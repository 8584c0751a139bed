// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Text of a file as a message can hold it: cut, and with control characters replaced, as it goes to a terminal.
inline std::string shown(std::string_view text) {
  constexpr std::size_t kShown = 200;
  std::string result(text.substr(0, kShown));
  for (char& c : result)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return text.size() > kShown ? result + "..." : result;
}

/// The same between single quotes.
inline std::string in_quotes(std::string_view text) { return "'" + shown(text) + "'"; }

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
