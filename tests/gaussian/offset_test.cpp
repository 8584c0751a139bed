// SPDX-License-Identifier: MIT
// Offsets: a known part of every expert's mean, so that all is as if it had been taken off y.
#include <array>
#include <cmath>
#include <limits>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/design/regression.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/bootstrap.hpp"
#include "moe/gaussian/inference/cross_validation.hpp"
#include "moe/gaussian/inference/identifiability.hpp"
#include "moe/gaussian/inference/summary.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using test::message_of;

/// Data with offsets and weights, and the same with the offsets taken off y: in multiples of 1/8 that y is rounded to,
/// so that y - offset is exact.
struct Both {
  moe::RegressionData with, without;

  explicit Both(moe::RegressionData data) : without(std::move(data)) {
    without.y = without.y.unaryExpr([](double y) { return std::round(y * 1048576) / 1048576; });
    without.weights = Eigen::VectorXd::NullaryExpr(without.num_rows(), [](Index i) { return double(i % 4); });
    with = without;
    with.offset = Eigen::VectorXd::NullaryExpr(without.num_rows(), [](Index i) { return double(i * i % 23) / 8 - 1; });
    with.y += with.offset;
  }
};

}  // namespace

TEST_CASE("offset: passes are those over y - offset, to the bit, for every gate", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    const Both data(test::sample_data(model, 131));
    CHECK(moe::log_likelihood(model, data.with) == moe::log_likelihood(model, data.without));
    CHECK(moe::log_density(model, data.with) == moe::log_density(model, data.without));
    CHECK(moe::score(model, data.with) == moe::score(model, data.without));
    CHECK(moe::observed_information(model, data.with) == moe::observed_information(model, data.without));
    CHECK(moe::score_covariance(model, data.with) == moe::score_covariance(model, data.without));
    CHECK(moe::responsibilities(model, data.with) == moe::responsibilities(model, data.without));
  });
}

TEST_CASE("offset: fits, errors, residuals, folds and choices are those of y - offset, to the bit", "[gaussian]") {
  const auto truth = test::two_lines();
  const Both data(test::simulated(truth, 120, 8));
  const auto fit = moe::fit(data.with, 2), expected = moe::fit(data.without, 2);
  CHECK(fit.log_likelihood == expected.log_likelihood);
  CHECK(fit.model.slope == expected.model.slope);
  CHECK(fit.model.gate_slope == expected.model.gate_slope);
  CHECK(moe::standard_errors(fit, data.with).sandwich == moe::standard_errors(expected, data.without).sandwich);
  CHECK(moe::criteria(fit, data.with).icl == moe::criteria(expected, data.without).icl);
  const auto a = moe::summary(fit, data.with), b = moe::summary(expected, data.without);
  for (std::size_t q = 0; q < 5; ++q)  // means are some 8, of deviations .4: 4 roundings of them, and those of Phi^-1
    CHECK(std::abs(a.residual_quantiles[q] - b.residual_quantiles[q]) < 1e-12);
  CHECK(a.tenths == b.tenths);
  const moe::CrossValidationOptions folds{.folds = 3};
  CHECK(moe::cross_validate(data.with, {1, 2}, moe::SoftmaxGate{}, folds).rows[1].log_density ==
        moe::cross_validate(data.without, {1, 2}, moe::SoftmaxGate{}, folds).rows[1].log_density);
  CHECK(to_string(moe::identifiability(fit.model, data.with)) ==
        to_string(moe::identifiability(expected.model, data.without)));
}

TEST_CASE("offset: predictions and draws are shifted by it", "[gaussian]") {
  const auto model = test::three_lines();
  const Both data(test::simulated(model, 60, 3));
  const moe::Matrix<double>& x = data.with.x;
  const Eigen::VectorXd& o = data.with.offset;
  const auto near = [](const auto& p, const auto& q) {
    return (p - q).cwiseAbs().maxCoeff() < 1e-13 * 10;  // some roundings of numbers below 10; quantiles have 2 ulp more
  };
  const auto moments = moe::predict_moments(model, data.with), plain = moe::predict_moments(model, x);
  CHECK(near(moments.mean, plain.mean + o));
  CHECK(near(moments.variance, plain.variance));
  const std::array levels = {0.05, 0.5, 0.99};
  CHECK(near(moe::predict_quantiles(model, data.with, levels),
             (moe::predict_quantiles(model, x, levels).colwise() + o).eval()));
  CHECK(near(moe::predict_mode(model, data.with), moe::predict_mode(model, x) + o));
  CHECK(near(moe::expert_means(model, data.with), (moe::expert_means(model, x).colwise() + o).eval()));
  CHECK(near(moe::predict_cdf(model, data.with, data.with.y), moe::predict_cdf(model, x, data.without.y)));
  CHECK(near(moe::predict_density(model, data.with, data.with.y), moe::predict_density(model, x, data.without.y)));
  CHECK(moe::predict_expert(model, data.with, data.with.y) == moe::predict_expert(model, x, data.without.y));
  const auto draws = moe::draw(model, data.with, 5), expected = moe::draw(model, x, 5);
  CHECK(near(draws.y, expected.y + o));
  CHECK(draws.experts == expected.experts);
  moe::RegressionData no_y = data.with;
  no_y.y.resize(0);
  CHECK(moe::predict_mean(model, no_y) == moments.mean);
}

