// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::detail {

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

/// The same between single quotes.
inline std::string in_quotes(std::string_view text) { return "'" + shown(text) + "'"; }

/// The first texts of a list as a message can hold them: "a, b, c and 7 more".
template <class List>
std::string shown_list(const List& texts) {
  constexpr std::size_t kMost = 20, kLongest = 40;
  std::string result;
  std::size_t count = 0;
  for (const auto& text : texts)
    if (count++ < kMost) result += (count > 1 ? ", " : "") + shown(text, kLongest);
  return count > kMost ? result + " and " + std::to_string(count - kMost) + " more" : result;
}

}  // namespace moe::inline MOE_ABI::detail
