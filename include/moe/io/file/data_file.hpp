// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/gaussian/design/data_frame.hpp"
#include "moe/io/file/data_fields.hpp"
#include "moe/io/file/data_file_options.hpp"
#include "moe/io/file/data_first_line.hpp"
#include "moe/io/file/utf8.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Reads one data file; decides and tells.
class DataFileReader {
 public:
  DataFileReader(std::string label, std::string_view text, DataFileOptions options)
      : label_(std::move(label)), text_(text), options_(std::move(options)) {
    const char separator = options_.separator, decimal = options_.decimal;
    if (separator != 0 && std::string_view(",;\t ").find(separator) == std::string_view::npos)
      fail(label_, ": separator is '", separator, "', expected one of , ; tab and blank, or 0");
    if (decimal != 0 && decimal != '.' && decimal != ',')
      fail(label_, ": decimal is '", decimal, "', expected . or , or 0");
    if (decimal == ',' && separator == ',') fail(label_, ": separator and decimal are ',', expected them to differ");
  }

  DataFrame read() {
    refuse_lfs_pointer(label_, text_);
    prepare_text();
    if (options_.separator == 0) options_.separator = find_separator(text_, options_);
    DataTokens tokens(label_, text_, options_.separator, options_);
    for (DataRecord record; tokens.next(record);) records_.push_back(record);
    if (records_.empty()) fail_environment(label_, " is empty, expected a line of column names and rows");
    has_header_ = find_header();
    find_width();
    find_decimal();
    take_header();
    if (records_.empty()) fail_environment(label_, " has column names and no rows, expected at least one row");
    DataFrame frame{.num_rows = std::ssize(records_), .columns = {}, .notes = {}};
    for (std::size_t c = row_names_ ? 1 : 0; c < names_.size(); ++c)
      if (!is_empty_rest(c)) frame.columns.push_back(column(c));
    if (frame.columns.empty()) fail_environment(label_, " has row names and no columns, expected at least one column");
    if (tokens.comments() > 0) notes_.push_back("lines of comments, passed over: " + std::to_string(tokens.comments()));
    frame.notes = std::move(notes_);
    return frame;
  }

