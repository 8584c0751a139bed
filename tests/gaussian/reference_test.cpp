// SPDX-License-Identifier: MIT
#include <Eigen/Eigenvalues>

#include "gaussian/oracle_bounds.hpp"
#include "gaussian/reference_data.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"

using Catch::Matchers::WithinRel;
using moe::Index;

namespace {

struct Moments {
  double mean = 0, deviation = 0;
};

/// With divisor n, as the reference runs standardised.
template <class V>
Moments moments(const V& values) {
  double sum = 0, squares = 0;
  for (Index i = 0; i < values.size(); ++i) sum += values(i);
  const double mean = sum / static_cast<double>(values.size());
  for (Index i = 0; i < values.size(); ++i) squares += (values(i) - mean) * (values(i) - mean);
  return {mean, std::sqrt(squares / static_cast<double>(values.size()))};
}

/// The score in the coordinates of standardised data, per row: x = m + s x~, so that d/d beta_1 = s d/d beta~_1 +
/// m d/d beta~_0 for each column, and the same for a and b with another factor 1 / s_y.
template <class Gate>
Eigen::VectorXd standardised_score(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const moe::ParameterLayout at = moe::layout(model);
  Eigen::VectorXd score = moe::score(model, data) / static_cast<double>(data.num_rows());
  const double y_deviation = moments(data.y).deviation;
  for (Index j = 0; j < at.num_experts; ++j)
    for (Index c = 0; c < at.input_dim; ++c) {
      const auto [mean, deviation] = moments(data.x.col(c));
      // an activation sees the mean of x in its argument only: nothing to take off
      const bool linear = std::is_same_v<typename moe::GateModel<Gate>::Inner, moe::Identity>;
      if (j < at.free_slopes) {
        double& slope = score(at.gate_slope(j) + c);
        slope = (slope - (linear ? mean * score(at.gate_bias(j)) : 0)) / deviation;
      }
      double& slope = score(at.slope(j) + c);
      slope = (slope - mean * score(at.intercept(j))) / deviation * y_deviation;
    }
  for (Index j = 0; j < at.num_experts; ++j) score(at.intercept(j)) *= y_deviation;
  return score;
}

/// ridge / 2 |standardised gate coefficients|^2 when expert `pinned` has none.
double penalty(const moe::GaussianParameters& model, const moe::RegressionData& data, double ridge, Index pinned) {
  double sum = 0;
  for (Index j = 0; j < model.num_experts(); ++j) {
    double bias = model.gate_bias(j) - model.gate_bias(pinned);
    for (Index c = 0; c < model.input_dim(); ++c) {
      const auto [mean, deviation] = moments(data.x.col(c));
      const double slope = model.gate_slope(j, c) - model.gate_slope(pinned, c);
      bias += slope * mean;
      sum += slope * deviation * slope * deviation;
    }
    sum += bias * bias;
  }
  return ridge / 2 * sum;
}

}  // namespace

TEST_CASE("log_likelihood: that of independent programs at their maxima", "[gaussian][golden]") {
  for (const test::ReferenceFit& fit : test::reference_fits())
    test::with_reference_model(fit, fit.fit, [&](const auto& model) {
      CAPTURE(fit.name);
      CHECK_THAT(moe::log_likelihood(model, test::reference_data(fit.data)), WithinRel(fit.log_likelihood, 1e-8));
    });
}

TEST_CASE("log_likelihood: that of independent programs at what data were simulated from", "[gaussian][golden]") {
  int checked = 0;
  for (const test::ReferenceFit& fit : test::kSimulatedFits) {
    if (fit.truth.variance.empty()) continue;
    test::with_reference_model(fit, fit.truth, [&](const auto& model) {
      CAPTURE(fit.name);
      const auto data = test::reference_data(fit.data);
      CHECK_THAT(moe::log_likelihood(model, data), WithinRel(fit.log_likelihood_at_truth, 1e-8));
      CHECK(moe::log_likelihood(model, data) < fit.log_likelihood);
    });
    ++checked;
  }
  CHECK(checked == 7);
}

