// SPDX-License-Identifier: MIT
// The temperature in a normalised sigmoid: of products it is not identified, of distances it is.
#include <Eigen/Eigenvalues>
#include <cmath>
#include <string>

#include "gaussian/recovery.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/em.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/criteria.hpp"
#include "moe/gaussian/inference/identifiability.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/inference/summary.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "moe/io/gaussian.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using Free = moe::LearnableTemperature;
using Products = moe::SigmoidGate<moe::ProductScore, Free>;
using Distances = moe::SigmoidGate<moe::DistanceScore, Free>;

/// Two planes; directions or centres on both sides of 0.
template <class Gate>
moe::GaussianMoe<Gate> planes(double temperature) {
  Gate gate;
  gate.temperature = Free::starting_at(temperature);
  auto m = moe::GaussianMoe<Gate>::zero(2, 2, gate);
  m.gate_slope << 0.7, 0.25, -0.5, -0.25;
  m.gate_bias << 0.3, 0;
  m.slope << -1, 0.5, 1, 0.5;
  m.intercept << -1, 1;
  m.variance << 0.15, 0.1;
  return m;
}

/// Scores of rows along (beta_1, 1) of (beta_1, log tau): minus what tau d/dtau + sum_j beta_j . d/dbeta_j is.
template <class Gate>
double along_ray(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const moe::ParameterLayout at = moe::layout(model);
  Eigen::VectorXd ray = Eigen::VectorXd::Zero(at.size());
  ray.head(at.gate_bias(0)) = moe::pack(model, at).head(at.gate_bias(0));
  ray(at.log_temperature()) = 1;
  double largest = 0;
  for (Index i = 0; i < data.num_rows(); ++i) {
    const moe::RegressionData row{data.x.row(i), data.y.segment(i, 1)};
    largest = std::max(largest, std::abs(ray.dot(moe::score(model, row))));
  }
  return largest;
}

template <class Gate>
void require_monotone(const moe::GaussianMoe<Gate>& truth) {
  const moe::RegressionData data = test::simulated(truth, 400, 2);
  const moe::detail::RowBlocks rows(data, moe::detail::Standardisation::none(2));
  const moe::detail::ObjectiveOf<typename moe::GateModel<Gate>::Inner> objective(rows, moe::layout(truth),
                                                                                 truth.form());
  moe::GaussianParameters start = truth;
  start.gate_slope.row(0) *= 0.2;
  start.temperature *= 3;
  start.intercept << 0.5, -0.5;
  moe::detail::Em em(objective, {}, moe::GateStep::Newton);
  moe::detail::EmState state = em.start(start);
  const double first = state.criterion;
  for (int i = 0; i < 200; ++i) {
    const double before = state.criterion;
    if (!em.iterate(state)) break;
    CAPTURE(i);
    REQUIRE(state.criterion >= before);
    REQUIRE(state.criterion == objective.value(state.model));
  }
  CHECK(state.criterion > first + 10);
}

template <class Gate>
void require_round_trip(const moe::GaussianMoe<Gate>& model) {
  const test::TemporaryDirectory directory;
  moe::save_parameters(directory / "m", model);
  const auto loaded = moe::load_gaussian_moe(directory / "m", model.gate);
  CHECK(loaded.last_slope == moe::LastSlope::Free);
  CHECK(moe::pack(loaded, moe::layout(loaded)) == moe::pack(model, moe::layout(model)));
  const moe::RegressionData data = test::simulated(model, 50, 3);
  CHECK(moe::log_density(loaded, data) == moe::log_density(model, data));
  CHECK_THROWS_AS(moe::load_gaussian_moe(directory / "m", moe::LaplaceGate<Free>{}), std::runtime_error);
}

}  // namespace

TEST_CASE("SigmoidGate: the identity of products holds in every row, that of distances in none", "[gaussian]") {
  for (const double tau : {0.2, 1.0, 3.0}) {
    CAPTURE(tau);
    const auto products = planes<Products>(tau);
    const auto distances = planes<Distances>(tau);
    CHECK(along_ray(products, test::simulated(products, 200, 1)) < 1e-13);  // rounding of sums of numbers of order 1
    CHECK(along_ray(distances, test::simulated(distances, 200, 1)) > 1e-3);
  }
}

TEST_CASE("SigmoidGate: products over tau are the product over another tau", "[gaussian]") {
  auto model = planes<Products>(0.4);
  const moe::RegressionData data = test::simulated(model, 300, 2);
  const double here = moe::log_likelihood(model, data);
  model.gate_slope *= 8;
  model.temperature *= 8;
  CHECK(moe::log_likelihood(model, data) == here);  // powers of 2 round nothing
  auto centres = planes<Distances>(0.4);
  const double there = moe::log_likelihood(centres, data);
  centres.gate_slope *= 8;
  centres.temperature *= 8;
  CHECK(std::abs(moe::log_likelihood(centres, data) - there) > 1);
}