 private:
  /// Byte order marks, Excel's `sep=`, and line ends of one carriage return.
  void prepare_text() {
    for (const char* mark : {"\xFF\xFE", "\xFE\xFF"})
      if (text_.starts_with(mark)) fail_environment(label_, " is in UTF-16, expected UTF-8: save it as CSV UTF-8");
    if (text_.find('\0') != text_.npos)
      fail_environment(label_, " holds bytes of value 0, expected text: is it a workbook, or in UTF-16?");
    if (text_.starts_with(kByteOrderMark)) text_.remove_prefix(kByteOrderMark.size());
    if (const std::size_t place = utf8_end(text_); place < text_.size())
      fail_environment(label_, ", line ",
                       1 + std::count(text_.begin(), text_.begin() + static_cast<Index>(place), '\n'),
                       " is not UTF-8, expected that: is it Latin-1? Save it as CSV UTF-8");
    if (text_.find('\n') == text_.npos && text_.find('\r') != text_.npos) {
      copy_ = std::string(text_);
      std::replace(copy_.begin(), copy_.end(), '\r', '\n');
      text_ = copy_;
    }
    std::string_view line = text_.substr(0, text_.find('\n'));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.size() != 5 || !line.starts_with("sep=") || std::string_view(",;\t ").find(line[4]) == line.npos) return;
    if (options_.separator == 0) options_.separator = line[4];
    text_.remove_prefix(line.size());  // a blank line is left, which counts
  }

  bool find_header() {
    if (options_.header != HeaderLine::Found) return options_.header == HeaderLine::Yes;
    const auto& fields = records_.front().fields;
    const FirstLine line = first_line(records_, options_);
    if (line == FirstLine::Either)
      fail_environment(label_, ", line ", records_.front().line, ": ", in_quotes(fields[0].text), " and ",
                       in_quotes(fields[1].text), " may be names of columns or values: say which by the header line");
    if (line == FirstLine::NamesAndNumbers)
      notes_.push_back("the first line names the columns, though there are numbers in it");
    return line != FirstLine::Values;
  }

  /// Fields per row, of which the first line may have one less: before row names, or where a separator ends each row.
  void find_width() {
    const std::size_t first = records_.front().fields.size();
    width_ = records_.size() > 1 ? records_[1].fields.size() : first;
    if (width_ != first && !(width_ == first + 1 && width_ > 2 && has_header_)) width_ = first;
    for (std::size_t r = 1; r < records_.size(); ++r)
      if (records_[r].fields.size() != width_)
        fail_environment(label_, ", line ", records_[r].line, " has ", records_[r].fields.size(), " columns, expected ",
                         width_);
    if (width_ == first) return;
    const bool trailing = std::all_of(records_.begin() + 1, records_.end(),
                                      [](const DataRecord& r) { return is_missing_field(r.fields.back()); });
    if (!trailing) require_row_names();
    auto& fields = records_.front().fields;
    fields.insert(trailing ? fields.end() : fields.begin(), DataField{.text = {}, .quoted = true});
  }

  /// Names of rows differ; where they do not, a decimal comma may have cut a number into two.
  void require_row_names() const {
    std::set<std::string_view> seen;
    for (std::size_t r = 1; r < records_.size(); ++r)
      if (!seen.insert(records_[r].fields.front().text).second)
        fail_environment(label_, ", line ", records_[r].line, " has ", width_, " columns for ", width_ - 1,
                         " names, and ", in_quotes(records_[r].fields.front().text),
                         " begins a line before, expected a name per column or different names of rows first");
  }
  static bool is_missing_field(const DataField& field) { return field.text.empty(); }

  /// The mark that numbers need, of which 1,234 and 1.234 need none: they may have separators of thousands.
  void find_decimal() {
    if (options_.decimal != 0) return;
    const DataRecord *point = nullptr, *comma = nullptr, *either_point = nullptr, *either_comma = nullptr;
    const auto note_first = [](const DataRecord*& first, const DataRecord& record) {
      if (!first) first = &record;
    };
    for (std::size_t r = has_header_ ? 1 : 0; r < records_.size(); ++r)
      for (const DataField& field : records_[r].fields) {
        if (needs_mark(field.text, '.')) note_first(has_thousands(field.text, ',') ? either_point : point, records_[r]);
        if (needs_mark(field.text, ',')) note_first(has_thousands(field.text, '.') ? either_comma : comma, records_[r]);
      }
    const bool cut_by_comma = options_.separator == ',';  // a comma is in quotes here, and may be text
    options_.decimal = comma && !(cut_by_comma && point) ? ',' : '.';
    if (either_comma && !comma && !point && !cut_by_comma)
      fail_environment(label_, ", line ", either_comma->line,
                       ": commas may be decimal marks or separators of thousands here: say which by the decimal mark");
    if (options_.decimal == '.') return;
    if (const DataRecord* other = cut_by_comma ? either_point : point)
      fail_environment(label_, ": numbers have a decimal point in line ", other->line, " and a decimal comma in line ",
                       comma->line, ", expected the same in all: say which by the decimal mark");
    notes_.push_back("the decimal mark is a comma");
  }

  bool is_number(const DataField& field) const { return parse_marked_number(field.text, options_.decimal).ok; }

  void take_header() {
    if (!has_header_) {
      for (std::size_t c = 0; c < width_; ++c) names_.push_back("V" + std::to_string(c + 1));
      notes_.push_back("there is no line of column names: columns are called V1 to V" + std::to_string(width_));
      return;
    }
    for (const DataField& field : records_.front().fields) names_.emplace_back(field.text);
    const Index line = records_.front().line;
    records_.erase(records_.begin());
    row_names_ = width_ > 1 && (names_[0].empty() || names_[0] == "Unnamed: 0") && !is_empty_rest(0);
    if (row_names_) notes_.push_back("the first column has no name: its values are names of rows, and left out");
    std::map<std::string_view, std::size_t> seen;
    for (std::size_t c = row_names_ ? 1 : 0; c < names_.size(); ++c) {
      if (is_empty_rest(c)) continue;
      if (shown(names_[c], names_[c].size()) != names_[c])
        fail_environment(label_, ", line ", line, ": column ", c + 1, " is called ", in_quotes(names_[c]),
                         ", expected a name without control characters and line ends");
      if (names_[c].empty()) fail_environment(label_, ", line ", line, ": column ", c + 1, " has no name");
      const auto [before, is_new] = seen.emplace(names_[c], c);
      if (!is_new)
        fail_environment(label_, ", line ", line, ": columns ", before->second + 1, " and ", c + 1, " are both called ",
                         in_quotes(names_[c]), ", expected a name that no other column has");
    }
  }

  /// A column without name and values, as separators at the ends of lines make it.
  bool is_empty_rest(std::size_t c) const {
    return names_[c].empty() && std::all_of(records_.begin(), records_.end(),
                                            [&](const DataRecord& r) { return is_missing_field(r.fields[c]); });
  }

  DataColumn column(std::size_t c) {
    DataColumn out{.name = names_[c], .kind = ColumnKind::Text, .numbers = {}, .texts = {}, .unusable = {}};
    std::vector<double> numbers, logicals;
    Index found = 0, count_numbers = 0, count_beyond = 0, count_logicals = 0;
    const DataRecord* beyond = nullptr;
    for (const DataRecord& record : records_) {
      const DataField& field = record.fields[c];
      numbers.push_back(std::numeric_limits<double>::quiet_NaN());
      logicals.push_back(numbers.back());
      if (options_.is_missing(field.text)) continue;
      ++found;
      const CsvNumber number = parse_marked_number(field.text, options_.decimal);
      if (number.ok) numbers.back() = number.value, ++count_numbers;
      if (!number.in_range) beyond = &record, ++count_beyond;
      if (const auto word = logical_word(field.text)) logicals.back() = *word ? 1 : 0, ++count_logicals;
    }
    if (beyond && count_numbers + count_beyond == found)
      fail_environment(label_, ", line ", beyond->line, ", column ", in_quotes(names_[c]), ": found ",
                       in_quotes(beyond->fields[c].text), ", expected a number within the range of double");
    if (count_numbers == found || count_logicals == found) {
      out.kind = count_numbers == found ? ColumnKind::Number : ColumnKind::Logical;
      out.numbers = std::move(count_numbers == found ? numbers : logicals);
      return out;
    }
    for (const DataRecord& record : records_)
      out.texts.emplace_back(options_.is_missing(record.fields[c].text) ? std::string_view{} : record.fields[c].text);
    out.unusable = doubt(c, found, count_numbers);
    return out;
  }

  /// Why text is perhaps no factor; empty if it is.
  std::string doubt(std::size_t c, Index found, Index numbers) const {
    const char mark = options_.decimal == ',' ? '.' : ',';  // of other files
    Index dates = 0, thousands = 0, marked = 0;
    const DataRecord *date = nullptr, *thousand = nullptr, *other_mark = nullptr, *other = nullptr;
    const auto count = [](Index& number, const DataRecord*& first, const DataRecord& record) {
      ++number;
      if (!first) first = &record;
    };
    for (const DataRecord& record : records_) {
      const DataField& field = record.fields[c];
      if (options_.is_missing(field.text) || is_number(field)) continue;
      if (!other) other = &record;
      if (has_thousands(field.text, options_.decimal))
        count(thousands, thousand, record);
      else if (is_date(field.text))
        count(dates, date, record);
      else if (needs_mark(field.text, mark))
        count(marked, other_mark, record);
    }
    const auto place = [&](const DataRecord* record) {
      return "(" + in_quotes(record->fields[c].text.substr(0, 40)) + " in line " + std::to_string(record->line) + ")";
    };
    if (thousands > 0 && thousands + numbers == found)
      return "has separators of thousands " + place(thousand) + ", expected plain numbers";
    if (dates == found) return "holds dates or times " + place(date) + ", expected numbers: days since a day, say";
    if (marked > 0 && 2 * (marked + thousands + numbers) > found)
      return "holds numbers with another decimal mark " + place(other_mark) + ", expected '" + options_.decimal + "'";
    if (2 * numbers > found)
      return "holds numbers and something else " + place(other) + ", expected numbers, or factor() around its name";
    return {};
  }

  std::string label_;
  std::string_view text_;
  DataFileOptions options_;
  std::string copy_ = {};
  std::vector<DataRecord> records_ = {};
  std::vector<std::string> names_ = {}, notes_ = {};
  std::size_t width_ = 0;
  bool has_header_ = false, row_names_ = false;
};

}  // namespace detail

