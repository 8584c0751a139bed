// SPDX-License-Identifier: MIT
#include "moe/gaussian/fit/em.hpp"

#include <Eigen/QR>

#include "gaussian/mixtures.hpp"
#include "moe/gaussian/fit/newton.hpp"
#include "moe/gaussian/fit/quasi_newton.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "moe/gaussian/predict/sample.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;

/// Data of two experts that cross, and an objective on them.
template <class Gate>
struct Problem {
  explicit Problem(const Gate& gate = {}, moe::detail::Penalty penalty = {})
      : shape(moe::GaussianMoe<Gate>::zero(2, 2, gate)),
        data(draw()),
        rows(data, moe::detail::Standardisation::none(2)),
        objective(rows, moe::layout(shape), shape.form(), penalty) {}

  static moe::RegressionData draw() {
    auto truth = moe::GaussianMoe<moe::SoftmaxGate>::zero(2, 2);
    truth.gate_slope.row(0) << 2, -1;
    truth.slope << 1, 0.5, -1, 0.5;
    truth.intercept << 1, -1;
    truth.variance << 0.2, 0.4;
    const moe::RandomField random(moe::Purpose::User, 5);
    moe::RegressionData data{moe::Matrix<double>(400, 2), {}};
    for (Index i = 0; i < 400; ++i)
      for (Index c = 0; c < 2; ++c) data.x(i, c) = 2 * random.uniform(i, c) - 1;
    data.y = moe::sample(truth, data.x, 7);
    return data;
  }

  moe::GaussianParameters start() const {
    moe::GaussianParameters m = shape;
    m.intercept << 0.5, -0.5;
    m.gate_slope.row(0) << 0.3, 0.1;
    return m;
  }

  moe::GaussianMoe<Gate> shape;
  moe::RegressionData data;
  moe::detail::RowBlocks rows;
  moe::detail::ObjectiveOf<typename moe::GateModel<Gate>::Inner> objective;
};

template <class Gate>
void require_monotone(const Problem<Gate>& problem, moe::GateStep step) {
  moe::detail::Em em(problem.objective, {}, step);
  moe::detail::EmState state = em.start(problem.start());
  for (int i = 0; i < 200; ++i) {
    const double before = state.criterion;
    if (!em.iterate(state)) break;
    CAPTURE(i);
    REQUIRE(state.criterion >= before);
    // What the state says is what the model has: sums in the same order differ by nothing.
    REQUIRE(state.criterion == problem.objective.value(state.model));
  }
  CHECK(state.criterion > problem.objective.value(problem.start()));
}

using Tempered = moe::DenseToSparseGate<moe::ConstantSchedule>;
using Activated = moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>;
const Activated kTanh{.sparse = {.temperature = moe::LearnableTemperature::starting_at(0.5)}};

}  // namespace

TEST_CASE("Em: the criterion never falls", "[gaussian][property]") {
  require_monotone(Problem<moe::SoftmaxGate>(), moe::GateStep::Newton);
  require_monotone(Problem<moe::SoftmaxGate>(), moe::GateStep::Majorise);
  require_monotone(Problem<moe::SoftmaxGate>({}, {.ridge = 0.5, .map = 0.05}), moe::GateStep::Newton);
  require_monotone(Problem<moe::SoftmaxGate>({}, {.ridge = 0.5}), moe::GateStep::Majorise);
  require_monotone(Problem<Tempered>({.temperature = {0.3}}), moe::GateStep::Newton);
  require_monotone(Problem<Activated>(kTanh), moe::GateStep::Newton);
}

TEST_CASE("Em: an M-step is weighted least squares with the divisor of maximum likelihood", "[gaussian]") {
  const Problem<moe::SoftmaxGate> problem;
  moe::GaussianMoe<moe::SoftmaxGate> model(problem.start());
  const moe::Matrix<double> r = moe::responsibilities(model, problem.data);
  moe::detail::Em em(problem.objective, {}, moe::GateStep::Newton);
  moe::detail::EmState state = em.start(model);
  REQUIRE(em.iterate(state));
  Eigen::MatrixXd x(400, 3);
  x << problem.data.x, Eigen::VectorXd::Ones(400);
  for (Index j = 0; j < 2; ++j) {
    const Eigen::VectorXd root = r.col(j).cwiseSqrt();
    const Eigen::VectorXd ab =
        (root.asDiagonal() * x).colPivHouseholderQr().solve(root.cwiseProduct(problem.data.y).eval());
    const Eigen::VectorXd e = problem.data.y - x * ab;
    CAPTURE(j);
    // Normal equations of 400 rows in [-1, 1]: their condition number, below 10, times some rounding of 400 terms.
    CHECK((state.model.slope.row(j).transpose() - ab.head(2)).cwiseAbs().maxCoeff() < 1e-12);
    CHECK(std::abs(state.model.intercept(j) - ab(2)) < 1e-12);
    CHECK(std::abs(state.model.variance(j) - r.col(j).dot(e.cwiseProduct(e)) / r.col(j).sum()) < 1e-12);
  }
}

TEST_CASE("Em, Newton, QuasiNewton: all end at the same maximum", "[gaussian]") {
  const Problem<moe::SoftmaxGate> problem;
  moe::detail::Em em(problem.objective, {}, moe::GateStep::Newton);
  moe::detail::EmState state = em.start(problem.start());
  for (int i = 0; i < 30; ++i) em.iterate(state);
  moe::detail::Newton newton(problem.objective, {}, state.model);
  moe::detail::QuasiNewton quasi_newton(problem.objective, {}, state.model);
  int steps = 0;
  while (newton.state().score_norm > 1e-10 && steps < 20 && newton.iterate()) ++steps;
  CHECK(steps <= 8);  // quadratic: from 1e-2 to 1e-10 in a few
  for (int i = 0; i < 300 && quasi_newton.state().score_norm > 1e-9; ++i) quasi_newton.iterate();
  for (int i = 0; i < 3000; ++i)
    if (!em.iterate(state)) break;
  CHECK(newton.state().score_norm < 1e-9);
  // The gain left at a score of s per row is n s^2 / (2 lambda), lambda the least eigenvalue per row, above 1e-2.
  CHECK(std::abs(newton.state().criterion - quasi_newton.state().criterion) < 1e-9);
  CHECK(std::abs(newton.state().criterion - state.criterion) < 1e-9);
}
