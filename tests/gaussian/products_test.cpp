// SPDX-License-Identifier: MIT
// Products of columns in formulas: quadratic gates and experts.
#include <cmath>
#include <string>
#include <vector>

#include "moe/gaussian/design/quadratic.hpp"
#include "moe/gaussian/design/regression.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/inference/summary.hpp"
#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using Names = std::vector<std::string>;
using Terms = std::vector<moe::FormulaTerm>;

moe::FormulaTerm product(const std::string& a, const std::string& b) { return {.column = a, .times = b}; }
moe::FormulaTerm column(const std::string& name) { return {.column = name}; }

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

/// Experts on lines in x; who answers depends on x^2: between -1 and 1 the other one.
moe::DataFrame frame(Index n) {
  const moe::RandomField random(moe::Purpose::User, 11, 77);
  std::vector<double> y, x, z;
  std::vector<std::string> g;
  for (Index i = 0; i < n; ++i) {
    x.push_back(4 * random.uniform(i, 0) - 2);
    z.push_back(2 * random.uniform(i, 1));
    g.push_back(random.uniform(i, 2) < 0.5 ? "a" : "b");
    const bool inside = random.uniform(i, 3) < 1 / (1 + std::exp(4 * (x.back() * x.back() - 1)));
    y.push_back((inside ? 2 - x.back() : x.back() - 2 + 0.3 * z.back()) + 0.3 * random.normal(i, 4));
  }
  moe::DataFrame out{.num_rows = n, .columns = {}, .notes = {}};
  out.columns.push_back({.name = "y", .numbers = y});
  out.columns.push_back({.name = "x", .numbers = x});
  out.columns.push_back({.name = "z", .numbers = z});
  out.columns.push_back({.name = "g", .kind = moe::ColumnKind::Text, .texts = g});
  return out;
}

moe::Regression of(const std::string& formula) { return moe::regression(frame(300), moe::parse_formula(formula)); }
std::string design_error(const std::string& formula) {
  return message_of([&] { of(formula); });
}

}  // namespace

TEST_CASE("parse_formula: products, squares, and quadratic() as their sum", "[gaussian]") {
  CHECK(moe::parse_formula("y ~ a:b + I( a ^ 2 ) + I(c * `d e`) + I(c*c)").terms ==
        Terms{product("a", "b"), product("a", "a"), product("c", "d e"), product("c", "c")});
  CHECK(moe::parse_formula("y ~ quadratic(a, b)").terms ==
        Terms{column("a"), column("b"), product("a", "a"), product("a", "b"), product("b", "b")});
  CHECK(moe::parse_formula("y ~ b:a + b + quadratic(a, b)").terms ==
        Terms{product("b", "a"), column("b"), column("a"), product("a", "a"), product("b", "b")});
  CHECK(moe::parse_formula("y ~ quadratic").terms == Terms{column("quadratic")});  // the name of a column
  CHECK(moe::parse_formula("y ~ I + quadratic(I)").terms == Terms{column("I"), product("I", "I")});
  CHECK(moe::parse_formula("y ~ quadratic(a, b) - b - b:a").terms ==
        Terms{column("a"), product("a", "a"), product("b", "b")});
  CHECK(moe::parse_formula("y ~ quadratic(a) - I(a^2)").removed.empty());
  const auto own = moe::parse_formula("y ~ a | quadratic(a)");
  REQUIRE(own.gate.has_value());
  CHECK(own.gate->terms == Terms{column("a"), product("a", "a")});
  CHECK_FALSE(moe::parse_formula("y ~ quadratic(a, b) | quadratic(b, a)").gate.has_value());
  CHECK(moe::parse_formula("y ~ a + b | a:b").gate.has_value());
}

