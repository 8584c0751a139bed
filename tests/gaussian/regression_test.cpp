// SPDX-License-Identifier: MIT
#include "moe/gaussian/design/regression.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::ColumnKind;
using moe::Index;
using Names = std::vector<std::string>;
constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

moe::DataColumn numbers(const std::string& name, std::vector<double> values) {
  return {.name = name, .kind = ColumnKind::Number, .numbers = std::move(values), .texts = {}, .unusable = {}};
}
moe::DataColumn texts(const std::string& name, Names values) {
  return {.name = name, .kind = ColumnKind::Text, .numbers = {}, .texts = std::move(values), .unusable = {}};
}

/// y, x, a group of text, a group of numbers, a flag, and columns that are of no use.
moe::DataFrame sample() {
  moe::DataFrame frame{.num_rows = 6, .columns = {}, .notes = {}};
  frame.columns = {
      numbers("y", {1, 2, 3, 4, 5, 7}),
      numbers("x", {0, 1, kMissing, 3, 5, 8}),
      texts("g", {"b", "a", "z", "c", "b", "a"}),
      numbers("m", {10, 9, 9, 10, 9, 2}),
      {.name = "flag", .kind = ColumnKind::Logical, .numbers = {1, 0, 0, 1, 1, 0}, .texts = {}, .unusable = {}},
      numbers("one", {3, 3, 3, 3, 3, 3}),
      numbers("isa", {0, 1, 1, 0, 0, 1})};
  return frame;
}

moe::Regression of(const std::string& formula) { return moe::regression(sample(), moe::parse_formula(formula)); }

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}
std::string parse_error(const std::string& formula) {
  return message_of([&] { moe::parse_formula(formula); });
}
std::string design_error(const std::string& formula) {
  return message_of([&] { of(formula); });
}

}  // namespace

TEST_CASE("parse_formula: what R writes", "[gaussian]") {
  const auto formula = moe::parse_formula(" y~x+factor( g )+ factor(h, ref = \"b, c\")+factor(k,ref=2) + `a b` + 1 ");
  CHECK(formula.response == "y");
  const std::vector<moe::FormulaTerm> expected{
      {"x", false, ""}, {"g", true, ""}, {"h", true, "b, c"}, {"k", true, "2"}, {"a b", false, ""}};
  CHECK(formula.terms == expected);
  CHECK_FALSE(formula.rest);
  const auto rest = moe::parse_formula("y_1.t ~ . - id - `a b`");
  CHECK(rest.response == "y_1.t");
  CHECK(rest.rest);
  CHECK(rest.removed == Names{"id", "a b"});
  CHECK(moe::parse_formula("y ~ x + z | z + x").terms.size() == 2);
  CHECK_FALSE(moe::parse_formula("y ~ x + z | z + x").gate.has_value());
  const auto own = moe::parse_formula("y ~ . - id | factor(g) + z");
  CHECK(own.rest);
  REQUIRE(own.gate.has_value());
  CHECK(own.gate->terms == std::vector<moe::FormulaTerm>{{"g", true, ""}, {"z", false, ""}});
  CHECK(moe::parse_formula("y ~ x | 1").gate->terms.empty());
  CHECK(moe::parse_formula("y ~ x + x").terms.size() == 1);
}

TEST_CASE("parse_formula: what it does not know is refused by a sentence", "[gaussian][error]") {
  CHECK_THAT(parse_error("y ~ x | z - 1"),
             ContainsSubstring("moe::parse_formula: 'y ~ x | z - 1' has no intercept of the gate"));
  CHECK_THAT(parse_error("y ~ x | 0 + z"), ContainsSubstring("has no intercept of the gate"));
  CHECK_THAT(parse_error("y ~ x * z"), ContainsSubstring("has '*' behind a term, expected sums of terms"));
  CHECK_THAT(parse_error("y ~ x:z:u"), ContainsSubstring("has ':' behind a term"));
  CHECK_THAT(parse_error("y ~ log(x)"), ContainsSubstring("calls log()"));
  CHECK_THAT(parse_error("log(y) ~ x"), ContainsSubstring("'~' after the response is expected"));
  CHECK_THAT(parse_error("y ~ x +"), ContainsSubstring("has its end where the name of a column"));
  CHECK_THAT(parse_error("y ~"), ContainsSubstring("has its end"));
  CHECK_THAT(parse_error("~ x"), ContainsSubstring("where the name of the response is expected"));
  CHECK_THAT(parse_error("y ~ factor(g"), ContainsSubstring("where ')' is expected"));
  CHECK_THAT(parse_error("y ~ factor(g, base = a)"), ContainsSubstring("where ref = level is expected"));
  CHECK_THAT(parse_error("y ~ `x"), ContainsSubstring("a quote that ends"));
  CHECK_THAT(parse_error("y ~ x z"), ContainsSubstring("'z' where '+', '-' or the end is expected"));
}

