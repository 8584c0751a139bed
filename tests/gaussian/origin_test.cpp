// SPDX-License-Identifier: MIT
// Inputs far from 0, as years: where a gate has a bias to take a shift up nothing changes, elsewhere the fit says so.
#include <cmath>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::RegressionData;

namespace {

template <class Act>
using Free = moe::ActivationGate<Act, moe::LearnableTemperature>;
template <class Act>
using Fixed = moe::ActivationGate<Act, moe::ConstantSchedule>;

/// From (-1, 1) to 1990 ... 2020.
RegressionData years(const RegressionData& data) { return {(2005 + 15 * data.x.array()).matrix(), data.y}; }

template <class Gate>
Gate inside(Gate gate) {
  gate.bias_place = moe::BiasPlace::Inside;
  return gate;
}

/// The same model of x as of years.
template <class Gate>
RegressionData drawn(const Gate& gate, Index n = 200) {
  auto truth = moe::GaussianMoe<Gate>(test::two_lines(), gate);
  truth.gate_slope(0, 0) = -3;
  truth.temperature = moe::GateModel<Gate>::temperature(gate);
  return test::simulated(truth, n, 1);
}

template <class Gate>
void require_invariance(const char* name, const Gate& gate, moe::LastSlope last = moe::LastSlope::Zero) {
  const RegressionData data = drawn(gate);
  const moe::FitOptions options{.starts = 6, .last_slope = last};
  const auto near = moe::fit(data, 2, gate, options), far = moe::fit(years(data), 2, gate, options);
  CAPTURE(name);
  CHECK(std::abs(far.log_likelihood - near.log_likelihood) < 1e-5);  // both within 1e-6 of it (remaining_tolerance)
  CHECK_FALSE(far.flags.far_origin);
}

}  // namespace

TEST_CASE("fit: inputs far from 0 change nothing where a bias takes up the shift, every such gate",
          "[gaussian][property]") {
  const Eigen::RowVectorXd zeros = Eigen::RowVectorXd::Zero(2);
  require_invariance("softmax", moe::SoftmaxGate{});
  require_invariance("top-1 by logit", moe::TopKGate{.k = 1});
  require_invariance("top-2 of 2 by logit", moe::TopKGate{.k = 2});
  require_invariance("all, ranked without a bias", moe::TopKGate{.k = 2, .weight_bias = zeros});
  require_invariance("temperature", test::TemperatureGate{.temperature = {0.5}});
  require_invariance("free temperature", test::FreeTemperatureGate{});
  require_invariance("identity", Fixed<moe::Identity>{});
  require_invariance("identity, free temperature", Free<moe::Identity>{});
}

TEST_CASE("fit: inputs far from 0 change nothing where the bias is inside of the activation", "[gaussian][property]") {
  require_invariance("tanh", inside(Free<moe::Tanh>{}));
  require_invariance("tanh, both slopes", inside(Free<moe::Tanh>{}), moe::LastSlope::Free);
  require_invariance("tanh, fixed", inside(Fixed<moe::Tanh>{.sparse = {.temperature = {0.3}}}));
  require_invariance("sigmoid", inside(Fixed<moe::Sigmoid>{.sparse = {.temperature = {0.1}}}));
  require_invariance("gelu", inside(Fixed<moe::Gelu>{}));
  require_invariance("silu", inside(Fixed<moe::Silu>{}));
  require_invariance("softplus", inside(Fixed<moe::Softplus>{}));
  require_invariance("relu", inside(Fixed<moe::Relu>{}));
}

TEST_CASE("fit: an activation without a bias inside is not lost far from 0, and says that its origin matters",
          "[gaussian]") {
  // As tau falls and beta_1 with it, act(beta_1 . x) becomes a line on any interval, and the gate a softmax: the
  // supremum is at least that of a softmax, but for the 1e-4 at which tau ends.
  auto truth = test::two_lines();
  truth.gate_slope(0, 0) = -6;
  const RegressionData data = test::simulated(truth, 200, 1), far = years(data);
  const moe::FitOptions options{.starts = 12};
  const double softmax = moe::fit(data, 2, moe::SoftmaxGate{}, options).log_likelihood;
  const auto check = [&](const auto& gate) {
    const auto fit = moe::fit(far, 2, gate, options);
    CHECK(fit.log_likelihood > softmax - 0.01);
    CHECK(fit.flags.far_origin);
    CHECK_FALSE(moe::fit(data, 2, gate, {.starts = 2}).flags.far_origin);
  };
  check(Free<moe::Tanh>{});
  check(Free<moe::Sigmoid>{});
  check(Free<moe::Gelu>{});
  check(Free<moe::Relu>{});
}