TEST_CASE("parse_formula: products that it does not know are refused by a sentence", "[gaussian][error]") {
  CHECK_THAT(parse_error("y ~ a:a"), ContainsSubstring("has 'a' by itself, expected I(name^2)"));
  CHECK_THAT(parse_error("y ~ a:b:c"), ContainsSubstring("has ':' behind a term"));
  CHECK_THAT(parse_error("y ~ a^2"), ContainsSubstring("has '^' behind a term"));
  CHECK_THAT(parse_error("y ~ factor(g):a"), ContainsSubstring("has ':' behind a term"));
  CHECK_THAT(parse_error("y ~ a:factor(g)"), ContainsSubstring("has '(' behind a term"));
  CHECK_THAT(parse_error("y ~ I(a^3)"), ContainsSubstring("has '3)' where 2, the only power that is known,"));
  CHECK_THAT(parse_error("y ~ I(a^20)"), ContainsSubstring("has '0)' where ')' is expected"));
  CHECK_THAT(parse_error("y ~ I(a)"), ContainsSubstring("where '^2' or '* name' is expected"));
  CHECK_THAT(parse_error("y ~ I(a * b"), ContainsSubstring("has its end where ')'"));
  CHECK_THAT(parse_error("y ~ quadratic(a, a)"), ContainsSubstring("has 'a' twice in quadratic()"));
  CHECK_THAT(parse_error("y ~ quadratic()"), ContainsSubstring("where the name of a column"));
  CHECK_THAT(parse_error("y ~ quadratic(a"), ContainsSubstring("where ',' or ')'"));
  CHECK_THAT(parse_error("y ~ quadratic(factor(g))"), ContainsSubstring("where ',' or ')'"));
  CHECK_THAT(parse_error("y ~ . - quadratic(a)"), ContainsSubstring("takes quadratic() away"));
  for (const char* nameless : {"y ~ a:``", "y ~ I(a * ``)", "y ~ ``", "y ~ quadratic(``)"})
    CHECK_THAT(parse_error(nameless), ContainsSubstring("where the name of a column"));
  CHECK_THAT(parse_error("y ~ cubic(a)"), ContainsSubstring("calls cubic(), expected factor(), quadratic()"));
}

TEST_CASE("regression: products are columns of x, as quadratic_features() has them", "[gaussian]") {
  const auto r = of("y ~ quadratic(x, z)");
  CHECK(r.design.names() == Names{"x", "z", "x^2", "x:z", "z^2"});
  CHECK(r.data().x == moe::quadratic_features(of("y ~ x + z").data().x));
  CHECK(of("y ~ . - g + I(x^2)").design.names() == Names{"x^2", "x", "z"});
  CHECK(of("y ~ z:x + quadratic(x)").design.names() == Names{"z:x", "x", "x^2"});
  const auto gate = of("y ~ x | z:x + quadratic(x)");
  CHECK(gate.design.names() == Names{"x", "z:x", "x^2"});
  CHECK(gate.design.expert_inputs() == std::vector<Index>{0});
  CHECK_FALSE(gate.design.gate_inputs().has_value());
  CHECK(of("y ~ x | I(x^2)").design.gate_inputs() == std::vector<Index>{1});
  CHECK(moe::design_rows(gate.design, frame(50)).data.x == gate.data().x.topRows(50));
  auto holes = frame(300);
  holes.columns[2].numbers[7] = std::nan("");
  const auto without = moe::regression(holes, moe::parse_formula("y ~ quadratic(x, z)"));
  CHECK(without.rows.missing_rows == 1);
  CHECK(without.notes.at(0) == "1 of 300 rows are left out, as values are missing: 1 in z");
}

TEST_CASE("quadratic_features: columns, squares and products of any size", "[gaussian]") {
  for (const Index d : {0, 1, 2, 5})
    for (const Index n : {0, 1, 7}) {
      const moe::Matrix<double> x = moe::Matrix<double>::Random(n, d), q = moe::quadratic_features(x);
      REQUIRE(q.rows() == n);
      REQUIRE(q.cols() == d + d * (d + 1) / 2);
      CHECK(q.leftCols(d) == x);
      Index at = d;
      for (Index a = 0; a < d; ++a)
        for (Index b = a; b < d; ++b, ++at)
          for (Index i = 0; i < n; ++i) CHECK(q(i, at) == x(i, a) * x(i, b));
    }
}