TEST_CASE("offset: a bootstrap draws and refits around it", "[gaussian]") {
  const auto truth = test::two_lines();
  const Both data(test::simulated(truth, 60, 2));
  const moe::BootstrapOptions options{.replications = 3};
  const auto with = moe::bootstrap(truth, data.with, options), without = moe::bootstrap(truth, data.without, options);
  // Samples differ by a rounding of some 4e-16, which estimates magnify by their condition, below 1e4 here, and
  // Newton's method ends within the square root of the tolerance of 1e-6 on the likelihood, divided by its curvature of
  // order n.
  CHECK((with.replicates - without.replicates).cwiseAbs().maxCoeff() < 1e-5);
}

TEST_CASE("offset: with one expert it is that of least squares", "[gaussian]") {
  // R 4.2: coef(lm(dist ~ speed, cars, offset = 2 * speed)) is that of lm(dist ~ speed) with 2 less in the slope.
  moe::RegressionData data = test::simulated(test::two_lines(), 90, 9);
  data.y += data.x.col(0) * 3;
  const auto plain = moe::fit(data, 1);
  data.offset = 2 * data.x.col(0);
  const auto fit = moe::fit(data, 1);
  CHECK(std::abs(fit.model.slope(0, 0) - (plain.model.slope(0, 0) - 2)) < 1e-12);
  CHECK(std::abs(fit.model.intercept(0) - plain.model.intercept(0)) < 1e-12);
  CHECK(std::abs(fit.log_likelihood - plain.log_likelihood) < 1e-10);
}

TEST_CASE("offset: a formula has terms for it, which a design keeps", "[gaussian]") {
  const moe::Formula formula = moe::parse_formula("y ~ . + offset(o) + offset(`p q`) | z");
  CHECK(formula.offsets == std::vector<std::string>{"o", "p q"});
  moe::DataFrame frame{.num_rows = 5};
  const auto column = [&](const char* name, std::vector<double> numbers) {
    frame.columns.push_back({.name = name, .numbers = std::move(numbers)});
  };
  column("y", {1, 2, 4, 7, 5});
  column("z", {0, 1, 2, 4, 3});
  column("o", {1, 0, std::nan(""), 2, 3});
  column("p q", {0.5, 0.5, 1, 1, 1});
  const moe::Regression r = moe::regression(frame, formula);
  CHECK(r.design.names() == std::vector<std::string>{"z"});  // `.` has no offsets
  CHECK(r.data().offset == Eigen::Vector4d(1.5, 0.5, 3, 4));
  CHECK(moe::design_rows(r.design, frame).data.offset == r.data().offset);
  frame.columns.pop_back();
  CHECK_THAT(message_of([&] { moe::design_rows(r.design, frame); }), ContainsSubstring("there is no column 'p q'"));
  for (const auto& [text, part] :
       {std::pair("y ~ x - offset(o)", "takes an offset away"),
        std::pair("y ~ x | z + offset(o)", "offset of the gate"), std::pair("y ~ x + offset(o) + offset(o)", "twice"),
        std::pair("y ~ x + offset(log(o))", "')'")})
    CHECK_THAT(message_of([text = text] { moe::parse_formula(text); }), ContainsSubstring(part));
  CHECK_THAT(message_of([&] { moe::regression(frame, moe::parse_formula("y ~ z + offset(y)")); }),
             ContainsSubstring("'y' is the response and an offset"));
}

TEST_CASE("offset: what is none is refused by name", "[gaussian][error]") {
  const auto truth = test::two_lines();
  moe::RegressionData data = test::simulated(truth, 20, 2);
  data.offset.setZero(19);
  CHECK_THAT(message_of([&] { moe::fit(data, 2); }), ContainsSubstring("moe::fit: offset has 19 numbers, expected"));
  CHECK_THAT(message_of([&] { moe::predict_mean(truth, data); }), ContainsSubstring("moe::predict_moments: offset is"));
  data.offset.setZero(20);
  data.offset(3) = std::nan("");
  CHECK_THAT(message_of([&] { moe::log_likelihood(truth, data); }), ContainsSubstring("offset is nan in row 3"));
  CHECK_THAT(message_of([&] { moe::draw(truth, data, 1); }), ContainsSubstring("offset is nan in row 3"));
  data.offset(3) = -std::numeric_limits<double>::max();
  data.y(3) = std::numeric_limits<double>::max();
  CHECK_THAT(message_of([&] { moe::fit(data, 2); }), ContainsSubstring("that leave y - offset finite"));
}
