// SPDX-License-Identifier: MIT
#include "moe/gaussian/inference/standard_errors.hpp"

#include <cmath>
#include <utility>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::NoStandardError;

moe::StandardErrors errors_of(const moe::GaussianFit<moe::SoftmaxGate>& fit, const moe::RegressionData& data) {
  return moe::standard_errors(fit, data);
}

}  // namespace

TEST_CASE("standard_errors: change with units and origin of the data as the parameters do", "[gaussian][property]") {
  const auto data = test::simulated(test::two_lines(), 400, 1);
  const auto fit = moe::fit_from(data, test::two_lines());
  const moe::StandardErrors errors = errors_of(fit, data);
  REQUIRE(errors.available());
  // years and millimetres: the information is far from singular on the standardised scale alone
  moe::RegressionData other = data;
  other.x = (3 * data.x).array() + 2e4;
  other.y = (1000 * data.y).array() - 7e5;
  moe::GaussianMoe<> moved = fit.model;
  moved.gate_slope /= 3;
  moved.gate_bias -= 2e4 * moved.gate_slope.col(0).transpose();
  moved.slope *= 1000.0 / 3;
  moved.intercept = (1000 * moved.intercept).array() - 7e5;
  moved.intercept -= 2e4 * moved.slope.col(0).transpose();
  moved.variance *= 1e6;
  const moe::StandardErrors there = moe::standard_errors(moved, other);
  CAPTURE(there.explanation);
  REQUIRE(there.available());
  // 2e4 takes 5 digits of what remains of 16 in residuals, and the distance from the maximum is second order
  const auto ratio = [&](const char* name) { return there[name].error->observed / errors[name].error->observed; };
  CHECK(std::abs(ratio("beta1[0,0]") * 3 - 1) < 1e-7);
  CHECK(std::abs(ratio("a[1,0]") * 3 / 1000 - 1) < 1e-7);
  CHECK(std::abs(ratio("variance[0]") / 1e6 - 1) < 1e-7);
  CHECK(std::abs(ratio("log variance[1]") - 1) < 1e-7);
}

TEST_CASE("standard_errors: intervals have the level, and those of variances are positive", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 200, 2);
  const auto fit = moe::fit_from(data, test::two_lines());
  const auto errors = moe::standard_errors(fit, data, {.level = 0.9, .intervals = moe::Sandwich::Yes});
  REQUIRE(errors.available());
  constexpr double kNinety = 1.6448536269514722;  // Phi^-1(0.95)
  const auto& slope = errors["a[0,0]"];
  CHECK(std::abs(slope.error->upper - slope.estimate - kNinety * slope.error->sandwich) < 1e-14);
  const auto &log_variance = errors["log variance[1]"], &variance = errors["variance[1]"];
  CHECK(variance.error->lower == std::exp(log_variance.error->lower));
  CHECK(std::abs(variance.error->observed - variance.estimate * log_variance.error->observed) < 1e-16);
}

TEST_CASE("standard_errors: a free temperature has none, and the ratios have those of a softmax", "[gaussian]") {
  using Gate = moe::DenseToSparseGate<moe::LearnableTemperature>;
  const auto data = test::simulated(test::two_lines(), 300, 3);
  const auto fit = moe::fit_from(data, test::two_lines());
  moe::GaussianMoe<Gate> tempered(fit.model);
  tempered.temperature = 2.5;
  tempered.gate_slope *= 2.5;
  tempered.gate_bias *= 2.5;
  const auto plain = errors_of(fit, data), errors = moe::standard_errors(tempered, data);
  REQUIRE(errors.available());
  CHECK(errors["tau"].reason == NoStandardError::TemperatureRay);
  CHECK(errors["tau"].estimate == 2.5);
  CHECK_FALSE(errors["log tau"].error);
  CHECK_THAT(errors.explanation, ContainsSubstring("tau has no standard error"));
  // the same sums in the same order, but for divisions by tau
  CHECK(std::abs(errors["beta1[0,0]/tau"].estimate - plain["beta1[0,0]"].estimate) < 1e-14);
  for (const auto& [ratio, name] : {std::pair{"beta1[0,0]/tau", "beta1[0,0]"}, std::pair{"a[1,0]", "a[1,0]"}})
    CHECK(std::abs(errors[ratio].error->observed / plain[name].error->observed - 1) < 1e-10);
}

