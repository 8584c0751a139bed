// SPDX-License-Identifier: MIT
#include "moe/gaussian/pass/likelihood.hpp"

#include "gaussian/errors.hpp"
#include "gaussian/oracle_bounds.hpp"
#include "gaussian/samples.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using oracle::Real;

namespace {

/// |actual - expected| in units of the bound: at most 1 if the computation is right, infinite for NaN.
double off(double actual, Real expected, Real bound) {
  const Real difference = std::abs(actual - expected);
  if (!std::isfinite(actual) || !std::isfinite(difference)) return INFINITY;
  return difference == 0 ? 0 : static_cast<double>(difference / bound);
}

/// Worst error of log_density, and of log_likelihood.
template <class Gate>
double density_error(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const oracle::Model m = oracle::model(model);
  const Eigen::VectorXd density = moe::log_density(model, data);
  if (density.size() != data.num_rows()) return INFINITY;
  double worst =
      off(moe::log_likelihood(model, data), oracle::log_likelihood(m, data), oracle::log_likelihood_bound(m, data));
  for (Index i = 0; i < data.num_rows(); ++i) {
    const oracle::Row row = oracle::evaluate(m, data, i);
    worst = std::max(worst, off(density(i), row.log_density, oracle::bound(m, row).log_density));
  }
  return worst;
}

/// Worst error of responsibilities; infinite if an inactive expert has any, or a row does not sum to 1 within 4 ulp.
template <class Gate>
double posterior_error(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const oracle::Model m = oracle::model(model);
  const moe::Matrix<double> r = moe::responsibilities(model, data);
  if (r.rows() != data.num_rows() || r.cols() != m.k) return INFINITY;
  double worst = 0;
  for (Index i = 0; i < r.rows(); ++i) {
    const oracle::Row row = oracle::evaluate(m, data, i);
    const oracle::RowBound bound = oracle::bound(m, row);
    Real sum = 0;
    for (Index j = 0; j < m.k; ++j) {
      sum += r(i, j);
      if (!(r(i, j) >= 0) || (!row.active[static_cast<std::size_t>(j)] && r(i, j) != 0)) return INFINITY;
      worst = std::max(worst, off(r(i, j), row.posterior(j), bound.posterior(j)));
    }
    if (!(std::abs(sum - 1) <= 4 * std::numeric_limits<double>::epsilon())) return INFINITY;
  }
  return worst;
}

/// One row at x = 1 per y, for models with one input.
moe::RegressionData rows_at_one(std::initializer_list<double> y) {
  moe::RegressionData data{.x = moe::Matrix<double>::Ones(static_cast<Index>(y.size()), 1),
                           .y = Eigen::VectorXd(static_cast<Index>(y.size()))};
  std::copy(y.begin(), y.end(), data.y.data());
  return data;
}

/// Three experts with the given gate biases and variances; flat means 0, 1, 2.
moe::GaussianMoe<> flat_experts(std::array<double, 3> gate_bias, std::array<double, 3> variance) {
  auto model = moe::GaussianMoe<>::zero(3, 1);
  for (std::size_t j = 0; j < 3; ++j) {
    model.gate_bias(static_cast<Index>(j)) = gate_bias[j];
    model.variance(static_cast<Index>(j)) = variance[j];
    model.intercept(static_cast<Index>(j)) = static_cast<double>(j);
  }
  return model;
}

}  // namespace

TEST_CASE("log_density: above 200 experts, where a block takes several logarithms", "[gaussian]") {
  for (const Index k : {200, 201, 300}) {
    const auto model = test::sample_model(k, 1, moe::SoftmaxGate{});
    CAPTURE(k);
    CHECK(density_error(model, test::sample_data(model, 150)) <= 1);
  }
}

TEST_CASE("log_density: agrees with the definition for every gate and size", "[gaussian]") {
  for (const auto& [n, k, d] : test::kSizes)
    test::for_each_model(k, d, [&, n = n, k = k, d = d](const char* name, const auto& model) {
      CAPTURE(n, k, d, name);
      CHECK(density_error(model, test::sample_data(model, n)) <= 1);
    });
}

TEST_CASE("responsibilities: agree with the definition, sum to 1, exactly 0 where inactive", "[gaussian]") {
  for (const auto& [n, k, d] : test::kSizes)
    test::for_each_model(k, d, [&, n = n, k = k, d = d](const char* name, const auto& model) {
      CAPTURE(n, k, d, name);
      CHECK(posterior_error(model, test::sample_data(model, n)) <= 1);
    });
}

TEST_CASE("responsibilities: of experts that tie the lower ones are active", "[gaussian]") {
  test::for_each_top_k(5, 2, [](const char* name, const auto& distinct) {
    const auto model = test::with_ties(distinct);
    auto data = test::sample_data(model, 200);
    data.x = test::tied_inputs(200, 2);
    CAPTURE(name);
    CHECK(density_error(model, data) <= 1);
    CHECK(posterior_error(model, data) <= 1);
  });
}

