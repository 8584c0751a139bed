// SPDX-License-Identifier: MIT
// When a fit says that its gate has no finite maximum, and when it gives standard errors instead.
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/identifiability.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "support/catch.hpp"

using moe::Identifiability;
using moe::Index;
using moe::NoStandardError;
using moe::RegressionData;

namespace {

/// Two lines with a gate of that slope.
moe::GaussianMoe<> lines_with_slope(double slope) {
  auto model = test::two_lines();
  model.gate_slope(0, 0) = slope;
  return model;
}

/// Two lines that meet at a sharp border.
RegressionData step(Index n) {
  return test::simulated(moe::GaussianMoe<moe::TopKGate>(test::two_lines(), {.k = 1}), n, 1);
}

/// Both inputs of data (x, w): x and x + difference * w.
RegressionData collinear(const RegressionData& data, double difference) {
  RegressionData out = data;
  out.x.col(1) = data.x.col(0) + difference * data.x.col(1);
  return out;
}

/// One expert's gate depends on x alone, but the experts' means do not know of w.
RegressionData plane() {
  auto truth = moe::GaussianMoe<>::zero(2, 2);
  truth.gate_slope.row(0) << -2, 0.5;
  truth.slope << -1.5, 0, 1.5, 0;
  truth.intercept << -1, 1;
  truth.variance << 0.35, 0.15;
  return test::simulated(truth, 2000, 3);
}

/// Requires that everything says so.
template <class Gate>
void require_separated(const char* what, const moe::GaussianFit<Gate>& fit, const RegressionData& data) {
  CAPTURE(what, fit.log_likelihood, fit.model.gate_slope, fit.model.temperature);
  CHECK(fit.flags.separated);
  const auto errors = moe::standard_errors(fit, data);
  for (Index i = 0; i < moe::layout(fit.model).num_gate(); ++i)
    CHECK(errors.parameters[static_cast<std::size_t>(i)].reason == NoStandardError::SeparatedGate);
  CHECK(errors["a[0,0]"].error);
}

}  // namespace

TEST_CASE("fit: a steep gate that many rows bear out is not separated, and has standard errors", "[gaussian]") {
  const auto truth = lines_with_slope(-70);
  const auto data = test::simulated(truth, 20'000, 1);
  const auto fit = moe::fit_from(data, truth);
  CHECK(fit.converged);
  CHECK_FALSE(fit.flags.separated);
  CHECK_FALSE(fit.flags.at_box);
  CHECK_FALSE(moe::identifiability(fit.model, data).find(Identifiability::SeparatedGate));
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors["beta1[0,0]"].error);
  // Were the expert of every row known: 10^4 rows per unit, and the integral of x^2 p (1 - p) at a slope of s is
  // pi^2 / (3 s^3); what is not known makes it larger, by less than 2 here.
  const double known = std::sqrt(3 * std::pow(70.0, 3) / (1e4 * std::acos(-1.0) * std::acos(-1.0)));
  CHECK(errors["beta1[0,0]"].error->observed > 0.8 * known);
  CHECK(errors["beta1[0,0]"].error->observed < 2 * known);
  CHECK(std::abs(fit.model.gate_slope(0, 0) + 70) < 4.5 * errors["beta1[0,0]"].error->observed);
}

TEST_CASE("fit: nearly collinear inputs change neither flags nor standard errors of what they say", "[gaussian]") {
  const auto data = plane();
  const moe::FitOptions options{.starts = 4, .gate_box = 1e5};  // coefficients are 0.5 / difference
  const auto plain = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  const double expected = moe::standard_errors(plain, data)["beta1[0,1]"].error->observed;
  for (const double difference : {1e-2, 1e-3, 1e-4}) {  // correlations from 1 - 5e-5 to 1 - 5e-9
    const auto near = collinear(data, difference);
    const auto fit = moe::fit(near, 2, moe::SoftmaxGate{}, options);
    CAPTURE(difference, fit.model.gate_slope);
    CHECK(std::abs(fit.log_likelihood - plain.log_likelihood) < 2e-6);  // remaining_tolerance, twice
    CHECK_FALSE(fit.flags.separated);
    CHECK_FALSE(fit.flags.at_box);
    CHECK_FALSE(fit.flags.singular);
    const auto errors = moe::standard_errors(fit, near);
    CAPTURE(errors.explanation);
    REQUIRE(errors["beta1[0,1]"].error);
    // w = (x2 - x1) / difference: 1e-16 / 1e-4^2 of the information is rounded
    CHECK(std::abs(errors["beta1[0,1]"].error->observed * difference / expected - 1) < 1e-4);
    const auto report = moe::identifiability(fit.model, near);
    CHECK(report.findings.empty());
    CHECK(report.full_rank());
  }
}