TEST_CASE("standard_errors: a gate with one active expert has none, its experts those of regressions", "[gaussian]") {
  const moe::GaussianMoe<moe::TopKGate> top1(test::two_lines(), moe::TopKGate{.k = 1});
  const auto data = test::simulated(top1, 300, 4);
  const auto fit = moe::fit_from(data, top1);
  const moe::StandardErrors errors = moe::standard_errors(fit, data);
  CAPTURE(errors.explanation);
  REQUIRE(errors.available());
  CHECK(errors["beta1[0,0]"].reason == NoStandardError::HardGate);
  CHECK(errors["beta0[0]"].reason == NoStandardError::HardGate);
  for (Index j = 0; j < 2; ++j) {  // least squares on the expert's own rows: Var(log nu) = 2 / n_j
    const std::string index = '[' + std::to_string(j) + ']';
    const double expected = std::sqrt(2 / fit.expert_rows(j));
    CHECK(std::abs(errors["log variance" + index].error->observed / expected - 1) < 1e-6);
  }
}

// Expert 0 has the 12 rows at x = 6 alone: its mean there and its variance are determined, its slope and intercept not.
TEST_CASE("standard_errors: exist for what the information determines, also where it is singular", "[gaussian]") {
  moe::RegressionData data{moe::Matrix<double>(60, 1), Eigen::VectorXd(60)};
  for (Index i = 0; i < 60; ++i) {
    const double x = i < 12 ? 6 : 0.25 * static_cast<double>(i % 16);
    data.x(i, 0) = x;
    data.y(i) = (i < 12 ? 9 : 1 + 2 * x) + std::cos(3.7 * static_cast<double>(i));
  }
  const Eigen::ArrayXd x = data.x.col(0).tail(48).array(), y = data.y.tail(48).array();
  const double spread = (x - x.mean()).square().sum(), slope = ((x - x.mean()) * y).sum() / spread;
  const double intercept = y.mean() - slope * x.mean(), variance = (y - intercept - slope * x).square().mean();
  const double level = data.y.head(12).mean(), own = (data.y.head(12).array() - level).square().mean();
  auto model = moe::GaussianMoe<moe::TopKGate>::zero(2, 1, moe::TopKGate{.k = 1});
  model.gate_slope(0, 0) = 1;
  model.gate_bias(0) = -5;
  model.slope << 0, slope;
  model.intercept << level, intercept;
  model.variance << own, variance;
  const moe::StandardErrors errors = moe::standard_errors(model, data);
  CAPTURE(errors.explanation);
  REQUIRE(errors.available());
  CHECK(errors.coordinates.size() == 4);
  CHECK_THAT(errors.explanation, ContainsSubstring("the information is singular"));
  for (const char* name : {"a[0,0]", "b[0]"})
    CHECK((!errors[name].error && errors[name].reason == NoStandardError::Singular));
  CHECK(errors["beta0[0]"].reason == NoStandardError::HardGate);
  const std::pair<const char*, double> expected[] = {
      {"variance[0]", own * std::sqrt(2.0 / 12)},
      {"a[1,0]", std::sqrt(variance / spread)},
      {"b[1]", std::sqrt(variance * (1.0 / 48 + x.mean() * x.mean() / spread))},
      {"variance[1]", variance * std::sqrt(2.0 / 48)}};
  for (const auto& [name, error] : expected) {
    CAPTURE(name);
    REQUIRE(errors[name].error);
    CHECK(std::abs(errors[name].error->observed / error - 1) < 1e-9);
  }
}

