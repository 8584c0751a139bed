// SPDX-License-Identifier: MIT
#include "gaussian/errors.hpp"
#include "gaussian/oracle_bounds.hpp"
#include "gaussian/oracle_information.hpp"
#include "gaussian/samples.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using oracle::Real;

namespace {

/// E_r[S^2] of one row, see below.
Real squared_score(const oracle::Model& m, const oracle::Row& row, const oracle::Coordinate& at) {
  const auto& [kind, j, column] = at;
  const Real both = row.posterior(j) + row.weight(j), e = std::abs(row.residual(j)), nu = m.variance(j);
  const auto square = [](Real a) { return a * a; };
  const auto gate = [&](Real x, Real slope, Real bend) {
    return both * x * x * (square(slope / m.tau) + bend / m.tau);
  };
  const Real slope = m.rule.slope(row.argument(j));
  switch (kind) {
    case oracle::Kind::GateSlope:
      return gate(row.x(column), slope, oracle::kMaxSlope);
    case oracle::Kind::GateBias:
      return m.rule.inside ? gate(1, slope, oracle::kMaxSlope) : gate(1, 1, 0);
    case oracle::Kind::LogTemperature: {
      Real sum = 0;
      for (Index l = 0; l < m.k; ++l)
        sum += (row.posterior(l) + row.weight(l)) * (square(row.score(l)) + std::abs(row.score(l)));
      return sum;
    }
    case oracle::Kind::Slope:
      return row.posterior(j) * square(row.x(column)) * (e * e / nu + 1) / nu;
    case oracle::Kind::Intercept:
      return row.posterior(j) * (e * e / nu + 1) / nu;
    case oracle::Kind::LogVariance:
      return row.posterior(j) * square(e * e / nu + 1) / 4;
  }
  return 0;
}

/// sqrt of E_r[S_a^2], summed over the rows: the size of the second derivatives before anything cancels, as
/// information(a, b) = E_r[-d^2 log p_c] - Cov_r(S_a, S_b), S the score of the complete data. The gate's S_j = 1 - pi_j
/// or -pi_j counts as r_j + pi_j, squares as squares of sums of magnitudes, and what multiplies second derivatives is
/// added.
template <class Gate>
oracle::Vec scales(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const oracle::Model m = oracle::model(model);
  const auto theta = oracle::coordinates(m);
  oracle::Vec sum = oracle::Vec::Zero(static_cast<Index>(theta.size()));
  for (Index i = 0; i < data.num_rows(); ++i) {
    const oracle::Row row = oracle::evaluate(m, data, i);
    for (Index c = 0; const oracle::Coordinate& at : theta) sum(c++) += squared_score(m, row, at);
  }
  return sum.cwiseSqrt();
}

oracle::Mat symmetric(const oracle::Mat& a) { return (a + a.transpose()) / 2; }

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

/// Worst error of score_covariance in units of its bound; infinite as above.
template <class Gate>
double covariance_error(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const oracle::Model m = oracle::model(model);
  const oracle::ActiveSets sets = oracle::active_sets(m, data);
  const oracle::Mat s = oracle::row_scores(m, data, sets), error = oracle::row_score_bounds(m, data, sets);
  const auto actual = moe::score_covariance(model, data);
  if (actual.rows() != s.cols() || actual.cols() != s.cols()) return INFINITY;
  double worst = 0;
  for (Index a = 0; a < s.cols(); ++a)
    for (Index b = 0; b < s.cols(); ++b) {
      Real expected = 0, bound = 0;
      for (Index i = 0; i < s.rows(); ++i) {
        const oracle::Known product = oracle::Known{s(i, a), error(i, a)} * oracle::Known{s(i, b), error(i, b)};
        expected += product.value;
        bound += product.error + oracle::gamma(s.rows() + 2) * std::abs(product.value);
      }
      const Real difference = std::abs(actual(a, b) - expected);
      if (!std::isfinite(difference) || actual(a, b) != actual(b, a)) return INFINITY;
      if (difference > 0) worst = std::max(worst, static_cast<double>(difference / bound));
    }
  return worst;
}

/// What the differences of the oracle's score are off (see oracle::kStep) for residuals of some hundred standard
/// deviations; the roundings of double, some 100 units of 1.1e-16 per row, are less.
constexpr double kInformation = 1e-10;

/// p evaluations of p derivatives are slow: less rows where there are many parameters.
constexpr test::Sizes kInformationSizes[] = {{1, 3, 2},   {2, 2, 1}, {7, 3, 2}, {127, 2, 1}, {128, 2, 1},
                                             {129, 2, 1}, {7, 1, 1}, {2, 8, 5}, {2, 11, 2},  {1, 3, 17}};

}  // namespace