TEST_CASE("fit: a coefficient that the box holds is no separation where the weights are smooth", "[gaussian]") {
  const auto near = collinear(plane(), 1e-4);
  const auto fit = moe::fit(near, 2, moe::SoftmaxGate{}, {.starts = 4, .gate_box = 100});
  CHECK(fit.flags.at_box);
  CHECK_FALSE(fit.flags.separated);
  CHECK(moe::standard_errors(fit, near).reason == NoStandardError::NotAMaximum);
}

TEST_CASE("fit: a step is separated, whether the box holds the gate or not", "[gaussian]") {
  for (const Index n : {200, 2000, 20'000}) {
    const auto data = step(n);
    const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 4});
    CAPTURE(n, fit.flags.at_box);
    require_separated("step", fit, data);
    if (!fit.flags.at_box) CHECK(moe::identifiability(fit.model, data).find(Identifiability::SeparatedGate));
    const auto ridge = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 4, .ridge = 0.1});
    CHECK_FALSE(ridge.flags.separated);
  }
}

TEST_CASE("fit: a step between some experts, or in some directions, is separated too", "[gaussian]") {
  const moe::RandomField random(moe::Purpose::User, 10);
  SECTION("one sharp border and two smooth ones") {
    auto data = test::simulated(test::three_lines(), 900, 4);
    for (Index i = 0; i < 900; ++i)
      if (data.x(i, 0) > 0.5) data.y(i) = 10 + 0.2 * random.normal(i);
    require_separated("border", moe::fit(data, 4, moe::SoftmaxGate{}, {.starts = 20}), data);
  }
  SECTION("two pairs of experts, smooth within") {
    auto data = test::simulated(test::three_lines(), 900, 4);
    for (Index i = 0; i < 900; ++i)
      if (data.x(i, 0) > -0.1) data.y(i) += 10;
    require_separated("pairs", moe::fit(data, 4, moe::SoftmaxGate{}, {.starts = 20}), data);
  }
  SECTION("a class that has an expert of its own") {
    const auto lines = test::simulated(test::two_lines(), 600, 3);
    RegressionData data{moe::Matrix<double>(600, 2), lines.y};
    for (Index i = 0; i < 600; ++i) {
      const bool other = random.uniform(i) < 0.2;
      data.x.row(i) << lines.x(i, 0), other ? 1 : 0;
      if (other) data.y(i) = 5 + 0.3 * random.normal(i);
    }
    const auto fit = moe::fit(data, 3, moe::SoftmaxGate{}, {.starts = 10});
    CHECK_FALSE(fit.flags.at_box);
    CHECK(moe::identifiability(fit.model, data).find(Identifiability::SeparatedGate));
    CHECK(fit.flags.separated);
  }
}

TEST_CASE("fit: a temperature that falls to 0 separates, whatever the size of the coefficients", "[gaussian]") {
  const auto smooth = test::simulated(test::two_lines(), 600, 1);
  const auto check = [&](const auto& gate) {
    const auto hard = moe::fit(step(600), 2, gate, {.starts = 12});
    CAPTURE(hard.model.gate_slope, hard.model.temperature);
    CHECK(hard.flags.separated);
    CHECK_FALSE(moe::fit(smooth, 2, gate, {.starts = 12}).flags.separated);
  };
  check(moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>{});
  check(moe::DenseToSparseGate<moe::LearnableTemperature>{});
}

TEST_CASE("Bounds: hold a coefficient of the gate or a temperature", "[gaussian]") {
  moe::GaussianMoe<moe::DenseToSparseGate<moe::LearnableTemperature>> model(test::two_lines());
  const auto at = moe::layout(model);
  const moe::detail::Bounds bounds{.gate_box = 10};
  CHECK_FALSE(bounds.hold_gate(at, model));
  auto steep = model, cold = model, hot = model;
  steep.gate_slope(0, 0) = -10;
  cold.temperature = moe::detail::Bounds::kColdest;
  hot.temperature = moe::detail::Bounds::kHottest;
  CHECK(bounds.hold_gate(at, steep));
  CHECK(bounds.hold_gate(at, cold));
  CHECK(bounds.hold_gate(at, hot));
}
