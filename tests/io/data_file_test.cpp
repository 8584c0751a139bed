// SPDX-License-Identifier: MIT
#include "moe/io/file/data_file.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "moe/core/random.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::ColumnKind;
using Names = std::vector<std::string>;

moe::DataFrame read(const std::string& bytes, const moe::DataFileOptions& options = {}) {
  const test::TemporaryDirectory directory;
  test::write_bytes(directory / "table.csv", bytes);
  return moe::read_data_frame(directory / "table.csv", options);
}

std::string error_of(const std::string& bytes) {
  try {
    read(bytes);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

Names names_of(const moe::DataFrame& frame) {
  Names names;
  for (const auto& column : frame.columns) names.push_back(column.name);
  return names;
}

/// One word per value: numbers and texts as levels, "-" where missing.
std::string words_of(const moe::DataColumn& column, moe::Index rows) {
  std::string words;
  for (moe::Index row = 0; row < rows; ++row)
    words += (row ? "|" : "") + (column.missing(row) ? std::string("-") : column.level(row));
  return words;
}

/// The five rows of iris that the first test has, whatever wrote them. `big` was TRUE FALSE NA TRUE FALSE in R.
void require_iris(const moe::DataFrame& frame, const std::string& who) {
  CAPTURE(who);
  REQUIRE(frame.num_rows == 5);
  REQUIRE(frame.columns.size() == 4);
  CHECK(words_of(frame.columns[0], 5) == "5.1|-|6.3|4.9|6.4");
  CHECK(words_of(frame.columns[1], 5) == "3.5|3.2|3.3|3|3.2");
  CHECK(words_of(frame.columns[2], 5) == "setosa|versicolor|virginica|say \"hi\", you|versicolor");
  CHECK(words_of(frame.columns[3], 5) == "TRUE|FALSE|-|TRUE|FALSE");
  CHECK(frame.columns[0].kind == ColumnKind::Number);
  CHECK(frame.columns[2].kind == ColumnKind::Text);
  CHECK(frame.columns[3].kind == ColumnKind::Logical);
  for (const auto& column : frame.columns) CHECK(column.unusable.empty());
}

std::string doubt_of(const std::string& bytes) { return read(bytes).columns.at(1).unusable; }

}  // namespace

// Written by R 4.2.2 from
//   d <- iris[c(1, 51, 101, 2, 52), c(1, 2, 5)]; d$big <- c(TRUE, FALSE, NA, TRUE, FALSE); d[2, 1] <- NA
//   d$Species <- as.character(d$Species); d$Species[4] <- 'say "hi", you'
TEST_CASE("read_data_frame: what R writes", "[io]") {
  const Names names{"Sepal.Length", "Sepal.Width", "Species", "big"};
  const auto csv = read(
      "\"\",\"Sepal.Length\",\"Sepal.Width\",\"Species\",\"big\"\n\"1\",5.1,3.5,\"setosa\",TRUE\n"
      "\"51\",NA,3.2,\"versicolor\",FALSE\n\"101\",6.3,3.3,\"virginica\",NA\n"
      "\"2\",4.9,3,\"say \"\"hi\"\", you\",TRUE\n\"52\",6.4,3.2,\"versicolor\",FALSE\n");
  require_iris(csv, "write.csv(d)");
  CHECK(names_of(csv) == names);
  CHECK_THAT(csv.notes.at(0), ContainsSubstring("the first column has no name"));
  const auto csv2 = read(
      "\"\";\"Sepal.Length\";\"Sepal.Width\";\"Species\";\"big\"\n\"1\";5,1;3,5;\"setosa\";TRUE\n"
      "\"51\";NA;3,2;\"versicolor\";FALSE\n\"101\";6,3;3,3;\"virginica\";NA\n"
      "\"2\";4,9;3;\"say \"\"hi\"\", you\";TRUE\n\"52\";6,4;3,2;\"versicolor\";FALSE\n");
  require_iris(csv2, "write.csv2(d)");
  CHECK(names_of(csv2) == names);
  const auto table = read(
      "\"Sepal.Length\" \"Sepal.Width\" \"Species\" \"big\"\n\"1\" 5.1 3.5 \"setosa\" TRUE\n"
      "\"51\" NA 3.2 \"versicolor\" FALSE\n\"101\" 6.3 3.3 \"virginica\" NA\n"
      "\"2\" 4.9 3 \"say \\\"hi\\\", you\" TRUE\n\"52\" 6.4 3.2 \"versicolor\" FALSE\n");
  require_iris(table, "write.table(d)");
  CHECK(names_of(table) == names);
  require_iris(read("Sepal.Length\tSepal.Width\tSpecies\tbig\n5.1\t3.5\tsetosa\tTRUE\nNA\t3.2\tversicolor\tFALSE\n"
                    "6.3\t3.3\tvirginica\tNA\n4.9\t3\tsay \"hi\", you\tTRUE\n6.4\t3.2\tversicolor\tFALSE\n"),
               "write.table(d, sep = '\\t', quote = FALSE, row.names = FALSE)");
  const auto bare = read(
      "5,1 3,5 \"setosa\" TRUE\nNA 3,2 \"versicolor\" FALSE\n6,3 3,3 \"virginica\" NA\n"
      "4,9 3 \"say \\\"hi\\\", you\" TRUE\n6,4 3,2 \"versicolor\" FALSE\n");
  require_iris(bare, "write.table(d, dec = ',', col.names = FALSE, row.names = FALSE)");
  CHECK(names_of(bare) == Names{"V1", "V2", "V3", "V4"});
}

TEST_CASE("read_data_frame: what pandas and spreadsheets write", "[io]") {
  const std::string quoted = "\"say \"\"hi\"\", you\"";
  require_iris(read(",a,b,c,d\n0,5.1,3.5,setosa,True\n1,,3.2,versicolor,False\n2,6.3,3.3,virginica,\n3,4.9,3.0," +
                    quoted + ",True\n4,6.4,3.2,versicolor,False\n"),
               "DataFrame.to_csv()");
  require_iris(read("Unnamed: 0,a,b,c,d\n0,5.1,3.5,setosa,True\n1,NaN,3.2,versicolor,False\n2,6.3,3.3,virginica,NaN\n"
                    "3,4.9,3.0," +
                    quoted + ",True\n4,6.4,3.2,versicolor,False\n"),
               "to_csv() of what was read without index_col");
  const std::string german =
      "a;b;c;d;\r\n5,1;3,5;setosa;TRUE;\r\n;3,2;versicolor;FALSE;\r\n"
      "6,3;3,3;virginica;#N/A;\r\n4,9;3;" +
      quoted + ";TRUE;\r\n6,4;3,2;versicolor;FALSE;\r\n";
  require_iris(read(german), "Excel, German, separators at the ends of lines");
  const auto empty_row = read("\xEF\xBB\xBFsep=;\r\n" + german + ";;;;\r\n");
  REQUIRE(empty_row.num_rows == 6);
  CHECK(names_of(empty_row) == Names{"a", "b", "c", "d"});
  CHECK(words_of(empty_row.columns[0], 6) == "5.1|-|6.3|4.9|6.4|-");
  CHECK(words_of(empty_row.columns[1], 6) == "3.5|3.2|3.3|3|3.2|-");
  CHECK(words_of(empty_row.columns[2], 6) == "setosa|versicolor|virginica|say \"hi\", you|versicolor|-");
  CHECK(words_of(empty_row.columns[3], 6) == "TRUE|FALSE|-|TRUE|FALSE|-");
  require_iris(read("a,b,c,d\r5.1,3.5,setosa,TRUE\r.,3.2,versicolor,FALSE\r6.3,3.3,virginica,\r4.9,3," + quoted +
                    ",TRUE\r6.4,3.2,versicolor,FALSE\r"),
               "Excel, CSV (Macintosh)");
  require_iris(read("a,b,c,d\n5.1,3.5,setosa,TRUE,\n,3.2,versicolor,FALSE,\n6.3,3.3,virginica,,\n4.9,3," + quoted +
                    ",TRUE,\n6.4,3.2,versicolor,FALSE,\n"),
               "rows that end with a separator, names that do not");
}

TEST_CASE("read_data_frame: comments, blank lines, blanks and line ends inside of quotes", "[io]") {
  const auto frame =
      read("# made by hand\n\n x  ,\t\"y z\" \n  # more\n 1 , \"a\nb\"\n\n2,\"C:\\\"\n3, \"\"\"q\"\"\"\n\n");
  CHECK(names_of(frame) == Names{"x", "y z"});
  CHECK(words_of(frame.columns[0], frame.num_rows) == "1|2|3");
  CHECK(words_of(frame.columns[1], frame.num_rows) == "a\nb|C:\\|\"q\"");
  CHECK(frame.notes == Names{"lines of comments, passed over: 2"});
  const auto aligned = read("  x     y\n 1.5   -2\n10    +3e1\n");  // print(d, row.names = FALSE)
  CHECK(words_of(aligned.columns[0], 2) == "1.5|10");
  CHECK(words_of(aligned.columns[1], 2) == "-2|30");
}

TEST_CASE("read_data_frame: Excel's first line about the separator, and the numbers of lines after it", "[io]") {
  CHECK(words_of(read("sep=\t\r\na\tb c\r\n1\t2\r\n").columns.at(1), 1) == "2");
  CHECK_THAT(error_of("sep=;\na;b\n1;2\n3\n"), ContainsSubstring("line 4 has 1 columns"));
}

TEST_CASE("read_data_frame: any text is a frame or a runtime_error", "[io][property]") {
  const std::string alphabet = "1290.,;\t \"\"\\\n\n\r#NATRUE-ex'";
  int read_files = 0;
  for (std::uint64_t seed = 0; seed < 20000; ++seed) {
    const moe::RandomField random(moe::Purpose::User, seed);
    std::string text;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(1 + seed % 40); ++i)
      text += alphabet[static_cast<std::size_t>(random.uniform(i) * static_cast<double>(alphabet.size()))];
    CAPTURE(text);
    try {
      const moe::DataFrame frame = moe::detail::DataFileReader("t", text, {}).read();
      frame.validate("test");
      REQUIRE(frame.num_rows > 0);
      ++read_files;
    } catch (const std::runtime_error&) {
    }
  }
  CHECK(read_files > 100);
}