TEST_CASE("log_likelihood: minus the ridge it is the reference's penalised criterion", "[gaussian][golden]") {
  // which of the experts was pinned is not on record: one of them must give the value
  for (const test::ReferenceFit& fit : test::kRealFits) {
    if (fit.ridge == 0) continue;
    const auto data = test::reference_data(fit.data);
    const auto model = test::reference_model(fit, fit.fit, moe::SoftmaxGate{});
    double nearest = INFINITY;
    for (Index pinned = 0; pinned < fit.num_experts; ++pinned)
      nearest = std::min(nearest, std::abs(moe::log_likelihood(model, data) - penalty(model, data, fit.ridge, pinned) -
                                           fit.penalised_log_likelihood));
    CAPTURE(fit.name);
    CHECK(nearest <= 1e-8 * std::abs(fit.penalised_log_likelihood));
  }
}

TEST_CASE("score: is 0 at interior maxima of independent programs", "[gaussian][golden]") {
  // They stopped at 6e-8 per row on the standardised scale or before: the oracle agrees. What a
  // Newton step would still gain is s' I^-1 s / 2.
  for (const test::ReferenceFit& fit : test::reference_fits()) {
    if (fit.at_box || fit.ridge != 0) continue;
    test::with_reference_model(fit, fit.fit, [&](const auto& model) {
      CAPTURE(fit.name);
      const auto data = test::reference_data(fit.data);
      const Eigen::VectorXd score = moe::score(model, data);
      const oracle::Model m = oracle::model(model);
      const oracle::ActiveSets sets = oracle::active_sets(m, data);
      CHECK(oracle::worst(score, oracle::score(m, data, sets), oracle::score_bounds(m, data, sets)) <= 1);
      CHECK(test::largest(standardised_score(model, data)) <= 1e-7);
      if (fit.gate == test::ReferenceGate::TopOneByLogit) return;  // the gate has no information there
      const Eigen::MatrixXd information = moe::observed_information(model, data);
      CHECK(score.dot(Eigen::VectorXd(information.ldlt().solve(score))) / 2 <= 1e-9);
    });
  }
}

TEST_CASE("observed_information: gives the standard errors of independent programs", "[gaussian][golden]") {
  int checked = 0;
  for (const test::ReferenceFit& fit : test::kSimulatedFits) {
    if (fit.standard_errors.empty()) continue;
    test::with_reference_model(fit, fit.fit, [&](const auto& model) {
      CAPTURE(fit.name);
      const auto data = test::reference_data(fit.data);
      const Eigen::MatrixXd information = moe::observed_information(model, data);
      const Eigen::MatrixXd inverse =
          information.ldlt().solve(Eigen::MatrixXd::Identity(information.rows(), information.cols()));
      const Eigen::MatrixXd sandwich = inverse * moe::score_covariance(model, data) * inverse;
      REQUIRE(information.rows() == static_cast<Index>(fit.standard_errors.size()));
      for (Index c = 0; c < information.rows(); ++c) {
        const auto at = static_cast<std::size_t>(c);
        CAPTURE(c);
        CHECK_THAT(std::sqrt(inverse(c, c)), WithinRel(fit.standard_errors[at], 1e-5));
        if (!fit.sandwich_errors.empty())
          CHECK_THAT(std::sqrt(sandwich(c, c)), WithinRel(fit.sandwich_errors[at], 1e-5));
      }
      const Eigen::VectorXd eigenvalues = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(information).eigenvalues();
      CHECK_THAT(eigenvalues(0), WithinRel(fit.smallest_eigenvalue, 1e-5));
      CHECK_THAT(eigenvalues(eigenvalues.size() - 1), WithinRel(fit.largest_eigenvalue, 1e-5));
    });
    ++checked;
  }
  CHECK(checked == 5);
}

TEST_CASE("log_likelihood: a top-1 boundary between two rows may move without a change, past a row it jumps",
          "[gaussian][golden]") {
  const test::ReferenceFit& fit = test::kSimulatedFits.back();
  const auto data = test::reference_data(fit.data);
  auto model = test::reference_model(fit, fit.fit, moe::TopKGate{.k = 1});
  const double here = moe::log_likelihood(model, data);
  const auto at = [&](double boundary) {
    model.gate_bias(0) = boundary;
    return moe::log_likelihood(model, data);
  };
  REQUIRE(std::string(fit.name) == "sim_top1of2_logit_d1_n2000");
  CHECK(at(0.31995) == here);
  CHECK(at(0.32006) == here);
  CHECK(at(0.3199) < here - 1);
  CHECK(at(0.3201) < here - 1);
}
