// SPDX-License-Identifier: MIT
// Intervals for y with and without what is not known of the parameters.
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/prediction_intervals.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;

constexpr moe::PredictionIntervalOptions kIgnored = {.parameters = moe::ParameterUncertainty::Ignored};

/// One line through n rows, y = 1 + 2 x + noise.
moe::RegressionData line(Index n, std::uint64_t seed) {
  auto model = moe::GaussianMoe<>::zero(1, 1);
  model.slope(0, 0) = 2;
  model.intercept(0) = 1;
  model.variance(0) = 0.5;
  return test::simulated(model, n, seed);
}

/// P(Y <= y) at x for a line whose mean at x is normal and, apart from it, whose log variance is: by the trapezoidal
/// rule, which is exact to rounding for such functions.
double cdf(double y, double mean, double mean_error, double log_variance, double log_error) {
  double sum = 0, total = 0;
  for (double u = -8; u <= 8; u += 0.01) {
    const double w = std::exp(-0.5 * u * u), variance = std::exp(log_variance + log_error * u);
    sum += w * 0.5 * std::erfc((mean - y) / std::sqrt(2 * (variance + mean_error * mean_error)));
    total += w;
  }
  return sum / total;
}

}  // namespace

TEST_CASE("prediction_intervals: without uncertainty they are the quantiles of the model", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 200, 3);
  const auto fit = moe::fit_from(data, test::two_lines());
  const auto intervals = moe::prediction_intervals(fit, data, data.x, kIgnored);
  const std::array levels = {(1 - 0.95) / 2, (1 + 0.95) / 2};
  const moe::Matrix<double> expected = moe::predict_quantiles(fit.model, data.x, levels);
  CHECK(intervals.lower == expected.col(0));
  CHECK(intervals.upper == expected.col(1));
  CHECK(intervals.drawn == 0);
}

TEST_CASE("prediction_intervals: of one line they have the probability that integration gives", "[gaussian]") {
  const moe::RegressionData data = line(25, 3);
  const auto fit = moe::fit(data, 1);
  moe::Matrix<double> x(3, 1);
  x << 0, 1, 4;
  const auto intervals = moe::prediction_intervals(fit, data, x, {.draws = 20000});
  CHECK(intervals.drawn == 3);
  const auto errors = moe::standard_errors(fit, data);
  const Eigen::MatrixXd& c = errors.observed;  // of slope, intercept, log variance, the last of which is apart
  for (Index i = 0; i < 3; ++i) {
    CAPTURE(x(i, 0));
    const double at = x(i, 0), mean = fit.model.intercept(0) + fit.model.slope(0, 0) * at;
    const double error = std::sqrt(c(0, 0) * at * at + 2 * c(0, 1) * at + c(1, 1));
    const auto below = [&](double y) {
      return cdf(y, mean, error, std::log(fit.model.variance(0)), std::sqrt(c(2, 2)));
    };
    // The drawn cdf is a mean of 20000 numbers in [0, 1] of mean .025; their variance is below .025, that of pairs on
    // both sides no larger: a standard deviation of 1.1e-3, 4 of them.
    CHECK(std::abs(below(intervals.lower(i)) - 0.025) < 4.5e-3);
    CHECK(std::abs(below(intervals.upper(i)) - 0.975) < 4.5e-3);
  }
}

TEST_CASE("prediction_intervals: they cover more of few rows, and about the same of many", "[gaussian]") {
  // Of a line through n rows a new y is inside of the interval that takes parameters as known if |T| < z sqrt((n - 2) /
  // n / (1 + h)), T Student's of n - 2 degrees of freedom: well below 95 % of 12 rows. 1200 replications, each with a y
  // of its own: the number inside is binomial, 4 standard deviations.
  constexpr Index kReplications = 1200, kRows = 12;
  const double deviation = std::sqrt(0.05 * 0.95 / kReplications);
  double with = 0, without = 0;
  for (Index r = 0; r < kReplications; ++r) {
    const moe::RegressionData all = line(kRows + 1, 1000 + static_cast<std::uint64_t>(r));
    const moe::RegressionData data{.x = all.x.topRows(kRows), .y = all.y.head(kRows)};
    const auto fit = moe::fit(data, 1);
    const moe::Matrix<double> x = all.x.bottomRows(1);
    const auto inside = [&](const moe::PredictionIntervals& at) {
      return at.lower(0) <= all.y(kRows) && all.y(kRows) <= at.upper(0) ? 1.0 / kReplications : 0.0;
    };
    without += inside(moe::prediction_intervals(fit, data, x, kIgnored));
    with += inside(moe::prediction_intervals(fit, data, x, {.draws = 100}));
  }
  CAPTURE(with, without);
  CHECK(without < 0.95 - 4 * deviation);
  CHECK(with > without + 2 * deviation);
  CHECK(with > 0.95 - 0.03 - 4 * deviation);  // the variance is too small by (n - 2) / n, which costs 3 % of 12 rows
  CHECK(with < 0.95 + 4 * deviation);
  const moe::RegressionData many = test::simulated(test::two_lines(), 4000, 3);
  const auto fit = moe::fit_from(many, test::two_lines());
  const moe::Matrix<double> x = many.x.topRows(50);
  const auto a = moe::prediction_intervals(fit, many, x), b = moe::prediction_intervals(fit, many, x, kIgnored);
  CHECK(a.drawn == moe::layout(fit.model).size());
  CHECK((a.upper - b.upper).cwiseAbs().maxCoeff() < 0.1);  // standard errors of means are some 0.02, 5 of them
}

