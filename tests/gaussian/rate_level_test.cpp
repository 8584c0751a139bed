// SPDX-License-Identifier: MIT
#include "moe/gaussian/theory/rate_level.hpp"

#include "gaussian/samples.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using Softmax = moe::GaussianMoe<moe::SoftmaxGate>;

template <class G>
moe::GaussianMoe<G> truth(const G& gate) {
  auto m = moe::GaussianMoe<G>::zero(2, 1, gate);
  m.gate_slope(0, 0) = 3;
  m.gate_bias(0) = 0.5;
  m.slope << 1, -1;
  m.intercept << 1, -1;
  m.variance << 0.3, 0.4;
  return m;
}

/// Starts whose distance n does not shrink: the levels are the likelihood's.
moe::RateOptions options(Index replications) {
  moe::RateOptions o{.rows = {1000, 2000}, .replications = {replications}, .distance_inputs = 0};
  o.noise = {.gate = {.scale = 0.1}, .expert = {.scale = 0.1}, .variance = {.scale = 0.01}};
  o.noise.gate.power = o.noise.expert.power = o.noise.variance.power = 0;
  return o;
}

}  // namespace

TEST_CASE("rate levels: excess is p / 2 and squared gate errors q, of maxima alone", "[gaussian]") {
  const auto o = options(40);
  const auto model = truth(moe::SoftmaxGate{});
  const moe::RateExperiment fits = moe::rate_experiment(model, o);
  CHECK((fits.identified == 8 && fits.identified_gate == 2));
  const moe::RateLevel excess = moe::excess_level(fits), gate = moe::gate_level(fits);
  CHECK((excess.count == 80 && excess.expected == 4 && gate.expected == 2));
  CHECK(std::abs(excess.error - std::sqrt(4.0 / 80)) < 1e-15);
  CHECK(std::abs(gate.error - std::sqrt(4.0 / 80)) < 1e-15);
  CHECK(std::abs(excess.standardised()) < 4);  // p = 6e-5 by the normal law of means of 80
  CHECK(std::abs(gate.standardised()) < 4);
  // From every other row, errors have twice the variance: the mean of excess is 0, -sqrt(p R / 2) = -18 standard
  // errors off, that of the gate is 2 q, sqrt(q R / 2) = 9 above; each by chance 1 to 2 nearer or farther.
  const moe::RateExperiment halves =
      moe::rate_experiment(model, o, [&](const moe::RegressionData& data, const Softmax& start) {
        moe::RegressionData half;
        const auto even = Eigen::seq(0, data.num_rows() - 1, 2);
        half.x = data.x(even, Eigen::all);
        half.y = data.y(even);
        auto fit = moe::fit_from(half, start);
        fit.log_likelihood = moe::log_likelihood(fit.model, data);
        return fit;
      });
  CHECK(moe::excess_level(halves).standardised() < -10);
  CHECK(moe::gate_level(halves).standardised() > 4);
}

TEST_CASE("rate levels: a ray and idle lengths are no parameters", "[gaussian]") {
  using Free = moe::LearnableTemperature;
  auto o = options(20);
  o.noise.log_temperature = {.scale = 0.2, .power = 0};
  moe::DenseToSparseGate<Free> linear{.temperature = Free::starting_at(1)};
  CHECK(moe::rate_experiment(truth(linear), o).identified_gate == 2);
  CHECK(std::abs(moe::gate_level(moe::rate_experiment(truth(linear), o)).standardised()) < 4);
  moe::ActivationGate<moe::Tanh, Free> tanh;
  tanh.sparse.temperature = Free::starting_at(1);
  CHECK(moe::rate_experiment(truth(tanh), o).identified_gate == 3);
}

TEST_CASE("gate_wald: what standard_errors() says, whatever the order of experts", "[gaussian]") {
  const auto model = truth(moe::SoftmaxGate{});
  const moe::RegressionData data = test::sample_data(model, 500);
  auto fit = moe::fit_from(data, model);
  const moe::StandardErrors errors = moe::standard_errors(fit, data);
  const auto at = moe::layout(model);
  // fits are in ascending order of intercept, the truth is not: its gate, with the experts exchanged
  const Eigen::Vector2d error(fit.model.gate_slope(0, 0) + 3, fit.model.gate_bias(0) + 0.5);
  REQUIRE(at.num_gate() == 2);
  const double expected = error.dot(errors.observed.topLeftCorner(2, 2).inverse() * error);
  // both invert an information whose condition number is below 1e4
  CHECK(std::abs(moe::detail::gate_wald(fit.model, model, data) / expected - 1) < 1e-9);
}

TEST_CASE("gate_wald: lengths and common shifts that cosines do not know change nothing", "[gaussian]") {
  for (const double shift : {0.0, 0.5}) {
    moe::CosineGate<> gate;
    gate.score.weight_shift = shift;
    auto model = moe::GaussianMoe<moe::CosineGate<>>::zero(2, 2, gate);
    model.gate_slope << 1, 0.5, -0.6, 0.8;
    model.slope << 1, 0, -1, 1;
    model.intercept << 2, -2;
    const moe::RegressionData data = test::sample_data(model, 300);
    auto near = model, same = model;
    near.gate_slope(0, 1) += 0.1;
    near.gate_bias(0) += 0.2;
    same = near;
    if (shift == 0)
      same.gate_slope.row(1) *= 7;
    else
      for (Index j = 0; j < 2; ++j) {
        const double length = near.gate_slope.row(j).norm();
        const Eigen::RowVector2d gamma = near.gate_slope.row(j) / (length + shift) + Eigen::RowVector2d(0.1, -0.05);
        same.gate_slope.row(j) = gamma * (shift / (1 - gamma.norm()));
      }
    const double value = moe::detail::gate_wald(near, model, data);
    CAPTURE(shift, value);
    CHECK(value > 0.1);
    CHECK(std::abs(moe::detail::gate_wald(same, model, data) / value - 1) < 1e-9);
  }
}

TEST_CASE("rate levels: refused where the law is not known", "[gaussian][error]") {
  auto o = options(2);
  o.rows = {200};
  o.num_experts = 3;
  const moe::RateExperiment surplus = moe::rate_experiment(truth(moe::SoftmaxGate{}), o);
  CHECK(surplus.identified == 0);
  CHECK_THROWS_AS(moe::excess_level(surplus), std::invalid_argument);
  o.num_experts = 0;
  const moe::RateExperiment hard = moe::rate_experiment(truth(moe::TopKGate{.k = 1}), o);
  CHECK_THROWS_AS(moe::gate_level(hard), std::invalid_argument);
  CHECK(moe::excess_level(moe::rate_experiment(truth(moe::SoftmaxGate{}), o)).count == 0);  // n below 1000
}