TEST_CASE("read_data_frame: options overrule what would be found", "[io]") {
  const std::string bytes = "1960,1970\n1,2\n3,4\n";
  CHECK(read(bytes).num_rows == 3);
  CHECK(names_of(read(bytes, {.header = moe::HeaderLine::Yes})) == Names{"1960", "1970"});
  CHECK(names_of(read("\"1960\",\"1970\"\n1,2\n3,4\n")) == Names{"1960", "1970"});
  CHECK(read("a b,c d\n1 2,3 4\n", {.separator = ' '}).columns.size() == 3);
  CHECK(words_of(read("x;y\n1,234;1\n", {.decimal = ','}).columns[0], 1) == "1.234");
  CHECK(words_of(read("x,y\n-9,1\n2,3\n", {.missing = {"-9"}}).columns[0], 2) == "-|2");
  CHECK(words_of(read("x,y\n1,a#b\n", {.comment = 0}).columns[1], 1) == "a#b");
  CHECK_THROWS_AS(read("x\n1\n", {.separator = '|'}), std::invalid_argument);
  CHECK_THROWS_AS(read("x\n1\n", {.separator = ',', .decimal = ','}), std::invalid_argument);
}

TEST_CASE("read_data_frame: numbers are rounded to the nearest double, infinite ones are kept", "[io]") {
  const auto frame = read("x,y\n0.1,Inf\n1.7976931348623157e308,-inf\n5e-324,0\n");
  CHECK(frame.columns[0].numbers ==
        std::vector<double>{0.1, std::numeric_limits<double>::max(), std::numeric_limits<double>::denorm_min()});
  CHECK(frame.columns[1].numbers[0] == std::numeric_limits<double>::infinity());
  CHECK(frame.columns[1].numbers[1] == -std::numeric_limits<double>::infinity());
}

