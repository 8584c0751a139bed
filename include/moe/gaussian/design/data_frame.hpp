// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/shown.hpp"

namespace moe::inline MOE_ABI {

/// What a column of a data frame holds.
enum class ColumnKind {
  Number,
  Logical,  ///< 0 or 1, written FALSE or TRUE
  Text      ///< levels of a factor
};

namespace detail {

/// TRUE and FALSE as R, pandas and spreadsheets write them; nothing for other texts.
inline std::optional<bool> logical_word(std::string_view text) {
  for (const char* word : {"TRUE", "True", "true", "T"})
    if (text == word) return true;
  for (const char* word : {"FALSE", "False", "false", "F"})
    if (text == word) return false;
  return std::nullopt;
}

}  // namespace detail

/// A column with a name, whose values may be missing. A plain value.
struct DataColumn {
  std::string name = {};
  ColumnKind kind = ColumnKind::Number;
  std::vector<double> numbers = {};     ///< Number, Logical: [rows], NaN where missing
  std::vector<std::string> texts = {};  ///< Text: [rows], empty where missing
  std::string unusable = {};            ///< why it is no input as it is ("holds dates ..."); empty if it is one

  bool missing(Index row) const {
    const auto i = static_cast<std::size_t>(row);
    return kind == ColumnKind::Text ? texts[i].empty() : std::isnan(numbers[i]);
  }

  /// The value as the name of a level: numbers in the fewest digits that give them back, FALSE or TRUE, text as it is.
  std::string level(Index row) const {
    const auto i = static_cast<std::size_t>(row);
    if (kind == ColumnKind::Text) return texts[i];
    if (kind == ColumnKind::Logical) return numbers[i] != 0 ? "TRUE" : "FALSE";
    std::array<char, 32> digits;  // the longest double has 24 characters
    return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), numbers[i] + 0.0).ptr};  // no -0
  }
};

/// Columns of the same length with different names, as data of people come: numbers, TRUE and FALSE, and text, with
/// missing values. What a Formula picks from. read_data_frame() (moe/io) makes one from a file.
struct DataFrame {
  Index num_rows = 0;
  std::vector<DataColumn> columns = {};
  std::vector<std::string> notes = {};  ///< what the reader decided, a sentence each

  /// The column of that name, null if there is none.
  const DataColumn* find(std::string_view name) const {
    for (const DataColumn& column : columns)
      if (column.name == name) return &column;
    return nullptr;
  }

  /// Throws std::invalid_argument unless all columns have num_rows values, and a name that no other has.
  void validate(const char* function) const {
    std::unordered_set<std::string_view> names;
    for (const DataColumn& column : columns) {
      const auto size = column.kind == ColumnKind::Text ? column.texts.size() : column.numbers.size();
      if (static_cast<Index>(size) != num_rows)
        fail(function, ": column ", detail::in_quotes(column.name), " has ", size,
             " values, expected num_rows = ", num_rows);
      if (column.name.empty() || !names.insert(column.name).second)
        fail(function, ": a column is called ", detail::in_quotes(column.name),
             ", expected a name that no other column has");
    }
  }
};

}  // namespace moe::inline MOE_ABI
