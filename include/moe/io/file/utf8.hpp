// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string_view>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::detail {

/// The length of the first character of a text, 0 where it is not UTF-8: no overlong forms, surrogates, or beyond
/// U+10FFFF (RFC 3629).
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const bool is_right = (first != 0xE0 || second >= 0xA0) && (first != 0xED || second <= 0x9F);
    return is_right && follows(1) && follows(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const bool is_right = (first != 0xF0 || second >= 0x90) && (first != 0xF4 || second <= 0x8F);
    return is_right && follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}
/// The place of the first character that is not UTF-8, the size of the text if all are.
inline std::size_t utf8_end(std::string_view text) {
  for (std::size_t place = 0; place < text.size();) {
    const std::size_t length = utf8_length(text.substr(place));
    if (length == 0) return place;
    place += length;
  }
  return text.size();
}
inline bool is_utf8(std::string_view text) { return utf8_end(text) == text.size(); }

}  // namespace moe::inline MOE_ABI::detail