TEST_CASE("read_data_frame: a column of numbers has no number beyond double, one of text may", "[io]") {
  const auto frame = read("part,x\n7e3456-A,1\n1e999,2\nB,3\n");
  CHECK(words_of(frame.columns[0], 3) == "7e3456-A|1e999|B");
  CHECK_THAT(error_of("x,y\n1,2\n1e999,3\n"), ContainsSubstring("line 3, column 'x': found '1e999'"));
}

TEST_CASE("read_data_frame: decimal marks that contradict are an error, or a column that is of no use", "[io][error]") {
  CHECK_THAT(error_of("y;x\n1.5;2,5\n2.345;3,7\n"),
             ContainsSubstring("have a decimal point in line 2 and a decimal comma in line 2"));
  CHECK_THAT(error_of("y;x\n1.234;2,345\n"), ContainsSubstring("separators of thousands"));
  const auto thousands = read("y;x\n1.234;2,5\n2.345;3,7\n");
  CHECK_THAT(thousands.columns[0].unusable, ContainsSubstring("separators of thousands ('1.234' in line 2)"));
  CHECK(words_of(thousands.columns[1], 2) == "2.5|3.7");
  const auto quoted = read("y,x\n1,\"1,5\"\n2,\"2,7\"\n");  // pandas: to_csv(decimal=",")
  CHECK(words_of(quoted.columns[1], 2) == "1.5|2.7");
  CHECK(quoted.notes == Names{"the decimal mark is a comma"});
  CHECK_THAT(error_of("y,x\n1.234,\"1,5\"\n"), ContainsSubstring("expected the same in all"));
  CHECK_THAT(doubt_of("y,x\n1.5,\"1,5\"\n2,\"2,7\"\n3,?\n"),
             ContainsSubstring("another decimal mark ('1,5' in line 2), expected '.'"));
  CHECK(read("y;x\n1,5;3.25\n", {.decimal = ','}).columns[1].unusable.starts_with("holds numbers with another"));
}

