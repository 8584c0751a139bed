// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/summary.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;

}  // namespace

TEST_CASE("quantile_residuals: of one expert they are the standardised residuals", "[gaussian]") {
  auto model = moe::GaussianMoe<>::zero(1, 1);
  model.slope << 2;
  model.intercept << -1;
  model.variance << 0.25;
  const moe::Matrix<double> x = Eigen::VectorXd::LinSpaced(7, -3, 3);
  const Eigen::VectorXd z = (Eigen::VectorXd(7) << -30, -5, -0.1, 0, 0.1, 9, 30).finished();
  const Eigen::VectorXd y = (2 * x.col(0).array() - 1 + 0.5 * z.array()).matrix();
  const Eigen::VectorXd found = moe::quantile_residuals(model, x, y);
  for (Index i = 0; i < z.size(); ++i) CHECK(std::abs(found(i) - z(i)) <= 1e-12 * (1 + std::abs(z(i))));
  CHECK_THROWS_AS(moe::quantile_residuals(model, x, y.head(3)), std::invalid_argument);
}

TEST_CASE("summary: has the numbers of criteria, standard errors and residuals under their names", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 400, 5);
  const auto fit = moe::fit_from(data, test::two_lines());
  const auto summary = moe::summary(fit, data, {.inputs = {"dose"}, .response = "answer"});
  const auto errors = moe::standard_errors(fit, data);
  CHECK(summary.criteria.bic == moe::criteria(fit, data).bic);
  REQUIRE(summary.blocks.size() == 3);
  CHECK(summary.blocks[0].title == "gate score of expert 1");
  const auto& gate = summary.blocks[0].lines;
  REQUIRE(gate.size() == 2);
  CHECK(gate[0].label == "bias");
  CHECK(gate[0].parameter.name == "beta0[0]");
  CHECK(gate[1].label == "dose");
  CHECK(gate[1].parameter.name == "beta1[0,0]");
  const auto& second = summary.blocks[2].lines;
  REQUIRE(second.size() == 3);
  CHECK(second[0].parameter.name == "b[1]");
  CHECK(second[1].parameter.name == "a[1,0]");
  CHECK(second[1].parameter.estimate == fit.model.slope(1, 0));
  CHECK(second[2].parameter.name == "variance[1]");
  CHECK(second[2].parameter.error->observed == errors["variance[1]"].error->observed);
  CHECK(std::accumulate(summary.tenths.begin(), summary.tenths.end(), 0.0) == 400);
  Eigen::VectorXd z = moe::quantile_residuals(fit.model, data.x, data.y);
  std::sort(z.begin(), z.end());
  CHECK(summary.residual_quantiles[0] == z(0));
  CHECK(summary.residual_quantiles[4] == z(399));
  CHECK_THAT(summary.residual_quantiles[1], Catch::Matchers::WithinAbs(0.25 * z(99) + 0.75 * z(100), 1e-12));
  CHECK(std::abs(summary.residual_quantiles[2]) < 0.2);  // median of 400: sd 1.25 / 20
  CHECK(summary.distance < 1.63 / 20);                   // 1 % of Kolmogorov's, larger than with fitted parameters
  const std::string text = summary.text();
  for (const char* part :
       {"answer: 400 rows, 1 input, 2 experts", "log-likelihood", "BIC", "converged after", "gate score of expert 1",
        "  dose", "std. error", "95% interval", "  0.9 ", "1 start, the best end reached by 1 of 1 search"})
    CHECK_THAT(text, ContainsSubstring(part));
  auto named = summary;  // by a file
  named.blocks[0].lines[1].label = "a\x1B[2J" + std::string(500, 'b');
  CHECK_THAT(named.text(), ContainsSubstring("  a?[2Jb") && !ContainsSubstring(std::string(60, 'b')));
}

TEST_CASE("summary: residuals of a wrong model show", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 400, 5);
  auto fit = moe::fit_from(data, test::two_lines());
  fit.model.variance *= 25;  // five times too wide: P(Y <= y | x) is near 1/2
  const auto summary = moe::summary(fit, data);
  CHECK(summary.tenths[4] + summary.tenths[5] > 150);
  CHECK(summary.tenths[0] + summary.tenths[9] < 40);  // 80 are expected
  CHECK(summary.distance > 0.2);
  const std::string text = summary.text();
  CHECK_THAT(text, ContainsSubstring("-            -"));  // no standard errors, as this is no maximum
  CHECK_THAT(text, ContainsSubstring("not a maximum of the likelihood"));
  CHECK_THAT(text, ContainsSubstring("    |\n"));  // where a short bar should end
  CHECK_THAT(text, ContainsSubstring("  x1"));
}

TEST_CASE("summary: errors, and a free temperature", "[gaussian][error]") {
  const auto data = test::simulated(test::two_lines(), 100, 5);
  auto fit = moe::fit_from(data, test::two_lines());
  CHECK_THROWS_AS(moe::summary(fit, data, {.inputs = {"a", "b"}}), std::invalid_argument);
  using Gate = moe::DenseToSparseGate<moe::LearnableTemperature>;
  moe::GaussianFit<Gate> tempered;
  tempered.model = moe::GaussianMoe<Gate>(fit.model);
  tempered.expert_rows = fit.expert_rows;
  REQUIRE(moe::layout(tempered.model).free_temperature);
  const std::string text = moe::summary(tempered, data).text();
  CHECK_THAT(text, ContainsSubstring("gate score of expert 1, over the temperature"));
  CHECK_THAT(text, ContainsSubstring("  temperature"));
  const auto searched = moe::fit(data, 2);
  CHECK_THAT(moe::summary(searched, data).text(),
             ContainsSubstring("reached by " + std::to_string(searched.hits) + " of 6 searches"));
  CHECK_THAT(moe::flag_words({.separated = true, .singular = true}).at(1).name, ContainsSubstring("singular"));
}
