// SPDX-License-Identifier: MIT
// The MAP penalty of variances (FitOptions::variance_penalty).
#include <cmath>
#include <utility>

#include "gaussian/models.hpp"
#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/em.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;

/// y is noise that knows nothing of x.
moe::RegressionData noise(Index n, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, 41);
  moe::RegressionData data{moe::Matrix<double>(n, 1), Eigen::VectorXd(n)};
  for (Index i = 0; i < n; ++i) {
    data.x(i, 0) = 2 * random.uniform(i, 0) - 1;
    data.y(i) = random.normal(i, 1);
  }
  return data;
}

double variance_of(const Eigen::VectorXd& y) {
  return (y.array() - y.mean()).square().sum() / static_cast<double>(y.size());
}

/// sum_j (Var(y) / nu_j + log(nu_j / Var(y))).
double penalty_of(const moe::GaussianParameters& m, const Eigen::VectorXd& y) {
  const double spread = variance_of(y);
  double sum = 0;
  for (const double nu : m.variance) sum += spread / nu + std::log(nu / spread);
  return sum;
}

}  // namespace

TEST_CASE("variance_penalty: score and information are derivatives of the penalised value", "[gaussian]") {
  const auto model = test::sample_model(3, 2, moe::SoftmaxGate{});
  const moe::RegressionData data = test::sample_data(model, 60);
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(2));
  const moe::ParameterLayout at = moe::layout(model);
  const moe::detail::ObjectiveOf<moe::Identity> objective(rows, at, model.form(), {.ridge = 0.3, .map = 0.7}),
      plain(rows, at, model.form());
  double penalty = 0;
  for (const double nu : model.variance) penalty += 0.7 * (1 / nu + std::log(nu));
  for (Index j = 0; j < 2; ++j)
    penalty += 0.15 * (model.gate_slope.row(j).squaredNorm() + model.gate_bias(j) * model.gate_bias(j));
  CHECK(std::abs(plain.value(model) - objective.value(model) - penalty) < 1e-11 * (1 + std::abs(plain.value(model))));
  Eigen::VectorXd score, up_score, down_score;
  Eigen::MatrixXd information;
  CHECK(objective.information(model, score, information) == objective.value(model));
  const Eigen::VectorXd theta = moe::pack(model, at);
  constexpr double h = 1e-5;  // h^2 of third derivatives, and 1e-16 / h of the sum
  const double scale = 1 + score.cwiseAbs().maxCoeff() + information.cwiseAbs().maxCoeff();
  for (Index i = 0; i < at.size(); ++i) {
    auto up = model, down = model;
    moe::unpack(theta + h * Eigen::VectorXd::Unit(at.size(), i), at, up);
    moe::unpack(theta - h * Eigen::VectorXd::Unit(at.size(), i), at, down);
    CAPTURE(at.names()[static_cast<std::size_t>(i)]);
    CHECK(std::abs(score(i) - (objective.score(up, up_score) - objective.score(down, down_score)) / (2 * h)) <
          1e-7 * scale);
    CHECK((information.col(i) - (down_score - up_score) / (2 * h)).cwiseAbs().maxCoeff() < 1e-7 * scale);
  }
}

TEST_CASE("variance_penalty: the variance of an M-step maximises its part of the criterion", "[gaussian]") {
  const moe::RegressionData data = noise(40, 3);
  moe::GaussianMoe<> start = moe::GaussianMoe<>::zero(2, 1);
  start.intercept << -0.5, 0.5;
  start.variance.setOnes();
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(1));
  const moe::detail::ObjectiveOf<moe::Identity> objective(rows, moe::layout(start), start.form(), {.map = 0.4});
  const moe::Matrix<double> r = moe::responsibilities(start, data);
  moe::detail::Em em(objective, {}, moe::GateStep::Newton);
  moe::detail::EmState state = em.start(start);
  REQUIRE(em.iterate(state));
  for (Index j = 0; j < 2; ++j) {
    const Eigen::VectorXd e =
        (data.y - data.x * state.model.slope.row(j).transpose()).array() - state.model.intercept(j);
    const double squares = r.col(j).dot(e.cwiseAbs2());
    const auto part = [&](double nu) {
      return -0.5 * (r.col(j).sum() * std::log(nu) + squares / nu) - 0.4 * (1 / nu + std::log(nu));
    };
    const double nu = state.model.variance(j);
    for (const double factor : {0.5, 0.9, 0.999, 1.001, 1.1, 2.0}) CHECK(part(nu) > part(factor * nu));
  }
}

