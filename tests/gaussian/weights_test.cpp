// SPDX-License-Identifier: MIT
// Frequency weights: a row of weight w is w rows that are alike.
#include <cmath>
#include <limits>
#include <string>

#include "gaussian/samples.hpp"
#include "gaussian/simulated.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/bootstrap.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "moe/gaussian/inference/summary.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/text.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using test::message_of;

/// Weights 0, 1, 2, 3, 0, 1, ... in an order that is no pattern of the rows.
moe::RegressionData weighted(moe::RegressionData data) {
  data.weights =
      Eigen::VectorXd::NullaryExpr(data.num_rows(), [](Index i) { return static_cast<double>(i * i / 3 % 4); });
  return data;
}

/// |a - b| over the largest of b.
template <class A, class B>
double difference(const A& a, const B& b) {
  REQUIRE(a.size() == b.size());
  return a.size() == 0 ? 0 : (a - b).cwiseAbs().maxCoeff() / std::max(b.cwiseAbs().maxCoeff(), 1e-300);
}

/// Requires the passes over weighted rows to be those over the rows that the weights stand for. 1e-12: sums of some 300
/// terms, each of 30 roundings, in another order.
template <class Gate>
void require_same_passes(const moe::GaussianMoe<Gate>& model, Index n) {
  const moe::RegressionData data = weighted(test::sample_data(model, n)), repeated = moe::repeated_rows(data);
  REQUIRE(repeated.num_rows() == static_cast<Index>(data.total_weight()));
  const double bound = 1e-12 * (1 + moe::log_density(model, repeated).cwiseAbs().sum());
  CHECK(std::abs(moe::log_likelihood(model, data) - moe::log_likelihood(model, repeated)) < bound);
  CHECK(difference(moe::score(model, data), moe::score(model, repeated)) < 1e-12);
  CHECK(difference(moe::observed_information(model, data), moe::observed_information(model, repeated)) < 1e-12);
  CHECK(difference(moe::score_covariance(model, data), moe::score_covariance(model, repeated)) < 1e-12);
  moe::RegressionData all = data;
  all.weights = {};
  CHECK(moe::log_density(model, data) == moe::log_density(model, all));
  CHECK(moe::responsibilities(model, data) == moe::responsibilities(model, all));
}

/// Requires two fits to be one: the same steps but for rounding, from the same start.
template <class Gate>
void require_same_fit(const moe::GaussianFit<Gate>& a, const moe::GaussianFit<Gate>& b) {
  CHECK(a.converged == b.converged);
  CHECK(a.total_weight == b.total_weight);
  CHECK(std::abs(a.log_likelihood - b.log_likelihood) < 1e-9 * (1 + std::abs(b.log_likelihood)));
  CHECK(std::abs(a.penalised_log_likelihood - b.penalised_log_likelihood) < 1e-9 * (1 + std::abs(b.log_likelihood)));
  CHECK(difference(moe::pack(a.model, moe::layout(a.model)), moe::pack(b.model, moe::layout(b.model))) < 1e-9);
  CHECK(difference(a.expert_rows, b.expert_rows) < 1e-9);
  CHECK(a.flags.interior() == b.flags.interior());
  CHECK(a.flags.separated == b.flags.separated);
}

}  // namespace

TEST_CASE("weights: all passes count a row as often as its weight says", "[gaussian]") {
  for (const Index n : {7, 127, 129, 300}) {
    CAPTURE(n);
    require_same_passes(test::sample_model(3, 2, moe::SoftmaxGate{}), n);
    require_same_passes(test::sample_model(4, 7, moe::TopKGate{.k = 2}), n);
    require_same_passes(
        test::sample_model(3, 2, test::FreeTemperatureGate{.temperature = moe::LearnableTemperature::starting_at(1.4)}),
        n);
  }
}

