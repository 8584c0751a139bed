// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/io/file/lfs_pointer.hpp"
#include "moe/io/file/output_file.hpp"
#include "moe/io/file/text_file.hpp"

namespace moe::inline MOE_ABI {

/// A table of numbers with a name per column.
struct CsvTable {
  std::vector<std::string> names = {};  ///< [columns], in the order of the file
  Matrix<double> values = {};           ///< [rows, columns]
};

namespace detail {

inline std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const std::size_t begin = text.find_first_not_of(kBlank);
  return begin == text.npos ? std::string_view{} : text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

inline constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";  // of UTF-8

/// What a number is: decimal, in any notation of C but hexadecimal; `ok` is false unless all of `text` is one, finite
/// and within the range of double.
struct CsvNumber {
  double value = 0;
  bool ok = false, in_range = true;
};
inline CsvNumber parse_number(std::string_view text) {
  CsvNumber number;
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);  // from_chars knows no plus
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number.value);
  // The digits that text begins with may be beyond the range, too: 7e3456-A is no number.
  number.in_range = error != std::errc::result_out_of_range || end != text.data() + text.size();
  number.ok = error == std::errc{} && end == text.data() + text.size() && std::isfinite(number.value);
  return number;
}

/// Reads one file; knows where it is, for its messages.
class CsvParser {
 public:
  CsvParser(std::string label, std::string_view text) : label_(std::move(label)), text_(text) {
    if (text_.starts_with(kByteOrderMark)) text_.remove_prefix(kByteOrderMark.size());
    text_ = text_.substr(0, text_.find_last_not_of(" \t\r\n") + 1);
  }

  CsvTable parse() {
    refuse_lfs_pointer(label_, text_);
    if (text_.empty()) fail_environment(label_, " is empty, expected a line of column names and rows of numbers");
    CsvTable table{.names = header(next_line())};
    if (text_.empty()) fail_environment(label_, " has column names and no rows, expected at least one row of numbers");
    names_ = &table.names;
    const auto columns = static_cast<Index>(table.names.size());
    // A field takes two characters with its separator, so that a file with more rows than this is ragged: an error
    // that is found before the matrix is full.
    const Index lines = 1 + std::count(text_.begin(), text_.end(), '\n');
    table.values.resize(std::min(lines, (std::ssize(text_) + 1) / (2 * columns) + 1), columns);
    for (Index row = 0; row < lines; ++row) parse_row(next_line(), table.values.row(row).data(), columns);
    return table;
  }

 private:
  std::string_view next_line() {
    ++line_;
    const std::size_t end = std::min(text_.find('\n'), text_.size());
    const std::string_view line = text_.substr(0, end);
    text_.remove_prefix(std::min(end + 1, text_.size()));
    return line;
  }

  /// Names between commas, without the blanks around them; in quotes they may hold commas, and quotes as two quotes.
  std::vector<std::string> header(std::string_view line) {
    std::vector<std::string> names;
    std::set<std::string> seen;
    for (bool more = true; more;) {
      line.remove_prefix(std::min(line.find_first_not_of(" \t\r"), line.size()));
      const bool quoted = line.starts_with('"');
      std::string name;
      if (quoted) name = take_quoted(line, names.size());
      const std::size_t end = std::min(line.find(','), line.size());
      const std::string_view rest = trimmed(line.substr(0, end));
      const std::size_t column = names.size();
      if (quoted && !rest.empty()) fail_at(column, rest, "a comma after the quoted name");
      if (!quoted) name = rest;
      if (name.empty()) fail_at(column, name, "a column name");
      if (!quoted && parse_number(name).ok)
        fail_at(column, name, "a column name: the first line has to name the columns (a number in quotes is a name)");
      if (!seen.insert(name).second) fail_at(column, name, "a name that no column before has");
      names.push_back(std::move(name));
      more = end < line.size();
      line.remove_prefix(std::min(end + 1, line.size()));
    }
    return names;
  }

  std::string take_quoted(std::string_view& line, std::size_t column) {
    std::string name;
    for (std::size_t i = 1; i < line.size(); ++i) {
      if (line[i] == '"' && !line.substr(i + 1).starts_with('"')) {
        line.remove_prefix(i + 1);
        return name;
      }
      name += line[i];
      if (line[i] == '"') ++i;
    }
    fail_at(column, line, "a quote that ends on the same line");
  }

