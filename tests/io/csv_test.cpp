// SPDX-License-Identifier: MIT
#include "moe/io/file/csv.hpp"

#include <bit>
#include <clocale>
#include <limits>
#include <string>
#include <vector>

#include "moe/core/random.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using Names = std::vector<std::string>;

moe::CsvTable read(const std::string& bytes) {
  const test::TemporaryDirectory directory;
  test::write_bytes(directory / "table.csv", bytes);
  return moe::read_csv(directory / "table.csv");
}

/// The message of the error that reading `bytes` is.
std::string error_of(const std::string& bytes) {
  try {
    read(bytes);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("read_csv: names and numbers, row by row", "[io]") {
  const moe::CsvTable table = read("x1,x2,y\n1,2.5,-3\n4e2,.5,6.\n");
  CHECK(table.names == Names{"x1", "x2", "y"});
  REQUIRE(table.values.rows() == 2);
  REQUIRE(table.values.cols() == 3);
  const double expected[] = {1, 2.5, -3, 400, 0.5, 6};
  for (Index i = 0; i < 6; ++i) CHECK(table.values.data()[i] == expected[i]);
}

TEST_CASE("read_csv: line ends, blanks, blank last lines, a byte order mark and plus signs change nothing", "[io]") {
  for (const char* text :
       {"a,b\r\n1,2\r\n3,4\r\n", "a,b\n1,2\n3,4",
        "\xEF\xBB\xBF"
        "a,b\n1,2\n3,4\n",
        " a ,\tb\n 1 , 2\t\n3,4 \n", "a,b\n1,2\n3,4\n\n  \r\n\n", "\"a\", \"b\" \n+1,2e0\n3E+0,4.0\n"}) {
    CAPTURE(text);
    const moe::CsvTable table = read(text);
    CHECK(table.names == Names{"a", "b"});
    REQUIRE(table.values.rows() == 2);
    CHECK(table.values(0, 0) == 1);
    CHECK(table.values(0, 1) == 2);
    CHECK(table.values(1, 0) == 3);
    CHECK(table.values(1, 1) == 4);
  }
}

TEST_CASE("read_csv: names in quotes hold commas, quotes, blanks and numbers", "[io]") {
  CHECK(read("\"a,b\",\"say \"\"no\"\"\",\" c \",\"1880\",d e\n1,2,3,4,5\n").names ==
        Names{"a,b", "say \"no\"", " c ", "1880", "d e"});
}

TEST_CASE("CSV: a first name that begins with a byte order mark keeps it", "[io]") {
  const test::TemporaryDirectory directory;
  const Names names{
      "\xEF\xBB\xBF"
      "a"};
  moe::write_csv(directory / "x", names, moe::Matrix<double>::Ones(1, 1));
  CHECK(moe::read_csv(directory / "x").names == names);
}

TEST_CASE("CSV: very many columns take no more than their share of time", "[io]") {
  Names names(200000);  // compared each with each they would take minutes
  for (std::size_t c = 0; c < names.size(); ++c) names[c] = "c" + std::to_string(c);
  const test::TemporaryDirectory directory;
  moe::write_csv(directory / "x", names, moe::Matrix<double>::Ones(1, std::ssize(names)));
  CHECK(moe::read_csv(directory / "x").names == names);
}

TEST_CASE("read_csv: numbers are rounded to the nearest double", "[io]") {
  const moe::CsvTable table = read(
      "x\n0.1\n1.7976931348623157e308\n5e-324\n2.2250738585072011e-308\n9007199254740993\n-0\n"
      "0.500000000000000166533453693773481063544750213623046875\n");
  const double expected[] = {0.1,
                             std::numeric_limits<double>::max(),
                             std::numeric_limits<double>::denorm_min(),
                             2.2250738585072011e-308,
                             9007199254740992.0,
                             -0.0,
                             0x1.0000000000002p-1};  // halfway between two doubles: to the even one
  for (Index i = 0; i < 7; ++i) {
    CAPTURE(i);
    CHECK(std::bit_cast<std::uint64_t>(table.values(i, 0)) == std::bit_cast<std::uint64_t>(expected[i]));
  }
}

TEST_CASE("read_csv: whatever is not a finite number is an error with its place", "[io][error]") {
  for (const char* field : {"NaN", "nan", "inf", "-Infinity", "NA", "abc", "1.5x", "0x10", "1 2", "+-1", "++1", "-",
                            "+", "e5", "1e", "\"1\"", "1;2", "1\t2", "1,5x"}) {
    const std::string message = error_of("a,height\n1,2\n3," + std::string(field) + "\n");
    CAPTURE(field, message);
    CHECK(message.find("moe::read_csv: '") == 0);
    CHECK_THAT(message, ContainsSubstring("table.csv', line 3, column 2 (height): found ") ||
                            ContainsSubstring("line 3 has 3 columns"));
  }
  CHECK_THAT(error_of("a,b\n1,\n"), ContainsSubstring("line 2, column 2 (b): found nothing, expected a finite number"));
  CHECK_THAT(error_of("a,b,c\n1,,2\n"), ContainsSubstring("line 2, column 2 (b): found nothing"));
  CHECK_THAT(error_of("a\n1e400\n"), ContainsSubstring("found '1e400', expected a number within the range of double"));
  CHECK_THAT(error_of("a\n1e-400\n"), ContainsSubstring("found '1e-400', expected a number within the range"));
  CHECK_THAT(error_of("a\n1\r2\n"), ContainsSubstring("found '1?2'"));
  CHECK_THAT(error_of("a\n" + std::string(1000, 'z')), ContainsSubstring("found '" + std::string(40, 'z') + "...'"));
  CHECK_THAT(error_of(std::string("a\n1\0\n", 5)), ContainsSubstring("found '1?'"));
}

TEST_CASE("read_csv: rows of another length and blank rows are errors", "[io][error]") {
  CHECK_THAT(error_of("a,b\n1,2\n3\n"), ContainsSubstring("line 3 has 1 columns, expected 2"));
  CHECK_THAT(error_of("a,b\n1,2,3\n"), ContainsSubstring("line 2 has 3 columns, expected 2"));
  CHECK_THAT(error_of("a,b\n1,2,\n"), ContainsSubstring("line 2 has 3 columns, expected 2"));
  CHECK_THAT(error_of("a,b\n1,2\n\n3,4\n"), ContainsSubstring("line 3 is blank, expected 2 numbers"));
  // many short rows below many names: found before anything of size rows * columns is made
  std::string wide = "x";
  for (int i = 0; i < 20000; ++i) wide += ",x" + std::to_string(i);
  std::string tall;
  for (int i = 0; i < 500000; ++i) tall += "1\n";
  CHECK_THAT(error_of(wide + "\n" + tall), ContainsSubstring("line 2 has 1 columns, expected 20001"));
}

TEST_CASE("read_csv: a first line without names is an error", "[io][error]") {
  CHECK_THAT(error_of("1.5,2\n3,4\n"), ContainsSubstring("line 1, column 1: found '1.5', expected a column name"));
  CHECK_THAT(error_of("a,,c\n1,2,3\n"), ContainsSubstring("line 1, column 2: found nothing, expected a column name"));
  CHECK_THAT(error_of("a,b,\n1,2\n"), ContainsSubstring("line 1, column 3: found nothing"));
  CHECK_THAT(error_of("a,b,a\n1,2,3\n"),
             ContainsSubstring("column 3: found 'a', expected a name that no column before"));
  CHECK_THAT(error_of("a,\"b\n1,2\n"), ContainsSubstring("line 1, column 2: found '\"b', expected a quote that ends"));
  CHECK_THAT(error_of("\"a\"b,c\n1,2\n"), ContainsSubstring("found 'b', expected a comma after the quoted name"));
}

TEST_CASE("read_csv: files without rows, and what is no file, are errors", "[io][error]") {
  for (const char* text : {"", "\n\n", "  \r\n", "\xEF\xBB\xBF"})
    CHECK_THAT(error_of(text), ContainsSubstring("table.csv' is empty"));
  for (const char* text : {"a,b", "a,b\n", "a,b\r\n\r\n"}) CHECK_THAT(error_of(text), ContainsSubstring("and no rows"));
  const test::TemporaryDirectory directory;
  CHECK_THROWS_WITH(moe::read_csv(directory / "none.csv"), ContainsSubstring("cannot open: No such file"));
  CHECK_THROWS_WITH(moe::read_csv(directory / "."), ContainsSubstring("is a directory"));
}

TEST_CASE("write_csv: what is written is read back to the same bits", "[io]") {
  const moe::RandomField random(moe::Purpose::User, 1);
  moe::Matrix<double> values(500, 3);  // all exponents
  for (Index i = 0; i < values.size(); ++i) {
    const double value = std::bit_cast<double>(random.bits(i));
    values.data()[i] = std::isfinite(value) ? value : 0.1;
  }
  const Names names{"plain", "a,\"b\" ", "12"};
  const test::TemporaryDirectory directory;
  moe::write_csv(directory / "t.csv", names, values);
  const moe::CsvTable table = moe::read_csv(directory / "t.csv");
  CHECK(table.names == names);
  REQUIRE(table.values.rows() == 500);
  CHECK(table.values == values);

  moe::write_csv(directory / "t.csv", Names{"x", "y"}, (moe::Matrix<double>(2, 2) << 0.1, 1e100, -2, 3).finished());
  CHECK(test::read_bytes(directory / "t.csv") == "x,y\n0.1,1e+100\n-2,3\n");
}

TEST_CASE("read_csv, write_csv: a locale with decimal commas changes nothing", "[io]") {
  const std::string before = std::setlocale(LC_ALL, nullptr);
  for (const char* name : {"de_DE.UTF-8", "fr_FR.UTF-8"}) std::setlocale(LC_ALL, name);  // where it is installed
  const test::TemporaryDirectory directory;
  moe::write_csv(directory / "t.csv", Names{"x"}, moe::Matrix<double>::Constant(1, 1, 1234567.5));
  CHECK(test::read_bytes(directory / "t.csv") == "x\n1234567.5\n");
  CHECK(moe::read_csv(directory / "t.csv").values(0, 0) == 1234567.5);
  std::setlocale(LC_ALL, before.c_str());
}

TEST_CASE("write_csv: what cannot be written is an error", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "t.csv";
  const moe::Matrix<double> two = moe::Matrix<double>::Zero(1, 2);
  CHECK_THROWS_WITH(moe::write_csv(path, Names{"a"}, two), ContainsSubstring("1 names, expected 2"));
  CHECK_THROWS_WITH(moe::write_csv(path, Names{"a", "a"}, two), ContainsSubstring("name 1 is 'a'"));
  CHECK_THROWS_WITH(moe::write_csv(path, Names{"a", ""}, two), ContainsSubstring("name 1 is ''"));
  CHECK_THROWS_WITH(moe::write_csv(path, Names{"a", "b\nc"}, two), ContainsSubstring("expected one line of text"));
  CHECK_THROWS_WITH(moe::write_csv(path, Names{"a", "b"}, moe::Matrix<double>(0, 2)), ContainsSubstring("[0, 2]"));
  CHECK_THROWS_WITH(moe::write_csv(path, Names{"a", "b"}, moe::Matrix<double>::Constant(1, 2, NAN)),
                    ContainsSubstring("not finite"));
  CHECK(directory.num_files() == 0);
  CHECK_THROWS_AS(moe::write_csv(directory / "none" / "t.csv", Names{"a", "b"}, two), std::runtime_error);
  if (std::filesystem::exists("/dev/full"))
    CHECK_THROWS_WITH(moe::write_csv("/dev/full", Names{"a", "b"}, two), ContainsSubstring("No space left"));
}