TEST_CASE("regression: dummies, levels and complete rows as model.matrix has them", "[gaussian]") {
  const auto r = of("y ~ x + g + flag");
  CHECK(r.design.names() == Names{"x", "gb", "gc"});
  CHECK(r.design.dropped == Names{"flagTRUE"});  // gb + gc in these rows
  moe::Matrix<double> x(5, 3);
  x << 0, 1, 0,  //
      1, 0, 0,   //
      3, 0, 1,   //
      5, 1, 0,   //
      8, 0, 0;
  CHECK(r.data().x == x);
  CHECK(r.data().y == Eigen::VectorXd((Eigen::VectorXd(5) << 1, 2, 4, 5, 7).finished()));
  CHECK(r.rows.rows == std::vector<Index>{0, 1, 3, 4, 5});
  CHECK(r.rows.missing_rows == 1);
  CHECK(r.notes.at(0) == "1 of 6 rows are left out, as values are missing: 1 in x");
  CHECK(r.notes.at(1) == "factor 'g': the base level is a, the others are b, c");
}

TEST_CASE("regression: levels of numbers ascend, ref names another base level", "[gaussian]") {
  CHECK(of("y ~ factor(m)").design.names() == Names{"factor(m)9", "factor(m)10"});
  CHECK(of("y ~ factor(m, ref = 10)").design.factors.at(0).levels == Names{"10", "2", "9"});
  CHECK(of("y ~ factor(g, ref = z)").design.names() == Names{"ga", "gb", "gc"});
  CHECK(of("y ~ flag").design.names() == Names{"flagTRUE"});
  CHECK(of("y ~ m").design.names() == Names{"m"});
  CHECK(of("y ~ . - g - x - one").design.names() == Names{"m", "flagTRUE"});
}

TEST_CASE("regression: constant and dependent columns are left out with a word", "[gaussian]") {
  const auto r = of("y ~ one + g + isa");
  CHECK(r.design.names() == Names{"gb", "gc", "gz"});
  CHECK(r.design.dropped == Names{"one", "isa"});
  CHECK(r.notes.at(1) == "'one' is left out: it is constant");
  CHECK(r.notes.at(2) == "'isa' is left out: it is a linear combination of the columns before it");
  auto frame = sample();
  frame.columns.push_back(numbers("sum", {2e9 + 1, 2e9 + 3, 2e9 + 4, 2e9 + 4, 2e9 + 5, 2e9 + 7.5}));
  CHECK(moe::regression(frame, moe::parse_formula("y ~ sum + m")).design.dropped.empty());  // far from 0, not dependent
}

