// SPDX-License-Identifier: MIT
// The step of the gate in Em where there is a temperature, against one that is worked out here.
#include <algorithm>
#include <cmath>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/em.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"

using moe::Index;

namespace {

/// Data of two experts and a model beside the truth, on their own scale.
template <class Gate>
struct Problem {
  explicit Problem(const Gate& gate, double start_temperature, Index n = 400)
      : model(test::two_lines(), gate),
        data(draw(gate, n)),
        rows(data, moe::detail::Standardisation::none(1)),
        objective(rows, moe::layout(model), model.form()) {
    model.temperature = start_temperature;
    model.gate_bias(0) = 0.2;
  }

  static moe::RegressionData draw(const Gate& gate, Index n) {
    moe::GaussianMoe<Gate> truth(test::two_lines(), gate);
    truth.temperature = 0.4;
    return test::simulated(truth, n, 5);
  }

  moe::GaussianMoe<Gate> model;
  moe::RegressionData data;
  moe::detail::RowBlocks rows;
  moe::detail::ObjectiveOf<typename moe::GateModel<Gate>::Inner> objective;
};

/// Where a change of (beta_0, log tau) leads: it is one of gamma = beta_0 / tau and kappa = 1 / tau, in which the
/// complete log-likelihood is concave, with kappa kept above a tenth.
struct Moved {
  double bias = 0, temperature = 0;
};
Moved moved(double bias, double tau, double bias_step, double log_step) {
  const double kappa = std::max((1 - log_step) / tau, 0.1 / tau);
  const double gamma = bias / tau + (bias_step - bias * log_step) / tau;
  return {gamma / kappa, 1 / kappa};
}

/// The step of the gate at the first iteration of Em, which is that of biases and temperature behind an activation.
template <class Gate>
Eigen::VectorXd first_step(const Problem<Gate>& problem) {
  const moe::ParameterLayout at = moe::layout(problem.model);
  Eigen::VectorXd score, step = Eigen::VectorXd::Zero(at.num_gate());
  Eigen::MatrixXd information;
  problem.objective.complete(problem.model, score, information);
  const Index first = problem.objective.linear() ? 0 : at.gate_bias(0), count = at.num_gate() - first;
  step.tail(count) =
      moe::detail::solve_semidefinite(information.block(first, first, count, count), score.segment(first, count));
  return step;
}

/// How often Em halved the step: its gate is the one worked out here for that share of it, and for no other.
template <class Gate>
int halvings(const Problem<Gate>& problem, const Eigen::VectorXd& step) {
  moe::detail::Em em(problem.objective, {}, moe::GateStep::Newton);
  moe::detail::EmState state = em.start(problem.model);
  REQUIRE(em.iterate(state));
  const auto& m = problem.model;
  const moe::GaussianParameters& to = state.model;
  const moe::ParameterLayout at = moe::layout(m);
  const double longest = std::min(1.0, 50 / step.cwiseAbs().maxCoeff());
  for (int h = 0; h < 12; ++h) {
    const double share = longest * std::pow(0.5, h);
    const Moved expected =
        moved(m.gate_bias(0), m.temperature, share * step(at.gate_bias(0)), share * step(at.log_temperature()));
    const bool same = std::abs(to.temperature - expected.temperature) <= 1e-12 * expected.temperature &&
                      std::abs(to.gate_bias(0) - expected.bias) <= 1e-12 * (1 + std::abs(expected.bias));
    if (!same) continue;  // solutions of the same equations, and a few roundings after it
    CHECK(std::abs(to.gate_slope(0, 0) - m.gate_slope(0, 0) - share * step(at.gate_slope(0))) < 1e-12);
    CHECK(to.gate_bias(1) == 0);
    CHECK(to.gate_slope(1, 0) == 0);
    return h;
  }
  return 12;
}

const auto kTau = moe::LearnableTemperature::starting_at(0.4);
const test::FreeActivationGate<moe::Tanh> kTanh{.sparse = {.temperature = kTau}};

}  // namespace

