// SPDX-License-Identifier: MIT
// What the optimisers of moe::fit claim of themselves.
#include <Eigen/Eigenvalues>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "support/catch.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;

namespace {

/// Data and the objective on them, on their own scale.
template <class Gate>
struct Problem {
  Problem(const moe::GaussianMoe<Gate>& truth, Index n, std::uint64_t seed)
      : data(test::simulated(truth, n, seed)),
        rows(data, moe::detail::Standardisation::none(data.input_dim())),
        objective(rows, moe::layout(truth), truth.form()) {}

  moe::RegressionData data;
  moe::detail::RowBlocks rows;
  moe::detail::ObjectiveOf<typename moe::GateModel<Gate>::Inner> objective;
};

/// A model with these experts and another gate.
template <class Gate>
moe::GaussianMoe<Gate> with_gate(const moe::GaussianMoe<>& model, const Gate& gate, double temperature = 1) {
  moe::GaussianMoe<Gate> other(model, gate);
  other.temperature = temperature;
  return other;
}

/// Largest |estimate - truth| in standard errors, over the free parameters.
template <class Gate>
double worst_deviation(const moe::GaussianMoe<Gate>& truth, const moe::GaussianMoe<Gate>& model,
                       const moe::RegressionData& data) {
  const moe::ParameterLayout at = moe::layout(truth);
  const Eigen::MatrixXd information = moe::observed_information(model, data);
  const Eigen::VectorXd variance = information.ldlt().solve(Eigen::MatrixXd::Identity(at.size(), at.size())).diagonal();
  REQUIRE(variance.minCoeff() > 0);
  return ((moe::pack(model, at) - moe::pack(truth, at)).array() / variance.array().sqrt()).abs().maxCoeff();
}

/// Two experts with an odd activation: the same density from the other order, with the gate's sign turned.
template <class Gate>
void match_order(const moe::GaussianMoe<Gate>& truth, moe::GaussianMoe<Gate>& model) {
  if ((truth.intercept(0) < truth.intercept(1)) == (model.intercept(0) < model.intercept(1))) return;
  model.slope.row(0).swap(model.slope.row(1));
  std::swap(model.intercept(0), model.intercept(1));
  std::swap(model.variance(0), model.variance(1));
  model.gate_slope *= -1;
  model.gate_bias *= -1;
}

/// For p estimates the largest of p normal deviates: above 4.5 with probability p 7e-6.
template <class Gate>
void require_recovery(const moe::GaussianMoe<Gate>& truth) {
  for (const std::uint64_t seed : {1u, 2u}) {
    CAPTURE(seed);
    const moe::RegressionData data = test::simulated(truth, 3000, seed);
    auto fit = moe::fit(data, truth.num_experts(), truth.gate, {.starts = 10, .long_runs = 3});
    if (truth.num_experts() == 2) match_order(truth, fit.model);
    CHECK(std::abs(moe::log_likelihood(fit.model, data) - fit.log_likelihood) < 1e-8);
    CHECK(fit.converged);
    CHECK(fit.log_likelihood > moe::log_likelihood(truth, data));
    CHECK(worst_deviation(truth, fit.model, data) < 4.5);
  }
}

}  // namespace

TEST_CASE("Newton: squares the error at every step near a regular maximum", "[gaussian]") {
  const Problem<moe::SoftmaxGate> problem(test::two_lines(), 400, 3);
  moe::detail::Newton newton(problem.objective, {}, test::two_lines());
  std::vector<double> norms = {newton.state().score_norm};
  while (norms.size() < 12 && norms.back() > 1e-12 && newton.iterate()) norms.push_back(newton.state().score_norm);
  REQUIRE(norms.back() <= 1e-12);
  // |s'| <= C s^2 with one C for all steps from 1e-2 on, down to the rounding of 400 terms of size 10
  int squared = 0;
  for (std::size_t i = 1; i < norms.size(); ++i) {
    if (norms[i - 1] > 1e-2) continue;
    CAPTURE(i, norms[i - 1], norms[i]);
    CHECK(norms[i] <= 30 * norms[i - 1] * norms[i - 1] + 1e-13);
    ++squared;
  }
  CHECK(squared >= 2);
}