TEST_CASE("regression: the gate may read columns of its own", "[gaussian]") {
  const auto r = of("y ~ m + one | g + m");
  CHECK(r.design.names() == Names{"m", "gb", "gc", "gz"});
  CHECK(r.design.expert_inputs() == std::vector<Index>{0});
  CHECK_FALSE(r.design.gate_inputs().has_value());  // all of them
  CHECK(r.design.dropped == Names{"one"});
  CHECK(r.notes.at(1) == "'one' is left out of the experts: it is constant");
  CHECK(r.data().x.col(0) == Eigen::VectorXd((Eigen::VectorXd(6) << 10, 9, 9, 10, 9, 2).finished()));
  CHECK_FALSE(of("y ~ m + g | g + m").design.gate_inputs().has_value());
  const auto dependent = of("y ~ flag | isa + flag");
  CHECK(dependent.design.names() == Names{"flagTRUE"});
  CHECK(dependent.design.dropped == Names{"isa"});
  CHECK(dependent.notes.back() == "'isa' is left out of the gate: it is a linear combination of the columns before it");
  const auto missing = of("y ~ m | x");  // the gate's rows have to be complete, too
  CHECK(missing.rows.missing_rows == 1);
  CHECK(missing.design.gate_inputs() == std::vector<Index>{1});
  CHECK(missing.data().gate_inputs == std::vector<Index>{1});  // a fit of the data cannot forget them
  CHECK(missing.data().expert_inputs == std::vector<Index>{0});
  CHECK(moe::design_rows(missing.design, sample()).data.gate_inputs == std::vector<Index>{1});
  const auto constant = of("y ~ m | 1");
  CHECK(constant.design.gate_inputs() == std::vector<Index>{});
  CHECK_FALSE(constant.design.expert_inputs().has_value());
  const auto means = of("y ~ 1 | factor(m, ref = 9) + x");
  CHECK(means.design.names() == Names{"factor(m)2", "factor(m)10", "x"});
  CHECK(means.design.expert_inputs() == std::vector<Index>{});
  CHECK(of("y ~ x + m | isa + m").design.gate_inputs() == std::vector<Index>{1, 2});
  CHECK_THAT(design_error("y ~ factor(g) | factor(g, ref = b) + x"), ContainsSubstring("'g' has the base level ''"));
  CHECK_THAT(design_error("y ~ factor(g, ref = b) | factor(g, ref = c)"), ContainsSubstring("has the base level"));
  CHECK_THAT(design_error("y ~ 1 | 1"), ContainsSubstring("no inputs"));
  auto weighted = moe::parse_formula("y ~ x");
  weighted.weights = "y";
  CHECK_THROWS_WITH(moe::regression(sample(), weighted), ContainsSubstring("'y' is the response and the weights"));
  CHECK_THAT(design_error("y ~ x | y"), ContainsSubstring("'y' is the response and an input"));
}

TEST_CASE("regression: what cannot be a regression is an error", "[gaussian][error]") {
  CHECK_THAT(design_error("y ~ q"), ContainsSubstring("there is no column 'q', expected one of: y, x, g, m"));
  CHECK_THAT(design_error("y ~ . - q"), ContainsSubstring("there is no column 'q'"));
  CHECK_THAT(design_error("g ~ x"), ContainsSubstring("column 'g' holds no numbers"));
  CHECK_THAT(design_error("y ~ x + y"), ContainsSubstring("'y' is the response and an input"));
  CHECK_THAT(design_error("y ~ one"), ContainsSubstring("no input varies"));
  CHECK_THAT(design_error("y ~ factor(g, ref = q)"), ContainsSubstring("'q' is the base level of 'g'"));
  CHECK_THAT(message_of([] { moe::regression(sample(), moe::parse_formula("y ~ x"), moe::MissingRows::Refuse); }),
             ContainsSubstring("row 3 misses its value of 'x'"));
  auto frame = sample();
  frame.columns[1].unusable = "holds dates";
  frame.columns[3].numbers[2] = std::numeric_limits<double>::infinity();
  CHECK_THAT(message_of([&] { moe::regression(frame, moe::parse_formula("y ~ x")); }),
             ContainsSubstring("column 'x' holds dates"));
  CHECK(moe::regression(frame, moe::parse_formula("y ~ factor(x)")).design.columns.size() == 4);
  CHECK_THAT(message_of([&] { moe::regression(frame, moe::parse_formula("y ~ m")); }),
             ContainsSubstring("a number is infinite in row 3"));
  frame.columns[2].texts.pop_back();
  CHECK_THAT(message_of([&] { moe::regression(frame, moe::parse_formula("y ~ m")); }),
             ContainsSubstring("column 'g' has 5 values, expected num_rows = 6"));
}

