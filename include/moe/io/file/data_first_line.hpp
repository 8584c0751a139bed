// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "moe/gaussian/design/data_frame.hpp"
#include "moe/io/file/data_fields.hpp"
#include "moe/io/file/utf8.hpp"

namespace moe::inline MOE_ABI::detail {

/// What the first line of a data file may be.
enum class FirstLine {
  Names,
  NamesAndNumbers,  ///< names, of which some are numbers
  Values,
  Either
};

inline bool is_any_number(std::string_view text) { return parse_number(text).ok || parse_marked_number(text, ',').ok; }

/// A number that is not in quotes.
inline bool is_bare_number(const DataField& field) {
  return !field.quoted && is_any_number(field.text) && shape_of(field.text) != "a";  // Inf
}

/// What a text of the first line is, by the column below it: a name above numbers, a value if it comes again.
inline FirstLine meaning_of(const std::vector<DataRecord>& records, std::size_t column,
                            const DataFileOptions& options) {
  const auto& fields = records.front().fields;
  const std::string_view text = fields[column].text;
  if (options.is_missing(text) || logical_word(text) || is_date(text)) return FirstLine::Values;
  const bool is_word = shape_of(text).find('a') != std::string::npos || utf8_length(text) > 1;
  if (!is_word) return FirstLine::Values;
  bool found = false, all_numbers = true, again = false;
  for (std::size_t r = 1; r < records.size(); ++r) {
    const auto& row = records[r].fields;
    const std::size_t place = column + (row.size() == fields.size() + 1 ? 1 : 0);  // behind a name of the row
    if (place >= row.size() || options.is_missing(row[place].text)) continue;
    found = true;
    all_numbers = all_numbers && is_any_number(row[place].text);
    again = again || row[place].text == text;
  }
  if (!found || again) return FirstLine::Values;
  return all_numbers ? FirstLine::Names : FirstLine::Either;
}

/// Does the first line name columns? Yes, if no field of it is a number that is not in quotes, or if all are what
/// pandas calls columns without names: 0, 1, 2, ... Where some are numbers, words above numbers are names; words above
/// other words may be names, unless one comes again or a number is none that counts or a year.
inline FirstLine first_line(const std::vector<DataRecord>& records, const DataFileOptions& options) {
  const auto& fields = records.front().fields;
  const auto numbers = std::count_if(fields.begin(), fields.end(), is_bare_number);
  if (numbers == 0) return FirstLine::Names;
  if (records.size() == 1) return FirstLine::Values;
  const std::size_t corner = fields.front().text.empty() ? 1 : 0;
  std::size_t counted = corner;
  while (counted < fields.size() && fields[counted].text == std::to_string(counted - corner)) ++counted;
  if (counted == fields.size() && (corner == 1 || numbers > 2)) return FirstLine::NamesAndNumbers;
  bool either = counted == fields.size() && numbers == 2, values = false;
  for (std::size_t c = 0; c < fields.size(); ++c) {
    if (is_bare_number(fields[c])) {
      values = values || fields[c].text.find_first_not_of("0123456789") != std::string_view::npos;
      continue;
    }
    const FirstLine meaning = meaning_of(records, c, options);
    if (meaning == FirstLine::Names) return FirstLine::NamesAndNumbers;
    either = either || meaning == FirstLine::Either;
    values = values || (meaning == FirstLine::Values && !options.is_missing(fields[c].text));
  }
  return either && !values ? FirstLine::Either : FirstLine::Values;
}

}  // namespace moe::inline MOE_ABI::detail