TEST_CASE("Newton: leaves a saddle where the score is exactly 0", "[gaussian]") {
  // Experts that are all alike: every row weighs them the same, so nothing pulls them apart.
  const Problem<moe::SoftmaxGate> problem(test::two_lines(), 400, 3);
  auto one = moe::fit(problem.data, 1).model;
  auto twins = moe::GaussianMoe<>::zero(2, 1);
  twins.slope << one.slope(0, 0), one.slope(0, 0);
  twins.intercept << one.intercept(0), one.intercept(0);
  twins.variance << one.variance(0), one.variance(0);
  const double alike = moe::log_likelihood(twins, problem.data);
  REQUIRE(moe::score(twins, problem.data).cwiseAbs().maxCoeff() < 1e-9);
  const auto fit = moe::fit_from(problem.data, twins);
  CHECK(fit.converged);
  CHECK(fit.log_likelihood > alike + 10);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(moe::observed_information(fit.model, problem.data));
  CHECK(eigen.eigenvalues()(0) > 0);
}

TEST_CASE("Em: the curvature of Majorise is nowhere below that of the gate", "[gaussian][property]") {
  // diag pi - pi pi^T <= (I - 1 1^T / k) / 2 for every pi, hence the matrix of the step exceeds the information of the
  // gate at any parameters: no eigenvalue of the difference is negative, but for rounding.
  const auto truth = test::three_lines();
  const Problem<moe::SoftmaxGate> problem(truth, 300, 4);
  Eigen::MatrixXd x(300, 2);
  x << problem.data.x, Eigen::VectorXd::Ones(300);
  const Eigen::MatrixXd gram = x.transpose() * x;
  for (int seed = 1; seed <= 20; ++seed) {
    auto model = moe::GaussianMoe<>(test::random_parameters(3, 1, seed));
    moe::normalise(model);
    Eigen::VectorXd score;
    Eigen::MatrixXd information;
    problem.objective.complete(model, score, information);
    const moe::ParameterLayout at = moe::layout(model);
    Eigen::MatrixXd bound(4, 4);
    for (Index j = 0; j < 2; ++j)
      for (Index l = 0; l < 2; ++l) {
        const double factor = 0.5 * ((j == l ? 1.0 : 0.0) - 1.0 / 3);
        const Index rows[] = {at.gate_slope(j), at.gate_bias(j)}, cols[] = {at.gate_slope(l), at.gate_bias(l)};
        for (Index a = 0; a < 2; ++a)
          for (Index b = 0; b < 2; ++b) bound(rows[a], cols[b]) = factor * gram(a, b);
      }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(bound - information.topLeftCorner(4, 4));
    CAPTURE(seed);
    CHECK(eigen.eigenvalues()(0) > -1e-12 * bound.norm());
  }
}

TEST_CASE("Objective: without the gate, what an M-step needs is the same but for the gate's curvature", "[gaussian]") {
  const Problem<moe::SoftmaxGate> problem(test::three_lines(), 300, 4);
  const auto model = test::three_lines();
  const moe::ParameterLayout at = moe::layout(model);
  Eigen::VectorXd score, score_of_experts;
  Eigen::MatrixXd all, experts;
  const double value = problem.objective.complete(model, score, all);
  CHECK(problem.objective.complete(model, score_of_experts, experts, /*with_gate=*/false) == value);
  CHECK(score_of_experts == score);
  CHECK(all.topLeftCorner(at.num_gate(), at.num_gate()).diagonal().minCoeff() > 0);
  all.topLeftCorner(at.num_gate(), at.num_gate()).setZero();
  CHECK(experts == all);
}