TEST_CASE("weights: fits, standard errors and criteria are those of repeated rows", "[gaussian]") {
  const auto truth = test::two_lines();
  const moe::RegressionData data = weighted(test::simulated(truth, 200, 8)), repeated = moe::repeated_rows(data);
  for (const moe::FitOptions& options : {moe::FitOptions{}, moe::FitOptions{.ridge = 0.1, .variance_penalty = 0.02},
                                         moe::FitOptions{.gate_step = moe::GateStep::Majorise}})
    require_same_fit(moe::fit_from(data, truth, options), moe::fit_from(repeated, truth, options));
  const auto fit = moe::fit_from(data, truth), other = moe::fit_from(repeated, truth);
  const auto errors = moe::standard_errors(fit, data), expected = moe::standard_errors(other, repeated);
  REQUIRE(errors.available());
  CHECK(difference(errors.observed, expected.observed) < 1e-9);
  CHECK(difference(errors.sandwich, expected.sandwich) < 1e-9);
  const auto criteria = moe::criteria(fit, data), wanted = moe::criteria(other, repeated);
  for (double moe::Criteria::*member :
       {&moe::Criteria::aic, &moe::Criteria::bic, &moe::Criteria::icl, &moe::Criteria::entropy})
    CHECK(std::abs(criteria.*member - wanted.*member) < 1e-9 * (1 + std::abs(wanted.*member)));
  const auto summary = moe::summary(fit, data), plain = moe::summary(other, repeated);
  for (std::size_t q = 0; q < 5; ++q)
    CHECK(std::abs(summary.residual_quantiles[q] - plain.residual_quantiles[q]) < 1e-8);  // of z up to 5
  CHECK(summary.tenths == plain.tenths);
  CHECK(std::abs(summary.distance - plain.distance) < 1e-9);
  CHECK_THAT(summary.text(), ContainsSubstring(std::to_string(fit.num_rows) + " rows of weight " +
                                               std::to_string(repeated.num_rows()) + ", 1 input"));
}

TEST_CASE("weights: borders of sparse gates are those of repeated rows", "[gaussian]") {
  const auto truth = moe::GaussianMoe<moe::TopKGate>(test::three_lines(), {.k = 1});
  const moe::RegressionData data = weighted(test::simulated(truth, 150, 3)), repeated = moe::repeated_rows(data);
  auto start = truth;
  start.gate_bias(0) += 0.5;
  require_same_fit(moe::fit_from(data, start), moe::fit_from(repeated, start));
}

TEST_CASE("weights: a search ends where one of repeated rows does, on samples of the rows too", "[gaussian]") {
  const moe::RegressionData data = weighted(test::simulated(test::two_lines(), 300, 4));
  const moe::RegressionData repeated = moe::repeated_rows(data);
  const auto expected = moe::fit(repeated, 2);
  for (const moe::FitOptions& options : {moe::FitOptions{}, moe::FitOptions{.short_rows = 100}}) {
    const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, options);
    CHECK(fit.converged);
    CHECK(std::abs(fit.log_likelihood - expected.log_likelihood) < 1e-6);  // remaining_tolerance
    CHECK(fit.num_rows < data.num_rows());
    CHECK(fit.total_weight == static_cast<double>(repeated.num_rows()));
  }
  CHECK(moe::sweep_experts(data, {1, 3}).best_bic == moe::sweep_experts(repeated, {1, 3}).best_bic);
}

TEST_CASE("weights: a row of weight 0 has no influence, to the bit", "[gaussian]") {
  const auto truth = test::two_lines();
  moe::RegressionData some = test::simulated(truth, 140, 6);
  some.weights = Eigen::VectorXd::NullaryExpr(140, [](Index i) { return 0.5 + static_cast<double>(i % 3); });
  moe::RegressionData data{moe::Matrix<double>(280, 1), Eigen::VectorXd(280), Eigen::VectorXd::Zero(280)};
  for (Index i = 0; i < 140; ++i) {
    data.x(2 * i, 0) = some.x(i, 0);
    data.y(2 * i) = some.y(i);
    data.weights(2 * i) = some.weights(i);
    data.x(2 * i + 1, 0) = i % 2 ? 1e200 : -3;
    data.y(2 * i + 1) = i % 2 ? -1e300 : 1e5;
  }
  CHECK(moe::log_likelihood(truth, data) == moe::log_likelihood(truth, some));
  CHECK(moe::observed_information(truth, data) == moe::observed_information(truth, some));
  const auto fit = moe::fit(data, 2, moe::SoftmaxGate{}, {.starts = 5}),
             expected = moe::fit(some, 2, moe::SoftmaxGate{}, {.starts = 5});
  CHECK(fit.log_likelihood == expected.log_likelihood);
  CHECK(fit.model.slope == expected.model.slope);
  CHECK(moe::standard_errors(fit, data).observed == moe::standard_errors(expected, some).observed);
}