TEST_CASE("SigmoidGate: fits reach what data were simulated from, in any unit", "[gaussian]") {
  CHECK(test::require_recovery(planes<Products>(0.3), 0).converged);
  CHECK(test::require_recovery(planes<Distances>(0.3), 40).converged);
}

TEST_CASE("SigmoidGate: the criterion of EM never falls", "[gaussian][property]") {
  require_monotone(planes<Products>(0.3));
  require_monotone(planes<Distances>(0.3));
}

TEST_CASE("SigmoidGate: the temperature of products has no standard error, ratios have theirs", "[gaussian]") {
  const auto truth = planes<Products>(0.3);
  const moe::RegressionData data = test::simulated(truth, 1500, 3);
  const auto fit = moe::fit_from(data, truth);
  CHECK(fit.flags.singular);
  const auto report = moe::identifiability(fit.model, data);
  REQUIRE(report.find(moe::Identifiability::TemperatureRay) != nullptr);
  const auto& ray = *report.find(moe::Identifiability::TemperatureRay);
  CHECK(ray.number < 1e-6);
  CHECK_THAT(ray.why, ContainsSubstring("beta_1 and tau grow together"));
  CHECK(report.find(moe::Identifiability::RankDeficient) == nullptr);
  CHECK(report.rank == report.num_parameters() - 1);
  CHECK(moe::num_identified_parameters(fit.model) == report.rank);
  CHECK_THAT(moe::summary(fit, data).text(), ContainsSubstring("gate score of expert 1, inputs over the temperature"));
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  CHECK_FALSE(errors["log tau"].error.has_value());
  // With a constant temperature of 1 the same numbers have the same errors.
  moe::GaussianMoe<moe::SigmoidGate<moe::ProductScore>> fixed(fit.model, {});
  fixed.gate_slope /= fixed.temperature;
  fixed.temperature = 1;
  const auto of_fixed = moe::standard_errors(moe::fit_from(data, fixed), data);
  REQUIRE(of_fixed.available());
  for (const char* name : {"beta1[0,0]", "beta1[1,1]", "beta0[0]", "a[0,0]", "b[1]"}) {
    CAPTURE(name);
    const std::string ratio = std::string(name).starts_with("beta1") ? std::string(name) + "/tau" : name;
    REQUIRE((errors[ratio.c_str()].error.has_value() && of_fixed[name].error.has_value()));
    // two ends of searches, each within 1e-4 standard errors of the maximum
    CHECK(std::abs(errors[ratio.c_str()].error->observed / of_fixed[name].error->observed - 1) < 1e-3);
  }
}

TEST_CASE("SigmoidGate: the temperature of distances has a standard error that holds the truth", "[gaussian]") {
  const auto truth = planes<Distances>(0.3);
  const moe::RegressionData data = test::simulated(truth, 3000, 3);
  const auto fit = moe::fit_from(data, truth);
  REQUIRE(fit.converged);
  CHECK_FALSE(fit.flags.singular);
  const auto report = moe::identifiability(fit.model, data);
  CHECK(report.full_rank());
  CHECK(report.find(moe::Identifiability::TemperatureRay) == nullptr);
  CHECK(moe::num_identified_parameters(fit.model) == report.num_parameters());
  const auto errors = moe::standard_errors(fit, data);
  REQUIRE(errors.available());
  const Eigen::VectorXd at = moe::pack(truth, moe::layout(truth)), found = moe::pack(fit.model, moe::layout(truth));
  const auto names = moe::layout(truth).names();
  for (std::size_t i = 0; i < names.size(); ++i) {
    CAPTURE(names[i]);
    REQUIRE(errors[names[i].c_str()].error.has_value());
    const auto c = static_cast<Index>(i);
    CHECK(std::abs(found(c) - at(c)) < 5 * errors[names[i].c_str()].error->observed);  // 14 numbers
  }
}

TEST_CASE("SigmoidGate: a file brings the model back, and belongs to its gate", "[gaussian]") {
  require_round_trip(planes<Products>(0.3));
  require_round_trip(planes<Distances>(0.3));
}

TEST_CASE("SigmoidGate: numbers that it cannot have", "[gaussian]") {
  Distances gate;
  gate.bias_place = moe::BiasPlace::Inside;
  CHECK_THROWS_WITH(gate.validate(2), ContainsSubstring("the bias is inside"));
  gate.bias_place = moe::BiasPlace::Outside;
  gate.sparse.temperature.value = 0.5;
  CHECK_THROWS_WITH(gate.validate(2), ContainsSubstring("0.5, expected 1"));
  moe::SigmoidGate<moe::DistanceScore> constant;
  constant.temperature.value = 0;
  CHECK_THROWS_AS(constant.validate(2), std::invalid_argument);
}