TEST_CASE("log_likelihood: one expert is least squares, worked by hand", "[gaussian]") {
  // nu = 4, m = 1 + 2 x, residuals 2, -4 and 0: -3/2 log(8 pi) - (4 + 16) / 8
  auto model = moe::GaussianMoe<>::zero(1, 1);
  model.slope(0, 0) = 2;
  model.intercept(0) = 1;
  model.variance(0) = 4;
  moe::RegressionData data{.x = moe::Matrix<double>(3, 1), .y = Eigen::VectorXd(3)};
  data.x << 0, 1, -1;
  data.y << 3, -1, -1;
  const double expected = -1.5 * std::log(8 * static_cast<double>(oracle::kPi)) - 2.5;
  CHECK_THAT(moe::log_likelihood(model, data), Catch::Matchers::WithinRel(expected, 1e-15));
}

TEST_CASE("log_density: rows a million standard deviations away are finite and right", "[gaussian]") {
  const auto model = flat_experts({0.3, -0.2, 0}, {1, 1e-4, 0.25});
  const auto data = rows_at_one({1e6, -1e6, 1e4, 1.0, 1e-6});
  CHECK(density_error(model, data) <= 1);
  CHECK(posterior_error(model, data) <= 1);
  test::for_each_model(3, 2, [&](const char* name, const auto& other) {
    CAPTURE(name);
    auto rows = test::sample_data(other, 40);
    for (Index i = 0; i < rows.num_rows(); ++i) rows.y(i) += (i % 2 ? 1e6 : -1e6) * std::sqrt(other.variance(i % 3));
    CHECK(density_error(other, rows) <= 1);
    CHECK(posterior_error(other, rows) <= 1);
  });
}

TEST_CASE("log_density: logits of +-1e4 are finite and right", "[gaussian]") {
  // with variance 1e-6, components differ by e^(5e5) and more, so that the unlikely expert holds the row
  for (const double variance : {1.0, 1e-6}) {
    const auto model = flat_experts({1e4, -1e4, 0}, {variance, variance, variance});
    const auto data = rows_at_one({0, 1, 2, 1.5, -7});
    CAPTURE(variance);
    CHECK(density_error(model, data) <= 1);
    CHECK(posterior_error(model, data) <= 1);
  }
  test::for_each_model(3, 2, [](const char* name, auto model) {
    CAPTURE(name);
    model.gate_slope *= 1e4;
    const auto data = test::sample_data(model, 40);
    CHECK(density_error(model, data) <= 1);
    CHECK(posterior_error(model, data) <= 1);
  });
}

TEST_CASE("log_density: variances of 1e-12 and 1e12 are finite and right", "[gaussian]") {
  const auto model = flat_experts({0.5, -0.5, 0}, {1e-12, 1e12, 1});
  const auto data = rows_at_one({0, 1e-6, 1e-3, 1, 1e7, -3e-6});
  CHECK(density_error(model, data) <= 1);
  CHECK(posterior_error(model, data) <= 1);
  test::for_each_model(2, 1, [](const char* name, auto other) {
    CAPTURE(name);
    other.variance(0) = 1e-12;
    const auto rows = test::sample_data(other, 40);
    CHECK(density_error(other, rows) <= 1);
    CHECK(posterior_error(other, rows) <= 1);
  });
}

TEST_CASE("log_density: the temperature that counts is the model's, not the gate's", "[gaussian]") {
  auto model = test::sample_model(3, 2, test::TemperatureGate{.temperature = {0.7}});
  model.temperature = 0.05;
  CHECK(density_error(model, test::sample_data(model, 50)) <= 1);
}

TEST_CASE("log_likelihood: the same bits for any number of threads", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    const auto data = test::sample_data(model, 2999);
    const double serial = moe::log_likelihood(model, data);
    const Eigen::VectorXd density = moe::log_density(model, data);
    const moe::Matrix<double> posterior = moe::responsibilities(model, data);
    for (const Index threads : {1, 2, 3, 8}) {
      test::ThreadExecutor executor(threads);
      const moe::UseExecutor use(executor);
      CAPTURE(name, threads);
      CHECK(test::same_bits(moe::log_likelihood(model, data), serial));
      CHECK(test::same_bits(moe::log_density(model, data), density));
      CHECK(test::same_bits(moe::responsibilities(model, data), posterior));
    }
  });
}

TEST_CASE("log_likelihood: bad models and data are errors that name the function", "[gaussian][error]") {
  const auto model = test::sample_model(3, 2, moe::SoftmaxGate{});
  test::require_argument_errors("moe::log_likelihood", model, [](auto&&... a) { moe::log_likelihood(a...); });
  test::require_argument_errors("moe::log_density", model, [](auto&&... a) { moe::log_density(a...); });
  test::require_argument_errors("moe::responsibilities", model, [](auto&&... a) { moe::responsibilities(a...); });
}