TEST_CASE("standard_errors: say why there are none", "[gaussian]") {
  const auto data = test::simulated(test::two_lines(), 200, 5);
  const auto fit = moe::fit_from(data, test::two_lines());
  SECTION("not a maximum") {
    const auto errors = moe::standard_errors(test::two_lines(), data);
    CHECK(errors.reason == NoStandardError::NotAMaximum);
    CHECK(errors.coordinates.empty());
    for (const auto& p : errors.parameters) CHECK((!p.error && p.reason == NoStandardError::NotAMaximum));
  }
  SECTION("an expert that no row ever meets") {
    auto model = moe::GaussianMoe<moe::TopKGate>::zero(3, 1, moe::TopKGate{.k = 2});
    model.gate_slope.bottomRows(2) = fit.model.gate_slope;
    model.slope.bottomRows(2) = fit.model.slope;
    model.gate_bias << -20, fit.model.gate_bias;
    model.intercept << 0, fit.model.intercept;
    model.variance << 1, fit.model.variance;
    const auto errors = moe::standard_errors(model, data);
    CHECK(errors.available());
    for (const char* name : {"a[0,0]", "b[0]", "variance[0]"})
      CHECK((!errors[name].error && errors[name].reason == NoStandardError::Singular));
    for (const char* name : {"a[1,0]", "b[2]", "variance[1]"}) CHECK(errors[name].error);
  }
  SECTION("an expert twice, which the likelihood would rather tell apart: a saddle") {
    auto model = moe::GaussianMoe<>::zero(3, 1);
    model.gate_slope << fit.model.gate_slope, fit.model.gate_slope.row(1);
    model.slope << fit.model.slope, fit.model.slope.row(1);
    model.gate_bias << fit.model.gate_bias.array() + Eigen::Array2d(std::log(2), 0).transpose(), 0;
    model.intercept << fit.model.intercept, fit.model.intercept(1);
    model.variance << fit.model.variance, fit.model.variance(1);
    REQUIRE(std::abs(moe::log_likelihood(model, data) - fit.log_likelihood) < 1e-10);
    CHECK(moe::standard_errors(model, data).reason == NoStandardError::NotAMaximum);
  }
  SECTION("a variance at the floor") {
    auto collapsed = fit;
    collapsed.flags.at_floor = true;
    CHECK(errors_of(collapsed, data).reason == NoStandardError::VarianceAtFloor);
    CHECK(moe::standard_errors(fit.model, data, {.variance_floor = 10}).reason == NoStandardError::VarianceAtFloor);
  }
  SECTION("a separated gate: only the experts have them") {
    auto separated = fit;
    separated.flags.separated = true;
    const auto errors = errors_of(separated, data);
    CHECK(errors.available());
    CHECK(errors["beta0[0]"].reason == NoStandardError::SeparatedGate);
    CHECK(errors["a[0,0]"].error);
  }
}

TEST_CASE("standard_errors: 95 % intervals cover the truth in 95 % of samples", "[gaussian][property]") {
  constexpr Index kSamples = 250;
  std::vector<Index> covered(8), covered_sandwich(8);
  Index available = 0;
  const auto truth = test::two_lines();
  const Eigen::VectorXd theta = moe::pack(truth, moe::layout(truth));
  for (Index s = 0; s < kSamples; ++s) {
    const auto data = test::simulated(truth, 300, 1000 + static_cast<std::uint64_t>(s));
    const auto fit = moe::fit_from(data, truth);
    const auto errors = moe::standard_errors(fit, data);
    if (!errors.available()) continue;
    ++available;
    for (std::size_t i = 0; i < 8; ++i) {
      const auto& p = errors.parameters[i];
      const double miss = std::abs(p.estimate - theta(static_cast<Index>(i)));
      covered[i] += miss < 1.959963984540054 * p.error->observed ? 1 : 0;
      covered_sandwich[i] += miss < 1.959963984540054 * p.error->sandwich ? 1 : 0;
    }
  }
  CHECK(available >= kSamples - 3);
  // 4 binomial deviations, 5 %, and 2 % for what n = 300 lacks of normality (sandwich: 3 %)
  const double n = static_cast<double>(available), deviation = std::sqrt(0.95 * 0.05 / n);
  for (std::size_t i = 0; i < 8; ++i) {
    CAPTURE(i, available);
    CHECK(std::abs(static_cast<double>(covered[i]) / n - 0.95) < 4 * deviation + 0.02);
    CHECK(std::abs(static_cast<double>(covered_sandwich[i]) / n - 0.95) < 4 * deviation + 0.03);
  }
}

TEST_CASE("standard_errors: errors name what is wrong", "[gaussian][error]") {
  const auto data = test::simulated(test::two_lines(), 50, 6);
  CHECK_THROWS_WITH(moe::standard_errors(test::two_lines(), data, {.level = 1}), ContainsSubstring("level is 1"));
  CHECK_THROWS_WITH(moe::standard_errors(test::two_lines(), data, {.largest_distance = 0}),
                    ContainsSubstring("largest_distance is 0"));
  auto shifted = test::two_lines();
  shifted.gate_bias(1) = 1;
  CHECK_THROWS_WITH(moe::standard_errors(shifted, data), ContainsSubstring("normal form"));
  const auto errors = moe::standard_errors(test::two_lines(), data);
  CHECK_THROWS_WITH(errors["gamma"], ContainsSubstring("no parameter \"gamma\""));
}