TEST_CASE("read_data_frame: names that are numbers", "[io]") {
  const auto array = read(",0,1,2\n0,5.1,3.5,1\n1,4.9,3,0\n");  // pandas: DataFrame(array).to_csv()
  CHECK(names_of(array) == Names{"0", "1", "2"});
  CHECK(words_of(array.columns[0], array.num_rows) == "5.1|4.9");
  CHECK(array.notes.at(0) == "the first line names the columns, though there are numbers in it");
  CHECK(names_of(read("0,1,2\n5.1,3.5,1\n4.9,3,0\n")) == Names{"0", "1", "2"});  // index=False
  CHECK_THAT(error_of("0,1\n5.1,3.5\n"), ContainsSubstring("'0' and '1' may be names of columns or values"));
  CHECK_THAT(error_of("country,2019,2020\nDE,1,2\nFR,3,4\n"), ContainsSubstring("'country' and '2019' may be names"));
  CHECK(names_of(read("country,2019,2020\nDE,1,2\n", {.header = moe::HeaderLine::Yes})).at(1) == "2019");
  CHECK(names_of(read("year,2019\n1,2\n3,4\n")) == Names{"year", "2019"});
  CHECK(read("DE,1,2\nFR,3,4\nDE,5,6\n").num_rows == 3);  // a name does not come again
  CHECK(read("5.1,a\n4.9,b\n").num_rows == 2);            // nor is 5.1 one
  CHECK(read("TRUE,1\nFALSE,2\n").num_rows == 2);
  CHECK(read("2020-01-31,1\n2020-02-01,2\n").num_rows == 2);
}

TEST_CASE("read_data_frame: rows that begin as comments do", "[io]") {
  const auto missing = read("x,y\n1,2\n#N/A,3\n#DIV/0!,4\n# 5,6\n#7\n8,9\n");
  CHECK(words_of(missing.columns[0], missing.num_rows) == "1|-|#DIV/0!|8");
  CHECK(missing.notes == Names{"lines of comments, passed over: 2"});
  CHECK(words_of(read("x\n1\n#N/A\n#2\n").columns[0], 2) == "1|-");
  const auto colours = read("colour n\n#FF0000 1\n#00FF00 2\n");
  CHECK(words_of(colours.columns[0], colours.num_rows) == "#FF0000|#00FF00");
  CHECK(names_of(read("#,x,y\n1,2,3\n4,5,6\n")) == Names{"#", "x", "y"});
  CHECK(read("#made \"by hand, today\nx,y\n1,2\n").num_rows == 1);
}

