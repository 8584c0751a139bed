// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"
#include "moe/io/file/csv.hpp"
#include "moe/io/file/data_file_options.hpp"

namespace moe::inline MOE_ABI::detail {

/// A field of a line, without the blanks and quotes around it.
struct DataField {
  std::string_view text = {};
  bool quoted = false;
};

/// A line of a data file, or several where a quoted field holds line ends.
struct DataRecord {
  std::vector<DataField> fields = {};
  Index line = 0;
};

/// Takes a text apart into records: fields between separators, of which ' ' stands for any run of blanks. Fields may be
/// in double quotes, which hold separators, line ends, and quotes doubled or behind a backslash: always, if one is
/// where no field can end, else unless the field ends there. Blank lines and comments are passed over.
class DataTokens {
 public:
  DataTokens(std::string label, std::string_view text, char separator, const DataFileOptions& options)
      : label_(std::move(label)), text_(text), separator_(separator), options_(options) {
    for (std::size_t place = text_.find("\\\""); place != text_.npos && !escapes_;
         place = text_.find("\\\"", place + 2))
      escapes_ = at(place + 2) != '"' && !ends(place + 2);
  }

  Index comments() const { return comments_; }

  /// False at the end. The views live as long as this object.
  bool next(DataRecord& record) {
    record.fields.clear();
    while (place_ < text_.size() && pass_over()) {
    }
    if (place_ >= text_.size()) return false;
    record.line = line_;
    do record.fields.push_back(field());
    while (!at_end_of_record());
    return true;
  }

 private:
  bool is_blank(char c) const { return c == ' ' || (c == '\t' && separator_ != '\t') || c == '\r'; }
  char at(std::size_t place) const { return place < text_.size() ? text_[place] : '\n'; }
  void skip_blanks() {
    while (is_blank(at(place_))) ++place_;
  }

  /// Passes over a line without fields, if this is one.
  bool pass_over() {
    std::size_t begin = place_;
    while (is_blank(at(begin))) ++begin;
    const std::size_t end = std::min(text_.find('\n', begin), text_.size());
    const bool comment = begin < end && options_.comment != 0 && at(begin) == options_.comment;
    if (begin < end && (!comment || is_row(text_.substr(begin, end - begin)))) return false;
    comments_ += comment ? 1 : 0;
    place_ = end + 1;
    ++line_;
    return true;
  }

  /// A row whose first value begins as comments do: #N/A, #FF0000, or the # that names a column of numbers. It has as
  /// many fields as other rows, and no blank behind the sign.
  bool is_row(std::string_view line) {
    const std::string_view first =
        line.substr(0, separator_ == ' ' ? line.find_first_of(" \t") : line.find(separator_));
    if (options_.is_missing(trimmed(first))) return true;
    const std::size_t fields = num_fields(line);
    if (fields < 2 || (line.size() > 1 && is_blank(line[1]))) return false;
    if (other_width_ == 0) other_width_ = other_width();
    return fields == other_width_;
  }

  /// Of a line; 0 if a quote has no end there.
  std::size_t num_fields(std::string_view line) const {
    std::size_t fields = 1;
    bool inside = false;
    line = trimmed(line);
    for (std::size_t i = 0; i < line.size(); ++i) {
      if (line[i] == '"') inside = !inside;
      const bool cuts = separator_ == ' ' ? is_blank(line[i]) && !is_blank(line[i - 1]) : line[i] == separator_;
      if (cuts && !inside) ++fields;
    }
    return inside ? 0 : fields;
  }

  /// Fields of the rows that do not begin as comments do: of the second one, as the first one may lack a name of rows.
  std::size_t other_width() const {
    DataTokens others(label_, text_, separator_, options_);
    std::size_t width = others.other_width_ = text_.size() + 1;  // of no line
    DataRecord record;
    for (int row = 0; row < 2 && others.next(record); ++row) width = record.fields.size();
    return width;
  }

  DataField field() {
    skip_blanks();
    if (at(place_) == '"' && place_ < text_.size()) return {quoted(), true};
    const std::size_t begin = place_;
    while (at(place_) != '\n' && (separator_ == ' ' ? !is_blank(at(place_)) : at(place_) != separator_)) ++place_;
    return {trimmed(text_.substr(begin, place_ - begin)), false};
  }

  std::string_view quoted() {
    const std::size_t begin = ++place_;
    const Index line = line_;
    std::string* copy = nullptr;
    for (;; ++place_) {
      if (place_ >= text_.size()) fail_environment(label_, ", line ", line, ": a quote has no end");
      const char c = text_[place_];
      const bool escaped = at(place_ + 1) == '"' && (c == '"' || (c == '\\' && (escapes_ || !ends(place_ + 2))));
      if (c == '"' && !escaped) break;
      if (escaped && !copy) copy = &copies_.emplace_back(text_.substr(begin, place_ - begin));
      if (escaped) ++place_;
      if (copy) *copy += text_[place_];
      line_ += c == '\n' ? 1 : 0;
    }
    const std::string_view text = copy ? std::string_view(*copy) : text_.substr(begin, place_ - begin);
    ++place_;
    skip_blanks_but_separator();
    if (at(place_) != '\n' && at(place_) != separator_ && !(separator_ == ' ' && is_blank(at(place_ - 1))))
      fail_environment(label_, ", line ", line_, ": found '", shown(text_.substr(place_, 1)), "' behind the quoted ",
                       in_quotes(text.substr(0, 40)), ", expected a separator");
    return text;
  }