TEST_CASE("fit: gates that cannot take up a shift say so, and only where the origin is far", "[gaussian]") {
  const RegressionData data = test::simulated(test::three_lines(), 200, 1), far = years(data);
  const auto check = [&](const auto& gate, bool said) {
    CHECK(moe::fit(far, 3, gate, {.starts = 2}).flags.far_origin == said);
    CHECK_FALSE(moe::fit(data, 3, gate, {.starts = 2}).flags.far_origin);
  };
  const Eigen::RowVectorXd zeros = Eigen::RowVectorXd::Zero(3);
  check(Fixed<moe::Tanh>{.sparse = {.temperature = {0.3}}}, true);
  check(moe::ActivationGate<>{}, true);
  check(moe::TopKGate{.k = 2, .weight_bias = zeros}, true);
  check(moe::TopKGate{.k = 1, .weight_bias = zeros}, true);
  check(moe::TopKGate{.k = 2}, false);
  check(inside(Fixed<moe::Tanh>{}), false);
  CHECK_FALSE(moe::fit(far, 1, Free<moe::Tanh>{}).flags.far_origin);  // one expert has no gate
}

TEST_CASE("fit: gates that keep their origin fit other units of x alike", "[gaussian][property]") {
  const auto check = [&](const auto& gate) {
    const RegressionData data = drawn(gate), other{0.01 * data.x, data.y};
    const auto a = moe::fit(data, 2, gate, {.starts = 6}), b = moe::fit(other, 2, gate, {.starts = 6});
    CHECK(std::abs(a.log_likelihood - b.log_likelihood) < 1e-5);
    // Up to the sign: tanh(-u) = -tanh(u), so the experts may stand in the other order.
    CHECK(std::abs(std::abs(b.model.gate_slope(0, 0) / a.model.gate_slope(0, 0)) / 100 - 1) < 1e-3);
  };
  check(Free<moe::Tanh>{});
  check(Fixed<moe::Sigmoid>{.sparse = {.temperature = {0.1}}});
  check(Fixed<moe::Softplus>{.sparse = {.temperature = {0.3}}});
}

TEST_CASE("origin_is_far: 0 is farther from the mean than every row, in units of their covariance", "[gaussian]") {
  const auto far = [](moe::Matrix<double> x) {
    const RegressionData data{x, Eigen::VectorXd::Zero(x.rows())};
    return moe::detail::origin_is_far({data, moe::detail::Standardisation::none(x.cols())});
  };
  const Eigen::VectorXd unit = Eigen::VectorXd::LinSpaced(11, 0, 1);
  CHECK_FALSE(far(unit));  // a row is there
  CHECK_FALSE(far((unit.array() - 0.05).matrix()));
  CHECK(far((unit.array() + 0.05).matrix()));
  moe::Matrix<double> line(11, 2);  // both inputs go through 0, but 0 is far from their line
  line << unit.array() - 0.3, unit.array() + 0.3 + 1e-3 * unit.array().square();
  CHECK(far(line));
}

TEST_CASE("standard_errors: those of a gate with an activation follow a shift of x", "[gaussian][property]") {
  const auto gate = inside(Fixed<moe::Tanh>{.sparse = {.temperature = {0.3}}});
  const RegressionData data = drawn(gate, 500);
  const auto near = moe::fit(data, 2, gate, {.starts = 6}), far = moe::fit(years(data), 2, gate, {.starts = 6});
  const auto here = moe::standard_errors(near, data), there = moe::standard_errors(far, years(data));
  REQUIRE(here.available());
  CAPTURE(there.explanation);
  REQUIRE(there.available());
  // the maxima are 1e-6 apart in log-likelihood: 1e-3 standard errors, which changes these by less than 1e-3
  for (const char* name : {"beta1[0,0]", "a[0,0]", "a[1,0]"})
    CHECK(std::abs(there[name].error->observed * 15 / here[name].error->observed - 1) < 1e-3);
  CHECK(std::abs(there["log variance[0]"].error->observed / here["log variance[0]"].error->observed - 1) < 1e-3);
}