TEST_CASE("Em: a free temperature moves as 1 / tau, and the bias with it as beta_0 / tau", "[gaussian]") {
  for (const double tau : {0.3, 0.6}) {
    const Problem problem(kTanh, tau);
    const Eigen::VectorXd step = first_step(problem);
    CAPTURE(tau, step);
    REQUIRE(std::abs(step.tail(1)(0)) > 0.05);  // of the temperature: else nothing is tested
    REQUIRE(std::abs(step.tail(2)(0)) > 0.02);  // of the bias
    CHECK(halvings(problem, step) == 0);
  }
}

TEST_CASE("Em: with a linear gate slopes, biases and the free temperature move together", "[gaussian]") {
  const Problem problem(test::FreeTemperatureGate{.temperature = kTau}, 0.7);
  const Eigen::VectorXd step = first_step(problem);
  REQUIRE(step.cwiseAbs().minCoeff() > 1e-3);
  CHECK(halvings(problem, step) == 0);
}

TEST_CASE("Em: 1 / tau keeps at least a tenth in one step", "[gaussian]") {
  const Problem problem(kTanh, 0.02);
  const Eigen::VectorXd step = first_step(problem);
  CAPTURE(step);
  REQUIRE(step.tail(1)(0) > 0.9);
  moe::detail::Em em(problem.objective, {}, moe::GateStep::Newton);
  moe::detail::EmState state = em.start(problem.model);
  REQUIRE(em.iterate(state));
  CHECK(state.model.temperature == 0.02 / 0.1);
  CHECK(halvings(problem, step) < 12);
}

TEST_CASE("Em: a temperature keeps its bounds, and its bias goes with what it became", "[gaussian]") {
  using Bounds = moe::detail::Bounds;
  for (const double bound : {Bounds::kColdest, Bounds::kHottest}) {
    const Problem problem(kTanh, bound);
    moe::detail::Em em(problem.objective, {}, moe::GateStep::Newton);
    moe::detail::EmState state = em.start(problem.model);
    for (int i = 0; i < 20 && em.iterate(state); ++i) {
      CHECK(state.model.temperature >= Bounds::kColdest);
      CHECK(state.model.temperature <= Bounds::kHottest);
    }
  }
}

TEST_CASE("Em: a Majorise step at another temperature is that of the bound on z = u / tau", "[gaussian]") {
  // B + 2 tau (I + 1 1^T) (R - P)^T X (X^T X)^-1: the curvature has 1 / tau^2, the score 1 / tau.
  const Problem problem(test::TemperatureGate{.temperature = {0.4}}, 0.4);
  const auto& m = problem.model;
  Eigen::MatrixXd x(400, 2);
  x << problem.data.x, Eigen::VectorXd::Ones(400);
  const Eigen::VectorXd excess = (moe::responsibilities(m, problem.data) - moe::gate_weights(m, problem.data.x)).col(0);
  const Eigen::Vector2d expected = 4 * 0.4 * (x.transpose() * x).inverse() * (x.transpose() * excess);
  moe::detail::Em em(problem.objective, {}, moe::GateStep::Majorise);
  moe::detail::EmState state = em.start(m);
  REQUIRE(em.iterate(state));
  CHECK(std::abs(state.model.gate_slope(0, 0) - m.gate_slope(0, 0) - expected(0)) < 1e-11);
  CHECK(std::abs(state.model.gate_bias(0) - m.gate_bias(0) - expected(1)) < 1e-11);
  CHECK(std::abs(expected(0)) > 1e-3);
}

TEST_CASE("Em: the longest step of a coefficient is 50, of all in proportion", "[gaussian]") {
  // A temperature of 1e-3 where weights are smooth has steps of hundreds.
  const Problem problem(test::FreeTemperatureGate{.temperature = kTau}, 300);
  const Eigen::VectorXd step = first_step(problem);
  CAPTURE(step);
  REQUIRE(step.cwiseAbs().maxCoeff() > 50);
  CHECK(halvings(problem, step) < 12);
}