  void parse_row(std::string_view line, double* row, Index columns) {
    if (trimmed(line).empty()) fail_environment(label_, ", line ", line_, " is blank, expected ", columns, " numbers");
    Index column = 0;
    for (bool more = true; more; ++column) {
      const std::size_t end = std::min(line.find(','), line.size());
      if (column < columns) row[column] = number(trimmed(line.substr(0, end)), static_cast<std::size_t>(column));
      more = end < line.size();
      line.remove_prefix(std::min(end + 1, line.size()));
    }
    if (column != columns) fail_environment(label_, ", line ", line_, " has ", column, " columns, expected ", columns);
  }

  double number(std::string_view field, std::size_t column) const {
    const CsvNumber parsed = parse_number(field);
    if (!parsed.ok) fail_at(column, field, parsed.in_range ? "a finite number" : "a number within the range of double");
    return parsed.value;
  }

  [[noreturn]] void fail_at(std::size_t column, std::string_view found, const char* expected) const {
    constexpr std::size_t kShown = 40;
    const std::string name = names_ ? " (" + shown((*names_)[column], kShown) + ")" : "";
    fail_environment(label_, ", line ", line_, ", column ", column + 1, name, ": found ",
                     found.empty() ? "nothing" : "'" + shown(found, kShown) + "'", ", expected ", expected);
  }

  std::string label_;
  std::string_view text_;
  Index line_ = 0;
  const std::vector<std::string>* names_ = nullptr;
};

/// Longest text that is taken from a pipe, in bytes: one without end must not take all memory.
inline constexpr std::uintmax_t kMostPipedCsv = std::uintmax_t{1} << 30;

/// A name as the header line can hold it so that the parser gives it back.
inline std::string csv_name(const std::string& name) {
  const bool plain = trimmed(name) == name && name.find_first_of("\",") == name.npos && !parse_number(name).ok;
  if (plain && !name.starts_with(kByteOrderMark)) return name;
  std::string quoted = "\"";
  for (const char c : name) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + '"';
}

}  // namespace detail

/// Reads a table: a line of column names, then lines of as many decimal numbers, separated by commas. Blanks around
/// fields, names in double quotes, a byte order mark, either line end and blank lines at the end are accepted.
/// Numbers are rounded to the nearest double, whatever the locale. Throws std::runtime_error, naming file, line,
/// column, what was found and what was expected: for anything that is not a finite number, a row with another number of
/// columns, a blank line before the end, names that are missing or twice there, no rows, or a file that cannot be read.
/// A pipe is read to its end, at most 1 GiB; a device, which may have no end, is refused.
/// One pass, hundreds of MB/s; holds text and table.
inline CsvTable read_csv(const std::filesystem::path& path) {
  const std::string label = "moe::read_csv: '" + path.string() + "'";
  std::error_code error;
  const bool is_pipe = std::filesystem::is_fifo(path, error);
  const std::uintmax_t most = is_pipe ? detail::kMostPipedCsv : std::numeric_limits<std::uintmax_t>::max();
  const detail::TextFile file(label, path, most, detail::TextFrom::FileOrPipe);
  return detail::CsvParser(label, file.text()).parse();
}

/// Writes what read_csv() reads back to the same bits: names [columns], and each number in the fewest digits that do.
/// Throws std::invalid_argument unless there is at least one row and one column, a name without line ends per column,
/// all different, and all numbers are finite; std::runtime_error if the file cannot be written, which then is as
/// before.
inline void write_csv(const std::filesystem::path& path, std::span<const std::string> names,
                      const ConstMatrixRef<double>& values) {
  const std::string label = "moe::write_csv: '" + path.string() + "'";
  if (values.rows() < 1 || values.cols() < 1)
    fail(label, ": values is [", values.rows(), ", ", values.cols(), "], expected at least one row and one column");
  if (std::ssize(names) != values.cols()) fail(label, ": ", names.size(), " names, expected ", values.cols());
  if (!values.allFinite()) fail(label, ": a value is not finite, expected finite numbers");
  std::set<std::string_view> seen;
  for (std::size_t c = 0; c < names.size(); ++c)
    if (names[c].empty() || names[c].find_first_of("\r\n") != names[c].npos || !seen.insert(names[c]).second)
      fail(label, ": name ", c, " is '", names[c], "', expected one line of text that no name before has");

  detail::OutputFile file(label, path);
  std::string line;
  for (const std::string& name : names) line += (line.empty() ? "" : ",") + detail::csv_name(name);
  line += '\n';
  for (Index row = 0; row < values.rows(); ++row) {
    for (Index column = 0; column < values.cols(); ++column) {
      std::array<char, 32> digits;  // the longest double has 24 characters
      const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), values(row, column)).ptr;
      line.append(digits.data(), end) += column + 1 < values.cols() ? ',' : '\n';
    }
    file.write(line);
    line.clear();
  }
  file.commit();
}

}  // namespace moe::inline MOE_ABI
