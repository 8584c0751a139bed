// SPDX-License-Identifier: MIT
// Samples, standard errors and bootstraps of gates of cosines and distances.
#include <cmath>
#include <string>

#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/bootstrap.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "moe/gaussian/predict/predict.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;

/// Two planes; directions or centres on both sides of 0.
template <class Gate>
moe::GaussianMoe<Gate> planes(const Gate& gate, double temperature) {
  auto m = moe::GaussianMoe<Gate>::zero(2, 2, gate);
  m.last_slope = moe::LastSlope::Free;
  m.temperature = temperature;
  m.gate_slope << 0.5, 0.25, -0.5, -0.25;
  m.slope << -1, 0.5, 1, 0.5;
  m.intercept << -1, 1;
  m.variance << 0.15, 0.1;
  return m;
}

auto laplace() {
  moe::LaplaceGate<> gate;
  gate.sparse.temperature.value = 0.3;
  return planes(gate, 0.3);
}
auto cosine() {
  moe::CosineGate<> gate;
  gate.sparse.temperature.value = 0.3;
  return planes(gate, 0.3);
}

template <class Gate>
void require_samples(const moe::GaussianMoe<Gate>& model) {
  constexpr Index kRows = 20000;
  moe::Matrix<double> x(kRows, 2);
  x.rowwise() = Eigen::RowVector2d(0.2, 0.1);
  const Eigen::VectorXd y = moe::sample(model, x, 5);
  const moe::Moments moments = moe::predict_moments(model, x.topRows(1).eval());
  CHECK(std::abs(y.mean() - moments.mean(0)) < 4 * std::sqrt(moments.variance(0) / kRows));
  // The variance of a sample variance is (kurtosis - 1) / n of its square, below 4 / n for two normals.
  CHECK(std::abs((y.array() - y.mean()).square().mean() / moments.variance(0) - 1) < 4 * 2 / std::sqrt(double(kRows)));
  CHECK(moe::sample(model, x.topRows(7).eval(), 5) == y.head(7));
}

}  // namespace

TEST_CASE("ScoredGate: samples have the moments of the model", "[gaussian]") {
  require_samples(laplace());
  require_samples(cosine());
}

TEST_CASE("ScoredGate: standard errors of distances invert the information, and hold the truth", "[gaussian]") {
  const auto truth = laplace();
  const moe::RegressionData data = test::simulated(truth, 1500, 3);
  const auto fit = moe::fit_from(data, truth);
  REQUIRE(fit.converged);
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  const Eigen::MatrixXd information = moe::observed_information(fit.model, data);
  REQUIRE(errors.observed.rows() == information.rows());
  const Eigen::MatrixXd covariance = information.inverse();
  // Condition numbers of 1e5 or so of a matrix of rounding 1e-13.
  CHECK((errors.observed - covariance).cwiseAbs().maxCoeff() < 1e-6 * covariance.cwiseAbs().maxCoeff());
  const Eigen::VectorXd at = moe::pack(truth, moe::layout(truth)), found = moe::pack(fit.model, moe::layout(truth));
  for (Index i = 0; i < at.size(); ++i) {
    CAPTURE(moe::layout(truth).names()[static_cast<std::size_t>(i)]);
    CHECK(std::abs(found(i) - at(i)) < 5 * std::sqrt(covariance(i, i)));  // 13 numbers
  }
}

TEST_CASE("ScoredGate: lengths of directions have no standard error, experts have theirs", "[gaussian]") {
  const auto truth = cosine();
  const moe::RegressionData data = test::simulated(truth, 800, 3);
  const auto fit = moe::fit_from(data, truth);
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  CHECK_FALSE(errors["beta1[0,0]"].error.has_value());
  CHECK_FALSE(errors["beta1[1,1]"].error.has_value());
  for (const char* name : {"a[0,0]", "a[1,1]", "b[0]", "variance[1]"}) {
    CAPTURE(name);
    REQUIRE(errors[name].error.has_value());
    CHECK(errors[name].error->observed > 0);
    CHECK(errors[name].error->observed < 0.1);  // some .3 / sqrt(400) over a spread of .58
  }
}

TEST_CASE("ScoredGate: bootstraps agree with standard errors of the experts", "[gaussian]") {
  const auto truth = laplace();
  const moe::RegressionData data = test::simulated(truth, 500, 4);
  const auto fit = moe::fit_from(data, truth);
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  constexpr Index kReplications = 40;
  const moe::Bootstrap boot = moe::bootstrap(fit, data.x, {.replications = kReplications, .random_starts = 1});
  CHECK(boot.num_usable == kReplications);
  REQUIRE(boot.replicates.allFinite());
  const auto names = moe::layout(fit.model).names();
  for (std::size_t c = 0; c < names.size(); ++c) {
    if (!names[c].starts_with("a[") && !names[c].starts_with("b[")) continue;
    CAPTURE(names[c]);
    const auto column = boot.replicates.col(static_cast<Index>(c));
    const double spread = std::sqrt((column.array() - column.mean()).square().mean());
    // A standard deviation of 40 is known to 11 %: four of these.
    CHECK(std::abs(spread / errors[names[c]].error->observed - 1) < 0.45);
  }
}
