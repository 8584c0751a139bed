// SPDX-License-Identifier: MIT
#include <array>

#include "gaussian/errors.hpp"
#include "gaussian/oracle_bounds.hpp"
#include "gaussian/samples.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using oracle::Real;

namespace {

/// Worst error of score in units of its bound.
template <class Gate>
double score_error(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const oracle::Model m = oracle::model(model);
  const oracle::ActiveSets sets = oracle::active_sets(m, data);
  return oracle::worst(moe::score(model, data), oracle::score(m, data, sets), oracle::score_bounds(m, data, sets));
}

/// Worst |score - central difference|, relative to the sum of the magnitudes of the rows' scores. What rounding leaves
/// in the differences, 2 u sum |l_i| / h, is taken off: it is all there is where a score is exactly 0.
template <class Gate>
double difference_error(const moe::GaussianMoe<Gate>& model, const moe::RegressionData& data) {
  const oracle::Model m = oracle::model(model);
  const oracle::Mat rows = oracle::row_scores(m, data, oracle::active_sets(m, data));
  const oracle::Vec expected = oracle::score_by_differences(m, data);
  const Eigen::VectorXd actual = moe::score(model, data);
  if (actual.size() != expected.size()) return INFINITY;
  Real reach = 0;
  for (Index i = 0; i < data.num_rows(); ++i) reach += std::abs(oracle::evaluate(m, data, i).log_density);
  const Real rounding = std::numeric_limits<Real>::epsilon() * reach / oracle::kStep;
  double worst = 0;
  for (Index c = 0; c < expected.size(); ++c) {
    const Real difference = std::abs(actual(c) - expected(c)), scale = rows.col(c).cwiseAbs().sum();
    if (!std::isfinite(difference)) return INFINITY;
    if (difference > rounding) worst = std::max(worst, static_cast<double>((difference - rounding) / scale));
  }
  return worst;
}

}  // namespace

TEST_CASE("score: agrees with central differences of the log-likelihood for every gate", "[gaussian]") {
  for (const auto& [n, k, d] : {test::Sizes{29, 3, 2}, {29, 2, 1}, {1, 3, 2}, {13, 1, 2}})
    test::for_each_model(k, d, [&, n = n, k = k, d = d](const char* name, const auto& model) {
      CAPTURE(n, k, d, name);
      CHECK(difference_error(model, test::sample_data(model, n)) <= 1e-8);
    });
}

TEST_CASE("score: agrees with its formula for every gate and size", "[gaussian]") {
  for (const auto& [n, k, d] : test::kSizes)
    test::for_each_model(k, d, [&, n = n, k = k, d = d](const char* name, const auto& model) {
      CAPTURE(n, k, d, name);
      CHECK(score_error(model, test::sample_data(model, n)) <= 1);
    });
}

TEST_CASE("score: stands where the layout says", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    const moe::ParameterLayout at = moe::layout(model);
    const auto theta = oracle::coordinates(oracle::model(model));
    CAPTURE(name);
    REQUIRE(at.size() == static_cast<Index>(theta.size()));
    for (std::size_t c = 0; c < theta.size(); ++c) {
      const auto& [kind, expert, column] = theta[c];
      const std::array<Index, 6> place = {at.gate_slope(expert) + column, at.gate_bias(expert),
                                          at.log_temperature(),           at.slope(expert) + column,
                                          at.intercept(expert),           at.log_variance(expert)};
      CHECK(place[static_cast<std::size_t>(kind)] == static_cast<Index>(c));
    }
  });
}

TEST_CASE("score: an expert that is never active has none, and neither has the gate of a top-1 model", "[gaussian]") {
  auto model = test::sample_model(3, 1, moe::TopKGate{.k = 1});
  model.gate_bias(1) = -1e6;
  const auto data = test::sample_data(model, 200);
  const moe::ParameterLayout at = moe::layout(model);
  const Eigen::VectorXd score = moe::score(model, data);
  for (Index c = 0; c < at.num_gate(); ++c) CHECK(score(c) == 0);
  CHECK(score(at.slope(1)) == 0);
  CHECK(score(at.intercept(1)) == 0);
  CHECK(score(at.log_variance(1)) == 0);
  CHECK(score(at.intercept(0)) != 0);
}

TEST_CASE("score: far rows, large logits and small variances are finite and right", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    CAPTURE(name);
    auto far = test::sample_data(model, 40);
    for (Index i = 0; i < far.num_rows(); ++i) far.y(i) += (i % 2 ? 1e6 : -1e6) * std::sqrt(model.variance(i % 3));
    CHECK(score_error(model, far) <= 1);
    auto large = model;
    large.gate_slope *= 1e4;
    CHECK(score_error(large, test::sample_data(large, 40)) <= 1);
    auto small = model;
    small.variance(0) = 1e-12;
    CHECK(score_error(small, test::sample_data(small, 40)) <= 1);
  });
}

TEST_CASE("score: the same bits for any number of threads", "[gaussian]") {
  test::for_each_model(3, 2, [](const char* name, const auto& model) {
    const auto data = test::sample_data(model, 2999);
    const Eigen::VectorXd serial = moe::score(model, data);
    for (const Index threads : {1, 2, 3, 8}) {
      test::ThreadExecutor executor(threads);
      const moe::UseExecutor use(executor);
      CAPTURE(name, threads);
      CHECK(test::same_bits(moe::score(model, data), serial));
    }
  });
}

TEST_CASE("score: bad models and data are errors that name the function", "[gaussian][error]") {
  const auto call = [](auto&&... a) { moe::score(a...); };
  const auto model = test::sample_model(3, 2, moe::SoftmaxGate{});
  test::require_argument_errors("moe::score", model, call);
  test::require_normal_form_errors("moe::score", call);
}