TEST_CASE("prediction_intervals: they are wider where nothing is known, and know offsets and precisions",
          "[gaussian]") {
  moe::RegressionData data = line(40, 5);
  const auto fit = moe::fit(data, 1);
  moe::RegressionData at{.x = moe::Matrix<double>::Constant(3, 1, 0.2)};
  at.offset = Eigen::Vector3d(0, 7, 0);
  at.precision = Eigen::Vector3d(1, 1, 1e8);
  const auto intervals = moe::prediction_intervals(fit, data, at);
  CHECK(std::abs(intervals.lower(1) - intervals.lower(0) - 7) < 1e-12);
  const Eigen::VectorXd width = intervals.upper - intervals.lower;
  CHECK(width(2) < 0.5 * width(0));  // what is left is the error of the mean
  CHECK(width(2) > 0.1 * width(0));
  const moe::Matrix<double> far = moe::Matrix<double>::Constant(1, 1, 50);
  const auto outside = moe::prediction_intervals(fit, data, far);
  CHECK(outside.upper(0) - outside.lower(0) > 5 * width(0));
}

TEST_CASE("prediction_intervals: a seed gives the same bits on any number of threads", "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 100, 3);
  const auto fit = moe::fit_from(data, test::two_lines());
  const auto alone = moe::prediction_intervals(fit, data, data.x, {.draws = 20});
  for (const Index workers : {1, 3}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const auto same = moe::prediction_intervals(fit, data, data.x, {.draws = 20});
    CHECK(same.lower == alone.lower);
    CHECK(same.upper == alone.upper);
  }
  const moe::Matrix<double> row = data.x.row(7);
  CHECK(moe::prediction_intervals(fit, data, row, {.draws = 20}).lower(0) == alone.lower(7));
  CHECK(moe::prediction_intervals(fit, data, data.x, {.draws = 20, .seed = 2}).lower != alone.lower);
}

TEST_CASE("prediction_intervals: what has no standard error is taken as known, and said", "[gaussian]") {
  const auto truth = moe::GaussianMoe<moe::TopKGate>(test::three_lines(), {.k = 1});
  const moe::RegressionData data = test::simulated(truth, 200, 3);
  const auto fit = moe::fit_from(data, truth);
  const auto intervals = moe::prediction_intervals(fit, data, data.x, {.draws = 20});
  CHECK(intervals.drawn == 9);  // lines and variances
  CHECK_THAT(intervals.explanation, ContainsSubstring("one active expert"));
}

TEST_CASE("prediction_intervals: options out of range are refused by name", "[gaussian][error]") {
  const moe::RegressionData data = line(40, 5);
  const auto fit = moe::fit(data, 1);
  const auto message = [&](const moe::PredictionIntervalOptions& options) {
    return test::message_of([&] { moe::prediction_intervals(fit, data, data.x, options); });
  };
  CHECK_THAT(message({.level = 1}), ContainsSubstring("moe::prediction_intervals: level is 1, expected"));
  CHECK_THAT(message({.draws = 0}), ContainsSubstring("draws is 0, expected an even number"));
  CHECK_THAT(message({.draws = 3}), ContainsSubstring("draws is 3"));
  const moe::Matrix<double> wide = moe::Matrix<double>::Zero(2, 2);
  CHECK_THAT(test::message_of([&] { moe::prediction_intervals(fit, data, wide); }), ContainsSubstring("x is [2, 2]"));
}