TEST_CASE("read_data_frame: a backslash before a quote, where it cannot end the field, is one everywhere", "[io]") {
  const auto table = read("\"n\" \"text\"\n\"1\" 1 \"say \\\"hi\\\" you\"\n\"2\" 2 \"C:\"\n");  // R: write.table
  CHECK(names_of(table) == Names{"n", "text"});
  CHECK(words_of(table.columns[1], 2) == "say \"hi\" you|C:");
  CHECK(words_of(read("x,y\n1,\"C:\\\"\n2,\"D:\\\"\n").columns[1], 2) == "C:\\|D:\\");
}

TEST_CASE("read_data_frame: columns that are no numbers are told by a sentence", "[io][error]") {
  CHECK_THAT(doubt_of("x,y\n1,2020-01-31\n2,2020-02-01\n"),
             ContainsSubstring("holds dates or times ('2020-01-31' in line 2)"));
  for (const char* date : {"31.1.2020", "1/31/2020", "2020-01-31T10:00", "12:30", "31-Jan-2020", "Jan 31, 2020"})
    CHECK_THAT(doubt_of("x;y\n1;" + std::string(date) + "\n"), ContainsSubstring("dates or times"));
  CHECK_THAT(doubt_of("x,y\n1,\"1,234\"\n2,12\n"), ContainsSubstring("separators of thousands ('1,234' in line 2)"));
  CHECK_THAT(doubt_of("x;y\n1,5;1.234.567,8\n2;12\n"), ContainsSubstring("separators of thousands"));
  CHECK_THAT(doubt_of("x;y\n1;1 234 567.8\n2;12\n"), ContainsSubstring("separators of thousands"));
  CHECK_THAT(doubt_of("x,y\n1,2\n2,3\n3,4?\n"), ContainsSubstring("something else ('4?' in line 4)"));
  CHECK(doubt_of("x,y\n1,2a\n2,3b\n").empty());
}

TEST_CASE("read_data_frame: broken files are errors with their place", "[io][error]") {
  CHECK_THAT(error_of("x,y\n1,2\n3\n"), ContainsSubstring("table.csv', line 3 has 1 columns, expected 2"));
  CHECK_THAT(error_of("1,2\n1,2,3\n1,2,3\n"), ContainsSubstring("line 2 has 3 columns, expected 2"));
  CHECK_THAT(error_of("x,y,x\n1,2,3\n"), ContainsSubstring("columns 1 and 3 are both called 'x'"));
  CHECK_THAT(error_of("x\n1,5\n2,7\n"), ContainsSubstring("line 2 has 2 columns, expected 1"));
  CHECK_THAT(error_of("x,y\n1,5,2\n1,7,4\n"),
             ContainsSubstring("line 3 has 3 columns for 2 names, and '1' begins a line before"));
  CHECK_THAT(error_of("x,,y\n1,2,3\n"), ContainsSubstring("column 2 has no name"));
  CHECK_THAT(error_of("x,y\n1,\"2\n"), ContainsSubstring("line 2: a quote has no end"));
  CHECK_THAT(error_of("x,y\n1,\"2\"3\n"), ContainsSubstring("found '3' behind the quoted '2'"));
  CHECK_THAT(error_of("x,y\n1,1e999\n"), ContainsSubstring("found '1e999', expected a number within the range"));
  CHECK_THAT(error_of("x;y\n1,234;5,678\n"), ContainsSubstring("line 2: commas may be decimal marks or separators"));
  CHECK_THAT(error_of("x,y\n"), ContainsSubstring("has column names and no rows"));
  CHECK_THAT(error_of("# x\n\n"), ContainsSubstring("is empty"));
  CHECK_THAT(error_of(""), ContainsSubstring("table.csv' is empty"));
  CHECK_THAT(error_of("x,y\n1,2\n3,caf\xE9\n"), ContainsSubstring("line 3 is not UTF-8"));
  CHECK_THAT(error_of("x,\"y\n!touch z\"\n1,2\n"), ContainsSubstring("column 2 is called 'y?!touch z'"));
  CHECK_THAT(error_of("x,y\x1B[2J\n1,2\n"), ContainsSubstring("without control characters"));
  CHECK_THAT(error_of(std::string("\xFF\xFEx\0", 4)), ContainsSubstring("UTF-16"));
  CHECK_THAT(error_of(std::string("PK\0\0", 4)), ContainsSubstring("bytes of value 0"));
}
