// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "gaussian/errors.hpp"
#include "gaussian/oracle_bounds.hpp"
#include "gaussian/samples.hpp"
#include "moe/gaussian/likelihood.hpp"
#include "thread_executor.hpp"

using moe::Index;
using oracle::Real;

namespace {

/// Size of a coordinate's second derivatives before anything cancels: sqrt(sum_i (sum_j |S_ijc|)^2), S the score of the
/// complete data with each of its terms taken positive, and the root of what multiplies second derivatives added.
/// |information(a, b)| <= scale(a) scale(b), up to a factor of order 1.
template <class Gate>
oracle::Vec scales(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const oracle::Model m = oracle::model(model);
  const auto theta = oracle::coordinates(m);
  oracle::Vec sum = oracle::Vec::Zero(static_cast<Index>(theta.size()));
  for (Index i = 0; i < data.num_rows(); ++i) {
    const oracle::Row row = oracle::evaluate(m, data, i);
    for (Index c = 0; c < sum.size(); ++c) {
      const auto& [kind, j, column] = theta[static_cast<std::size_t>(c)];
      const Real x = kind == oracle::Kind::GateSlope || kind == oracle::Kind::Slope ? std::abs(row.x(column)) : 1;
      const Real both = row.posterior(j) + row.weight(j), e = std::abs(row.residual(j)), nu = m.variance(j);
      const bool outer = kind == oracle::Kind::GateBias && !m.rule.inside;
      const Real slope = outer ? 1 : std::abs(m.rule.slope(row.argument(j)));
      Real size = 0;
      if (kind == oracle::Kind::GateSlope || kind == oracle::Kind::GateBias)
        size = both * x * (slope / m.tau + std::sqrt((outer ? 0 : oracle::kMaxSlope) / m.tau));
      if (kind == oracle::Kind::LogTemperature)
        for (Index l = 0; l < m.k; ++l) {
          const Real z = std::abs(row.score(l));
          if (row.active[static_cast<std::size_t>(l)]) size += (row.posterior(l) + row.weight(l)) * (z + std::sqrt(z));
        }
      if (kind == oracle::Kind::Slope || kind == oracle::Kind::Intercept)
        size = row.posterior(j) * x * (e / nu + 1 / std::sqrt(nu));
      if (kind == oracle::Kind::LogVariance) size = row.posterior(j) * (e * e / nu + 1) / 2;
      sum(c) += size * size;
    }
  }
  return sum.cwiseSqrt();
}

/// Worst |actual - expected| / (scale_a scale_b); infinite for NaN, another shape or a matrix that is not symmetric.
template <class A>
double scaled_error(const A& actual, const oracle::Mat& expected, const oracle::Vec& scale) {
  if (actual.rows() != expected.rows() || actual.cols() != expected.cols()) return INFINITY;
  double worst = 0;
  for (Index a = 0; a < actual.rows(); ++a)
    for (Index b = 0; b < actual.cols(); ++b) {
      const Real difference = std::abs(actual(a, b) - expected(a, b));
      if (!std::isfinite(difference) || actual(a, b) != actual(b, a)) return INFINITY;
      if (difference > 0) worst = std::max(worst, static_cast<double>(difference / (scale(a) * scale(b))));
    }
  return worst;
}

/// What the differences of the oracle's score are off (see oracle::kStep) for residuals of some hundred standard
/// deviations; the roundings of double, some 100 units of 1.1e-16 per row, are less.
constexpr double kInformation = 1e-10;

}  // namespace

TEST_CASE("observed_information: agrees with differences of the score for every gate and size", "[gaussian]") {
  for (const auto& [n, k, d] : test::kSizes)
    test::for_each_model(
        k, d, [&, n = std::min<Index>(n, k * d > 20 ? 5 : 260), k = k, d = d](const char* name, const auto& model) {
          const auto data = test::random_data(model, n);
          CAPTURE(n, k, d, name);
          const oracle::Mat expected = oracle::information(oracle::model(model), data);
          CHECK(scaled_error(moe::observed_information(model, data), expected, scales(model, data)) <= kInformation);
        });
}

TEST_CASE("observed_information: many rows", "[gaussian]") {
  test::for_each_model(2, 1, [](const char* name, const auto& model) {
    const auto data = test::random_data(model, 1000);
    CAPTURE(name);
    const oracle::Mat expected = oracle::information(oracle::model(model), data);
    CHECK(scaled_error(moe::observed_information(model, data), expected, scales(model, data)) <= kInformation);
  });
}