TEST_CASE("variance_penalty: fits of a few rows of noise have a maximum above a bound", "[gaussian][property]") {
  Index collapsed = 0;
  for (const auto& [n, k] : {std::pair<Index, Index>{10, 2}, {30, 2}, {30, 3}})
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      const moe::RegressionData data = noise(n, seed);
      CAPTURE(n, k, seed);
      const double rows = static_cast<double>(n), a = 1 / std::sqrt(rows), spread = variance_of(data.y);
      const moe::FitOptions plain{.starts = 8, .support = 0};
      moe::FitOptions options = plain;
      options.variance_penalty = a;
      const auto fit = moe::fit(data, k, moe::SoftmaxGate{}, options);
      CHECK(std::isfinite(fit.log_likelihood));
      CHECK_FALSE(fit.flags.at_floor);
      // n_j <= n and a sum of squares >= 0 in (squares + 2 a Var(y)) / (n_j + 2 a); ends are within tolerances.
      CHECK(fit.model.variance.minCoeff() >= 2 * a * spread / (rows + 2 * a) * (1 - 1e-6));
      // Least squares leave no more than n Var(y), so that no ratio of standard deviations is above this.
      const double ratio = std::sqrt(fit.model.variance.maxCoeff() / fit.model.variance.minCoeff());
      CHECK(ratio < (rows + 2 * a) / (2 * a));
      CHECK(std::abs(fit.log_likelihood - a * penalty_of(fit.model, data.y) - fit.penalised_log_likelihood) <
            1e-9 * (1 + std::abs(fit.penalised_log_likelihood)));
      for (std::size_t i = 1; i < fit.path.size(); ++i) CHECK(fit.path[i] >= fit.path[i - 1] - 1e-9);
      const auto free = moe::fit(data, k, moe::SoftmaxGate{}, plain);
      collapsed += free.flags.at_floor || !std::isnan(free.discarded_log_likelihood);
    }
  CHECK(collapsed >= 6);  // of 24: what the penalty is for
}

TEST_CASE("variance_penalty: criteria are of the likelihood, units of y do not matter, and 1 / n is little",
          "[gaussian]") {
  const moe::RegressionData data = test::simulated(test::two_lines(), 300, 9);
  const moe::FitOptions plain{.starts = 5}, options{.starts = 5, .variance_penalty = 1.0 / 300};
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
  const auto free = moe::fit(data, 2, moe::SoftmaxGate{}, plain);
  CHECK(moe::criteria(fit, data).log_likelihood == moe::log_likelihood(fit.model, data));
  CHECK(fit.log_likelihood <= free.log_likelihood + 1e-6);  // of a fit's remaining_tolerance
  CHECK(fit.penalised_log_likelihood < fit.log_likelihood);
  // The M-step moves nu by 2 a_n Var(y) / n_j, here 1e-4 of it.
  CHECK((fit.model.variance.array() / free.model.variance.array() - 1).abs().maxCoeff() < 1e-3);
  moe::RegressionData scaled = data;
  scaled.y *= 1e3;
  const auto other = moe::fit(scaled, 2, moe::SoftmaxGate{}, options);
  CHECK((other.model.variance.array() / (1e6 * fit.model.variance.array()) - 1).abs().maxCoeff() < 1e-6);
  CHECK(moe::sweep_experts(data, {1, 3}, moe::SoftmaxGate{}, options).best_bic == 2);
}