  /// Is a quoted field over here, so that the backslash before its quote was no escape?
  bool ends(std::size_t place) const {
    while (at(place) == '\r') ++place;
    return at(place) == '\n' || at(place) == separator_ || (separator_ == ' ' && at(place) == '\t');
  }
  void skip_blanks_but_separator() {
    while (at(place_) != separator_ && is_blank(at(place_))) ++place_;
  }

  /// Moves to the next field, or behind the end of the line.
  bool at_end_of_record() {
    if (separator_ == ' ') skip_blanks();
    if (at(place_) == '\n') {
      ++place_;
      ++line_;
      return true;
    }
    if (separator_ != ' ') ++place_;
    return false;
  }

  std::string label_;
  std::string_view text_;
  char separator_;
  const DataFileOptions& options_;
  bool escapes_ = false;         // is \" a quote wherever it stands?
  std::size_t other_width_ = 0;  // 0: not known yet
  std::size_t place_ = 0;
  Index line_ = 1, comments_ = 0;
  std::deque<std::string> copies_ = {};  // of quoted fields with escapes: does not move them
};

/// How many fields the first lines have with a separator; nothing where quotes do not fit.
inline std::vector<std::size_t> field_counts(std::string_view text, char separator, const DataFileOptions& options) {
  constexpr std::size_t kLines = 200;
  std::vector<std::size_t> counts;
  DataRecord record;
  try {
    DataTokens tokens("", text, separator, options);
    while (counts.size() < kLines && tokens.next(record)) counts.push_back(record.fields.size());
  } catch (const std::runtime_error&) {
    counts.clear();
  }
  return counts;
}

/// The first of tab ; , and blanks that cuts all of the first 200 lines into as many fields, more than one; the first
/// line may have one less, before row names. If none does, the one that the first line has most of.
inline char find_separator(std::string_view text, const DataFileOptions& options) {
  constexpr std::array kSeparators = {'\t', ';', ',', ' '};
  char most = ',';
  std::size_t fields = 1;
  for (const char separator : kSeparators) {
    const std::vector<std::size_t> counts = field_counts(text, separator, options);
    if (counts.empty()) continue;
    const std::size_t width = counts.back();
    const bool first = counts.front() == width || (counts.front() + 1 == width && width > 2);
    if (width > 1 && first && std::all_of(counts.begin() + 1, counts.end(), [&](auto c) { return c == width; }))
      return separator;
    if (counts.front() > fields) most = separator, fields = counts.front();
  }
  return most;
}

/// The letters and digits of a text as one 'a' or '9' per run: "9-9-9" for 2020-01-31.
inline std::string shape_of(std::string_view text) {
  std::string shape;
  for (const char c : text) {
    const bool digit = c >= '0' && c <= '9', letter = (c | 32) >= 'a' && (c | 32) <= 'z';
    const char kind = digit ? '9' : letter ? 'a' : c;
    if (!((digit || letter) && shape.ends_with(kind))) shape += kind;
  }
  return shape;
}

/// Does it look like a date or a time of the day?
inline bool is_date(std::string_view text) {
  const std::string shape = shape_of(text);
  for (const char* date : {"9-9-9", "9/9/9", "9.9.9", "9:9", "9-a-9", "9 a 9", "a 9, 9"})
    if (shape.starts_with(date)) return true;
  return false;
}

/// Is it a number with separators of thousands, as 1,234,567.8, or 1.234.567,8 where ',' is the decimal mark?
inline bool has_thousands(std::string_view text, char decimal) {
  const std::string_view marks = decimal == ',' ? ". '" : ", '";
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  const std::string_view whole = text.substr(0, text.find(decimal));
  const std::size_t first = whole.find_first_of(marks);
  if (first == whole.npos || first < 1 || first > 3 || (whole.size() - first) % 4 != 0) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool mark = i >= first && i < whole.size() && (i - first) % 4 == 0;
    if (mark ? text[i] != whole[first] : !((text[i] >= '0' && text[i] <= '9') || i == whole.size())) return false;
  }
  return true;
}

/// parse_number() with a decimal mark; Inf is a number, too, in the notations of R, pandas and C.
inline CsvNumber parse_marked_number(std::string_view text, char decimal) {
  for (const char* infinite : {"Inf", "inf", "+Inf", "+inf", "-Inf", "-inf"})
    if (text == infinite)
      return {.value = (text[0] == '-' ? -1 : 1) * std::numeric_limits<double>::infinity(), .ok = true};
  if (decimal == '.') return parse_number(text);
  if (text.find('.') != text.npos) return {};
  std::string copy(text);
  std::replace(copy.begin(), copy.end(), decimal, '.');
  return parse_number(copy);
}

/// Is it a number only if `mark` is the decimal mark, with separators of thousands or without?
inline bool needs_mark(std::string_view text, char mark) {
  return text.find(mark) != text.npos && (parse_marked_number(text, mark).ok || has_thousands(text, mark));
}

}  // namespace moe::inline MOE_ABI::detail