TEST_CASE("regression: weights are a column of their own, and rows of weight 0 are not there", "[gaussian]") {
  auto frame = sample();
  frame.columns.push_back(numbers("n", {2, 1, 5, 0, 0.5, 3}));
  auto formula = moe::parse_formula("y ~ . - one - isa - flag - m");
  formula.weights = "n";
  const auto r = moe::regression(frame, formula);
  CHECK(r.design.names() == Names{"x", "gb"});  // c is in row 4 alone, whose weight is 0, z in row 3, which misses x
  CHECK(r.rows.rows == std::vector<Index>{0, 1, 4, 5});
  CHECK(r.rows.missing_rows == 1);
  CHECK(r.data().weights == Eigen::VectorXd((Eigen::VectorXd(4) << 2, 1, 0.5, 3).finished()));
  CHECK(r.notes.at(1) == "1 row is left out, of weight 0: 'n'");
  CHECK_FALSE(moe::design_rows(of("y ~ m").design, frame).data.weighted());
  const auto refused = [&](std::vector<double> weights) {
    frame.columns.back().numbers = std::move(weights);
    return message_of([&] { moe::regression(frame, formula); });
  };
  CHECK_THAT(refused({2, 1, 5, 0, -0.5, 3}), ContainsSubstring("the weight 'n' is -0.5 in row 5, expected a finite"));
  CHECK_THAT(refused({0, 0, 5, 0, 0, 0}), ContainsSubstring("the weight 'n' is 0 in every row"));
  CHECK_THAT(refused({2, kMissing, 5, 0, 1, 3}), ContainsSubstring("no error"));  // one more row is left out
  formula.weights = "g";
  CHECK_THAT(message_of([&] { moe::regression(frame, formula); }), ContainsSubstring("column 'g' holds no numbers"));
}

TEST_CASE("design_rows: other data become the same columns", "[gaussian]") {
  const auto r = of("y ~ x + g + isa");
  moe::DataFrame other{
      .num_rows = 3,
      .columns = {texts("g", {"c", "a", "b"}), numbers("x", {1, kMissing, 2}), numbers("isa", {0, 1, 0})},
      .notes = {}};
  const moe::DesignRows rows = moe::design_rows(r.design, other);
  CHECK(rows.data.x == (moe::Matrix<double>(2, 3) << 1, 0, 1, 2, 1, 0).finished());
  CHECK(rows.data.y.size() == 0);
  CHECK(rows.rows == std::vector<Index>{0, 2});
  CHECK(rows.missing_rows == 1);
  CHECK(moe::design_rows(r.design, sample()).data.x == r.data().x);
  CHECK(moe::design_rows(r.design, sample()).data.y == r.data().y);
  other.columns[0].texts[2] = "z";  // only in a row that was left out
  CHECK_THAT(message_of([&] { moe::design_rows(r.design, other); }),
             ContainsSubstring("'g' is 'z' in row 3, expected a level of the fit: a, b, c"));
  other.columns.erase(other.columns.begin());
  CHECK_THAT(message_of([&] { moe::design_rows(r.design, other); }), ContainsSubstring("there is no column 'g'"));
}

TEST_CASE("design_rows: levels are compared by value where they were read as numbers or TRUE and FALSE", "[gaussian]") {
  moe::DataFrame frame{.num_rows = 4,
                       .columns = {numbers("y", {1, 2, 3, 5}), texts("sex", {"F", "M", "F", "M"}),
                                   texts("code", {"01", "1a", "1a", "2.50"})},
                       .notes = {}};
  const auto r = moe::regression(frame, moe::parse_formula("y ~ sex + code"));
  moe::DataFrame other{.num_rows = 2, .columns = {numbers("code", {1, 2.5})}, .notes = {}};
  other.columns.push_back({.name = "sex", .kind = ColumnKind::Logical, .numbers = {0, 0}, .texts = {}, .unusable = {}});
  CHECK(r.design.names() == Names{"sexM", "code1a", "code2.50"});
  CHECK(moe::design_rows(r.design, other).data.x == (moe::Matrix<double>(2, 3) << 0, 0, 0, 0, 0, 1).finished());
  other.columns[1].numbers[1] = 1;
  CHECK_THAT(message_of([&] { moe::design_rows(r.design, other); }),
             ContainsSubstring("'sex' is 'TRUE' in row 2, expected a level of the fit: F, M"));
  auto design = r.design;
  design.factors[1].levels.push_back("1.0");  // as 01
  other.columns[1].numbers[1] = 0;
  CHECK_THAT(message_of([&] { moe::design_rows(design, other); }),
             ContainsSubstring("'code' is 1 in row 1, which several levels of the fit are"));
}

TEST_CASE("regression: -0 is the level 0", "[gaussian]") {
  auto frame = sample();
  frame.columns[3].numbers = {-0.0, 0.0, 1, -0.0, 1, 0.0};
  const auto r = moe::regression(frame, moe::parse_formula("y ~ factor(m, ref = 1)"));
  CHECK(r.design.names() == Names{"factor(m)0"});
  CHECK(r.data().x.col(0) == Eigen::VectorXd((Eigen::VectorXd(6) << 1, 1, 0, 1, 0, 1).finished()));
}

