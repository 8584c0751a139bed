// SPDX-License-Identifier: MIT
#pragma once

#include <charconv>
#include <cmath>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <vector>

#include "moe/gaussian/design/data_frame.hpp"

namespace moe::inline MOE_ABI::detail {

/// The number that a text is; NaN if it is none.
inline double number_of(std::string_view text) {
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);  // from_chars knows no plus
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() ? number : std::nan("");
}

/// Finds the level of a row by what the column holds: texts, or the numbers and TRUE or FALSE that the levels are. So
/// F is a level of {F, M} in a column that has no M and was read as FALSE, and 1 is 01 where no level is 1.
class LevelCodes {
 public:
  static constexpr Index kUnknown = -1, kSeveral = -2;

  LevelCodes(const std::vector<std::string>& levels, ColumnKind kind) {
    for (Index l = 0; l < std::ssize(levels); ++l) {
      const std::string& level = levels[static_cast<std::size_t>(l)];
      if (kind == ColumnKind::Text) texts_.emplace(level, l);
      const auto word = logical_word(level);
      const double number = kind == ColumnKind::Number ? number_of(level) : word ? (*word ? 1 : 0) : std::nan("");
      if (kind == ColumnKind::Text || std::isnan(number)) continue;
      if (const auto [before, is_new] = numbers_.emplace(number, l); !is_new) before->second = kSeveral;
    }
  }

  /// Index of the level; kUnknown, or kSeveral if several levels are that number.
  Index code(const DataColumn& column, Index row) const {
    const auto i = static_cast<std::size_t>(row);
    if (column.kind == ColumnKind::Text) return in(texts_, std::string_view(column.texts[i]));
    return in(numbers_, column.numbers[i]);
  }

 private:
  template <class Codes, class Key>
  static Index in(const Codes& codes, const Key& key) {
    const auto found = codes.find(key);
    return found == codes.end() ? kUnknown : found->second;
  }

  std::unordered_map<std::string_view, Index> texts_ = {};
  std::map<double, Index> numbers_ = {};
};

}  // namespace moe::inline MOE_ABI::detail