TEST_CASE("observed_information: one expert is least squares", "[gaussian]") {
  // in (a, b): X'X / nu; a with log nu: sum e x / nu; log nu: sum e^2 / (2 nu). Some 20 roundings of positive sums.
  const auto model = test::random_model(1, 1, moe::SoftmaxGate{});
  const auto data = test::random_data(model, 50);
  Eigen::Matrix3d expected = Eigen::Matrix3d::Zero();
  for (Index i = 0; i < 50; ++i) {
    const double x = data.x(i, 0), e = data.y(i) - model.slope(0, 0) * x - model.intercept(0);
    Eigen::Matrix3d row;
    row << x * x, x, e * x, x, 1, e, e * x, e, e * e / 2;
    expected += row / model.variance(0);
  }
  const auto actual = moe::observed_information(model, data);
  REQUIRE(actual.rows() == 3);
  CHECK(test::largest(actual - expected) <= 1e-13 * test::largest(expected));
}

TEST_CASE("observed_information: far rows, large logits and small variances are finite and right", "[gaussian]") {
  // where e / sqrt nu is 1e6 or a logit 1e4, differences of step h see nothing: rows are such that one expert holds
  // each
  const auto far = [](auto model) {
    auto data = test::random_data(model, 12);
    for (Index i = 0; i < data.num_rows(); ++i) data.y(i) += (i % 2 ? 1e6 : -1e6) * std::sqrt(model.variance(i % 3));
    return moe::observed_information(model, data).eval();
  };
  test::for_each_model(3, 2, [&](const char* name, const auto& model) {
    CAPTURE(name);
    CHECK(std::isfinite(test::largest(far(model))));
    auto large = model;
    large.gate_slope *= 1e4;
    CHECK(std::isfinite(test::largest(moe::observed_information(large, test::random_data(large, 40)))));
    auto small = model;
    small.variance(0) = 1e-12;
    CHECK(std::isfinite(test::largest(moe::observed_information(small, test::random_data(small, 40)))));
  });
}

TEST_CASE("score_covariance: is the sum of the outer products of the rows' scores", "[gaussian]") {
  for (const auto& [n, k, d] : test::kSizes)
    test::for_each_model(k, d, [&, n = n, k = k, d = d](const char* name, const auto& model) {
      const auto data = test::random_data(model, n);
      const oracle::Model m = oracle::model(model);
      const oracle::ActiveSets sets = oracle::active_sets(m, data);
      const oracle::Mat rows = oracle::row_scores(m, data, sets), error = oracle::row_score_bounds(m, data, sets);
      const oracle::Mat size = rows.cwiseAbs(), expected = rows.transpose() * rows;
      oracle::Mat bound = size.transpose() * error + error.transpose() * (size + error);
      bound += oracle::gamma(n + 2) * size.transpose() * size;
      const auto actual = moe::score_covariance(model, data);
      CAPTURE(n, k, d, name);
      REQUIRE(actual.rows() == expected.rows());
      REQUIRE(actual.cols() == expected.cols());
      Real worst = 0;
      for (Index a = 0; a < actual.rows(); ++a)
        for (Index b = 0; b < actual.cols(); ++b) {
          const Real difference = std::abs(actual(a, b) - expected(a, b));
          if (!(difference <= bound(a, b)) || actual(a, b) != actual(b, a)) worst = INFINITY;
        }
      CHECK(worst == 0);
    });
}

TEST_CASE("observed_information: the same bits for any number of threads", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    const auto data = test::random_data(model, 2999);
    const Eigen::MatrixXd information = moe::observed_information(model, data);
    const Eigen::MatrixXd covariance = moe::score_covariance(model, data);
    for (const Index threads : {1, 2, 3, 8}) {
      test::ThreadExecutor executor(threads);
      const moe::UseExecutor use(executor);
      CAPTURE(name, threads);
      CHECK(test::same_bits(moe::observed_information(model, data), information));
      CHECK(test::same_bits(moe::score_covariance(model, data), covariance));
    }
  });
}

TEST_CASE("observed_information: bad models and data are errors that name the function", "[gaussian][error]") {
  const auto information = [](auto&&... a) { moe::observed_information(a...); };
  const auto covariance = [](auto&&... a) { moe::score_covariance(a...); };
  const auto model = test::random_model(3, 2, moe::SoftmaxGate{});
  test::require_argument_errors("moe::observed_information", model, information);
  test::require_argument_errors("moe::score_covariance", model, covariance);
  test::require_normal_form_errors("moe::observed_information", information);
  test::require_normal_form_errors("moe::score_covariance", covariance);
}