/// Reads a table as R, pandas and spreadsheets write it, into columns of numbers, TRUE/FALSE and text. What differs
/// from file to file is found out, and told in `notes` where one might be surprised:
///   separators , ; tab or blanks; decimal commas; quotes, with line ends, doubled quotes or \" inside; `sep=;`;
///   a first line of names or none; row names without a name; missing values; lines of comments; blank lines, any line
///   end, a byte order mark, separators at the ends of lines
/// Columns with dates, separators of thousands, another decimal mark, or a few words among numbers are read as text and
/// marked `unusable`: they are refused when a formula uses them without factor(). Throws std::runtime_error, naming
/// file and line, for rows of different lengths, names that are missing, twice there or with control characters, quotes
/// without end, columns of numbers with one beyond the range of double, marks or a first line that may mean both, what
/// is not UTF-8, no rows, or a file that cannot be read (see read_csv(), which reads tables of programs: exactly
/// numbers, back to the same bits). std::invalid_argument for options that contradict. One pass after the separator is
/// known; holds text and fields. Why not a library: those packaged for C++ split lines at a separator that is given,
/// and all the above would remain.
inline DataFrame read_data_frame(const std::filesystem::path& path, const DataFileOptions& options = {}) {
  const std::string label = "moe::read_data_frame: '" + path.string() + "'";
  std::error_code error;
  const bool is_pipe = std::filesystem::is_fifo(path, error);
  const std::uintmax_t most = is_pipe ? detail::kMostPipedCsv : std::numeric_limits<std::uintmax_t>::max();
  const detail::TextFile file(label, path, most, detail::TextFrom::FileOrPipe);
  return detail::DataFileReader(label, file.text(), options).read();
}

}  // namespace moe::inline MOE_ABI