TEST_CASE("regression: a text that names the rows is refused before it fills the memory", "[gaussian][error]") {
  constexpr Index kRows = 30000;  // 7 GB of dummies
  std::vector<double> y;
  Names ids;
  for (Index i = 0; i < kRows; ++i) {
    y.push_back(static_cast<double>(i % 7));
    ids.push_back("id" + std::to_string(i));
  }
  const moe::DataFrame frame{
      .num_rows = kRows, .columns = {numbers("y", y), numbers("x", y), texts("id", ids)}, .notes = {}};
  CHECK_THAT(
      message_of([&] { moe::regression(frame, moe::parse_formula("y ~ .")); }),
      ContainsSubstring("30000 columns of x for 30000 complete rows") && ContainsSubstring("'id' has 30000 levels"));
}

TEST_CASE("regression, design_rows: many columns and many levels are no square of them", "[gaussian]") {
  constexpr Index kMany = 20000;
  moe::DataFrame frame{.num_rows = 2, .columns = {numbers("y", {1, 2}), numbers("x", {1, 3})}, .notes = {}};
  moe::Formula formula = moe::parse_formula("y ~ .");
  for (Index c = 0; c < kMany; ++c) {
    frame.columns.push_back(numbers("a name as long as others " + std::to_string(c), {1, 2}));
    formula.removed.push_back(frame.columns.back().name);
  }
  CHECK_THAT(message_of([&] { moe::regression(frame, formula); }), !ContainsSubstring("no column"));
  moe::Design design{.response = "y",
                     .columns = {{.name = "g0", .source = "g", .level = "level 0"}},
                     .factors = {{"g", {}}},
                     .dropped = {}};
  Names levels;
  for (Index l = 0; l < kMany; ++l) levels.push_back("level " + std::to_string(l));
  design.factors[0].levels = levels;
  const moe::DataFrame rows{.num_rows = kMany, .columns = {texts("g", levels)}, .notes = {}};
  CHECK(moe::design_rows(design, rows).data.x.sum() == 1);
}

TEST_CASE("regression: names and levels of files go to messages cleaned and cut", "[gaussian][error]") {
  auto frame = sample();
  frame.columns[2].texts = {"b\x1B[2J", "a", "a", "c", std::string(500, 'd'), "a"};
  const auto r = moe::regression(frame, moe::parse_formula("y ~ g"));
  CHECK(r.notes.at(0) == "factor 'g': the base level is a, the others are b?[2J, c, " + std::string(40, 'd') + "...");
  CHECK_THAT(message_of([&] {
               frame.columns[0].name = "\a";
               moe::regression(frame, moe::parse_formula("q ~ g"));
             }),
             ContainsSubstring("expected one of: ?, x, g"));
  frame = sample();
  for (int c = 0; c < 30; ++c) frame.columns.push_back(numbers("c" + std::to_string(c), {1, 2, 3, 4, 5, 6}));
  CHECK_THAT(message_of([&] { moe::regression(frame, moe::parse_formula("q ~ g")); }),
             ContainsSubstring("and 17 more"));
}

TEST_CASE("design_rows: the response may be ignored, and a dummy has a factor with its level", "[gaussian]") {
  const auto r = of("y ~ m + g");
  auto frame = sample();
  frame.columns[0].numbers[1] = kMissing;
  CHECK(moe::design_rows(r.design, frame).data.num_rows() == 5);
  const auto rows = moe::design_rows(r.design, frame, moe::MissingRows::LeaveOut, moe::ResponseColumn::Ignored);
  CHECK(rows.data.x == r.data().x);
  CHECK(rows.data.y.size() == 0);
  auto design = r.design;
  design.factors.clear();
  CHECK_THAT(message_of([&] { moe::design_rows(design, frame); }), ContainsSubstring("'gb' is a dummy of 'g'"));
  design = r.design;
  design.columns[1].level = "q";
  CHECK_THAT(message_of([&] { moe::design_rows(design, frame); }),
             ContainsSubstring("is the dummy of 'q', expected a level of 'g': a, b, c, z"));
}