TEST_CASE("Em: a Majorise step is that of the bound, and never needs halving", "[gaussian][property]") {
  // B + 2 (I + 1 1^T) (R - P)^T X (X^T X)^-1, whole: halved steps would differ by half of it.
  const Problem<moe::SoftmaxGate> problem(test::three_lines(), 300, 5);
  Eigen::MatrixXd x(300, 2);
  x << problem.data.x, Eigen::VectorXd::Ones(300);
  const Eigen::MatrixXd inverse = (x.transpose() * x).inverse();
  for (int seed = 1; seed <= 10; ++seed) {
    auto model = moe::GaussianMoe<>(test::random_parameters(3, 1, seed));
    moe::normalise(model);
    moe::detail::Em em(problem.objective, {}, moe::GateStep::Majorise);
    moe::detail::EmState state = em.start(model);
    for (int i = 0; i < 10; ++i) {
      const moe::GaussianMoe<> now(state.model);
      const Eigen::MatrixXd excess =
          (moe::responsibilities(now, problem.data) - moe::gate_weights(now, problem.data.x)).leftCols(2);
      const Eigen::MatrixXd per_expert = inverse * x.transpose() * excess;  // [d + 1, k - 1]
      const double before = state.criterion;
      REQUIRE(em.iterate(state));
      CAPTURE(seed, i);
      CHECK(state.criterion >= before);
      for (Index j = 0; j < 2; ++j) {
        const Eigen::Vector2d change = 2 * (per_expert.col(j) + per_expert.rowwise().sum());
        CHECK_THAT(state.model.gate_slope(j, 0) - now.gate_slope(j, 0), WithinAbs(change(0), 1e-11));
        CHECK_THAT(state.model.gate_bias(j) - now.gate_bias(j), WithinAbs(change(1), 1e-11));
      }
    }
  }
}

TEST_CASE("fit: recovers what data were simulated from, all gates", "[gaussian]") {
  require_recovery(test::two_lines());
  require_recovery(test::three_lines());
  require_recovery(
      with_gate(test::two_lines(), moe::DenseToSparseGate<moe::ConstantSchedule>{.temperature = {0.5}}, 0.5));
  const auto half = moe::LearnableTemperature::starting_at(0.5);
  require_recovery(with_gate(test::two_lines(),
                             moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>{.sparse = {.temperature = half}},
                             0.5));
}

TEST_CASE("fit: a free temperature of a linear gate leaves the ratio, and says that it is singular", "[gaussian]") {
  using Gate = moe::DenseToSparseGate<moe::LearnableTemperature>;
  const moe::RegressionData data = test::simulated(test::two_lines(), 2000, 6);
  const moe::FitOptions options{.starts = 10};
  const auto plain = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  const auto free = moe::fit(data, 2, Gate{.temperature = moe::LearnableTemperature::starting_at(0.5)}, options);
  CHECK(free.flags.singular);
  CHECK_THAT(free.log_likelihood, WithinAbs(plain.log_likelihood, 1e-5));
  // gamma = beta / tau; both ends are within 1e-3 standard errors of the maximum, which are below 0.3
  const double tau = free.model.temperature;
  CHECK((free.model.gate_slope / tau - plain.model.gate_slope).cwiseAbs().maxCoeff() < 1e-3);
  CHECK((free.model.gate_bias / tau - plain.model.gate_bias).cwiseAbs().maxCoeff() < 1e-3);
}

TEST_CASE("fit: the seed decides the starts, and nothing that was called before", "[gaussian][property]") {
  const moe::RegressionData data = test::simulated(test::three_lines(), 200, 7);
  const auto shorts = [&](std::uint64_t seed) {
    std::vector<double> values;
    for (const moe::StartReport& run : moe::fit(data, 3, moe::SoftmaxGate{}, {.starts = 6, .seed = seed}).runs)
      values.push_back(run.short_log_likelihood);
    return values;
  };
  const std::vector<double> first = shorts(1), second = shorts(2);
  CHECK(first == shorts(1));
  int same = 0;
  for (std::size_t s = 0; s < first.size(); ++s) same += first[s] == second[s];
  CHECK(same == 0);
}