TEST_CASE("observed_information: agrees with differences of the score for every gate and size", "[gaussian]") {
  for (const auto& [n, k, d] : kInformationSizes)
    test::for_each_model(
        k, d, [&, n = std::min<Index>(n, k * d > 20 ? 5 : 260), k = k, d = d](const char* name, const auto& model) {
          const auto data = test::sample_data(model, n);
          CAPTURE(n, k, d, name);
          const oracle::Mat expected = oracle::information(oracle::model(model), data);
          CHECK(scaled_error(moe::observed_information(model, data), expected, scales(model, data)) <= kInformation);
        });
}

TEST_CASE("observed_information: many rows", "[gaussian]") {
  const auto check = [](const auto& model) {
    const auto data = test::sample_data(model, 1000);
    const oracle::Mat expected = oracle::information(oracle::model(model), data);
    CHECK(scaled_error(moe::observed_information(model, data), expected, scales(model, data)) <= kInformation);
  };
  check(test::sample_model(3, 1, moe::SoftmaxGate{}));
  check(test::sample_model(2, 1, test::FreeActivationGate<moe::Tanh>{}, 1, moe::LastSlope::Free));
}

TEST_CASE("observed_information: one expert is least squares", "[gaussian]") {
  // in (a, b): X'X / nu; a with log nu: sum e x / nu; log nu: sum e^2 / (2 nu). Some 20 roundings of positive sums.
  const auto model = test::sample_model(1, 1, moe::SoftmaxGate{});
  const auto data = test::sample_data(model, 50);
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

TEST_CASE("oracle: both ways to the information agree", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    const auto data = test::sample_data(model, 20);
    const oracle::Model m = oracle::model(model);
    CAPTURE(name);
    CHECK(scaled_error(symmetric(oracle::information_by_louis(m, data)), oracle::information(m, data),
                       scales(model, data)) <= kInformation);
  });
}

TEST_CASE("observed_information: far rows, large logits and small variances are finite and right", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    const auto error = [](const auto& m, const moe::RegressionData& data) {
      return scaled_error(moe::observed_information(m, data), oracle::information_by_louis(oracle::model(m), data),
                          scales(m, data));
    };
    auto far = test::sample_data(model, 12);
    for (Index i = 0; i < far.num_rows(); ++i) far.y(i) += (i % 2 ? 1e6 : -1e6) * std::sqrt(model.variance(i % 3));
    CHECK(error(model, far) <= kInformation);
    auto large = model;
    large.gate_slope *= 1e4;
    CHECK(error(large, test::sample_data(large, 12)) <= kInformation);
    auto small = model;
    small.variance(0) = 1e-12;
    CHECK(error(small, test::sample_data(small, 12)) <= kInformation);
  });
}

TEST_CASE("score_covariance: is the sum of the outer products of the rows' scores", "[gaussian]") {
  for (const auto& [n, k, d] : test::kSizes)
    test::for_each_model(k, d, [&, n = n, k = k, d = d](const char* name, const auto& model) {
      CAPTURE(n, k, d, name);
      CHECK(covariance_error(model, test::sample_data(model, n)) <= 1);
    });
}

TEST_CASE("observed_information: the same bits for any number of threads", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    const auto data = test::sample_data(model, 2999);
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
  const auto model = test::sample_model(3, 2, moe::SoftmaxGate{});
  test::require_argument_errors("moe::observed_information", model, information);
  test::require_argument_errors("moe::score_covariance", model, covariance);
  test::require_normal_form_errors("moe::observed_information", information);
  test::require_normal_form_errors("moe::score_covariance", covariance);
}