TEST_CASE("weights: one expert is weighted least squares", "[gaussian]") {
  moe::RegressionData data = test::simulated(test::two_lines(), 90, 9);
  data.weights = Eigen::VectorXd::NullaryExpr(90, [](Index i) { return 0.1 + 0.37 * static_cast<double>(i % 7); });
  Eigen::MatrixXd x(90, 2);
  x << data.x, Eigen::VectorXd::Ones(90);
  const Eigen::Matrix2d gram = x.transpose() * data.weights.asDiagonal() * x;
  const Eigen::Vector2d b = gram.ldlt().solve(x.transpose() * data.weights.cwiseProduct(data.y));
  const Eigen::VectorXd e = data.y - x * b;
  const double nu = data.weights.dot(e.cwiseAbs2()) / data.total_weight();
  const auto fit = moe::fit(data, 1);
  CHECK(std::abs(fit.model.slope(0, 0) - b(0)) < 1e-9);
  CHECK(std::abs(fit.model.intercept(0) - b(1)) < 1e-9);
  CHECK(std::abs(fit.model.variance(0) - nu) < 1e-9);
  const Eigen::Matrix2d covariance = nu * gram.inverse();
  const auto errors = moe::standard_errors(fit, data);
  CHECK(std::abs(errors["a[0,0]"].error->observed - std::sqrt(covariance(0, 0))) < 1e-9);
  CHECK(std::abs(errors["b[0]"].error->observed - std::sqrt(covariance(1, 1))) < 1e-9);
  CHECK(std::abs(errors["log variance[0]"].error->observed - std::sqrt(2 / data.total_weight())) < 1e-9);
}

TEST_CASE("weights: a bootstrap draws an outcome for each row that a weight stands for", "[gaussian]") {
  const auto truth = test::two_lines();
  moe::RegressionData data = weighted(test::simulated(truth, 60, 2));
  const auto fit = moe::fit_from(data, truth);
  const moe::BootstrapOptions options{.replications = 3};
  CHECK(moe::bootstrap(fit, data, options).replicates ==
        moe::bootstrap(fit, moe::repeated_rows(data).x, options).replicates);
  data.weights(4) = 0.5;
  CHECK_THAT(message_of([&] { moe::bootstrap(fit, data, options); }),
             ContainsSubstring("weights is 0.5 in row 4, expected whole numbers"));
}

TEST_CASE("weights: what is no weight is refused by name", "[gaussian][error]") {
  const auto truth = test::two_lines();
  const moe::RegressionData good = weighted(test::simulated(truth, 20, 2));
  const auto error = [&](Index row, double weight) {
    moe::RegressionData data = good;
    data.weights(row) = weight;
    return message_of([&] { moe::fit(data, 2); });
  };
  CHECK_THAT(error(3, -1), ContainsSubstring("moe::fit: weights is -1 in row 3, expected finite numbers >= 0"));
  CHECK_THAT(error(0, std::nan("")), ContainsSubstring("weights is nan in row 0"));
  CHECK_THAT(error(0, INFINITY), ContainsSubstring("weights is inf in row 0"));
  moe::RegressionData data = good;
  data.weights *= 0;
  CHECK_THAT(message_of([&] { moe::log_likelihood(truth, data); }), ContainsSubstring("weights is 0 in every row"));
  data.weights.setOnes(19);
  CHECK_THAT(message_of([&] { moe::fit_from(data, truth); }), ContainsSubstring("weights has 19 numbers, expected"));
  data.weights.setConstant(20, 0.1);
  CHECK_THAT(message_of([&] { moe::fit(data, 2); }), ContainsSubstring("there are 2 rows by their weights"));
  data.weights.setConstant(20, 1e308);
  CHECK_THAT(message_of([&] { moe::fit(data, 2); }), ContainsSubstring("weights has the sum inf"));
}
