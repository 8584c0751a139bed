// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Text of a file as a message can hold it: cut between characters, and with the control characters of ASCII and UTF-8
/// (U+0080 to U+009F) replaced, as it goes to a terminal.
inline std::string shown(std::string_view text, std::size_t longest = 200) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t length = std::min(text.size(), longest);
  while (length < text.size() && length > 0 && (byte(length) & 0xC0) == 0x80) --length;
  std::string result(text.substr(0, length));
  for (std::size_t i = 0; i < length; ++i) {
    const bool is_c1 = i > 0 && byte(i - 1) == 0xC2 && byte(i) < 0xA0;
    if (byte(i) < 0x20 || byte(i) == 0x7F || is_c1) result[i] = '?';
    if (is_c1) result[i - 1] = '?';
  }
  return text.size() > length ? result + "..." : result;
}

/// What the system says about the call that has just failed.
inline std::string system_reason() {
  return errno == 0 ? "the system gives no reason" : std::error_code(errno, std::generic_category()).message();
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