TEST_CASE("regression: products of what holds no numbers, or of the response, are errors", "[gaussian][error]") {
  CHECK_THAT(design_error("y ~ quadratic(g)"),
             ContainsSubstring("column 'g' holds no numbers, expected numbers in a product"));
  CHECK_THAT(design_error("y ~ x:g"), ContainsSubstring("column 'g' holds no numbers"));
  CHECK_THAT(design_error("y ~ x:q"), ContainsSubstring("there is no column 'q'"));
  CHECK_THAT(design_error("y ~ x | x:y"), ContainsSubstring("'y' is the response and an input"));
  auto far = frame(300);
  far.columns[1].numbers[2] = 1e200;
  CHECK_THAT(message_of([&] { moe::regression(far, moe::parse_formula("y ~ I(x^2)")); }),
             ContainsSubstring("a number is infinite in row 3"));
  far = frame(300);
  far.columns[2].unusable = "holds dates";
  CHECK_THAT(message_of([&] { moe::regression(far, moe::parse_formula("y ~ x:z")); }),
             ContainsSubstring("column 'z' holds dates"));
  auto design = of("y ~ x + g").design;
  design.columns[1].times = "x";
  CHECK_THAT(message_of([&] { moe::design_rows(design, frame(10)); }),
             ContainsSubstring("column 'gb' is a dummy and a product with 'x'"));
}

// Normal equations of polynomials of degree 2 over (-2, 2) lose about a condition of 1e3 of 1e-16.
TEST_CASE("fit: one expert of quadratic inputs is least squares of the columns written out", "[gaussian]") {
  const auto r = of("y ~ quadratic(x, z)");
  const auto fit = moe::fit(r.data(), 1, moe::SoftmaxGate{}, {.starts = 1});
  const auto plain = frame(300);
  Eigen::MatrixXd x(300, 6);
  Eigen::VectorXd y(300);
  for (Index i = 0; i < 300; ++i) {
    const auto s = static_cast<std::size_t>(i);
    const double a = plain.columns[1].numbers[s], b = plain.columns[2].numbers[s];
    x.row(i) << 1, a, b, a * a, a * b, b * b;
    y(i) = plain.columns[0].numbers[s];
  }
  const Eigen::VectorXd lm = x.colPivHouseholderQr().solve(y);
  const double squares = (y - x * lm).squaredNorm();
  CHECK(std::abs(fit.model.intercept(0) - lm(0)) < 1e-9);
  CHECK((fit.model.slope.row(0).transpose() - lm.tail(5)).cwiseAbs().maxCoeff() < 1e-9);
  const Eigen::MatrixXd covariance = (x.transpose() * x).inverse() * (squares / 300);
  const auto errors = moe::standard_errors(fit, r.data());
  for (Index c = 0; c < 5; ++c) {
    const auto& at = errors["a[0," + std::to_string(c) + ']'];
    REQUIRE(at.error.has_value());
    CHECK(std::abs(at.error->observed / std::sqrt(covariance(c + 1, c + 1)) - 1) < 1e-8);
  }
}

TEST_CASE("fit: a quadratic gate by name is the one by columns, to the bit, and sees what a line cannot",
          "[gaussian]") {
  const moe::FitOptions options{.starts = 6};
  const auto named = of("y ~ x + z | quadratic(x)");
  moe::RegressionData data = of("y ~ x + z").data();
  const Eigen::VectorXd square = data.x.col(0).cwiseAbs2();
  data.x.conservativeResize(Eigen::NoChange, 3);
  data.x.col(2) = square;
  data.gate_inputs = std::vector<Index>{0, 2};
  data.expert_inputs = std::vector<Index>{0, 1};
  const auto fit = moe::fit(named.data(), 2, moe::SoftmaxGate{}, options);
  const auto by_columns = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  CHECK(fit.log_likelihood == by_columns.log_likelihood);
  CHECK(fit.model.gate_slope == by_columns.model.gate_slope);
  CHECK(fit.model.slope == by_columns.model.slope);
  // The truth has -4 of x^2, and BIC's price of a coefficient is log(300) / 2 = 2.9.
  const auto line = moe::fit(of("y ~ x + z").data(), 2, moe::SoftmaxGate{}, options);
  CHECK(fit.log_likelihood > line.log_likelihood + 10);
  const auto errors = moe::standard_errors(fit, named.data());
  const auto& bend = errors["beta1[0,2]"];
  REQUIRE(bend.error.has_value());
  CHECK(std::abs(std::abs(bend.estimate) - 4) < 4 * bend.error->observed);
  const std::string text = moe::summary(fit, named.data(), {.inputs = named.design.names()}).text();
  CHECK_THAT(text, ContainsSubstring("x^2") && ContainsSubstring("3 inputs (2 of the experts, 2 of the gate)"));
}
