// SPDX-License-Identifier: MIT
#include "moe/gaussian/predict/sample.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gaussian/mixtures.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;

constexpr Index kRows = 20000;

/// sqrt(n) times the largest distance of the empirical distribution of `values` from the uniform one. For uniform
/// values it exceeds t with probability <= 2 exp(-2 t^2) (Dvoretzky, Kiefer & Wolfowitz; Massart): 7e-6 at t = 2.5.
double kolmogorov(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  double distance = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto rank = static_cast<double>(i);
    distance = std::max({distance, (rank + 1) / n - values[i], values[i] - rank / n});
  }
  return std::sqrt(n) * distance;
}

template <class Gate>
void check_distribution(const moe::GaussianMoe<Gate>& model) {
  const auto x = test::random_inputs(kRows, model.input_dim(), 21);
  const moe::Draws draws = moe::draw(model, x, 5);
  const Eigen::VectorXd levels = moe::predict_cdf(model, x, draws.y);
  CHECK(kolmogorov({levels.begin(), levels.end()}) < 2.5);

  // sums of independent bounded or normal terms, within 5 of their standard deviations
  const moe::Moments moments = moe::predict_moments(model, x);
  CHECK(std::abs((draws.y - moments.mean).sum()) < 5 * std::sqrt(moments.variance.sum()));
  const Matrix<double> pi = moe::gate_weights(model, x), m = moe::expert_means(model, x);
  for (Index j = 0; j < model.num_experts(); ++j) {
    CAPTURE(j);
    double excess = 0, variance = 0;
    std::vector<double> own;
    for (Index i = 0; i < kRows; ++i) {
      const bool chosen = draws.experts[static_cast<std::size_t>(i)] == j;
      if (chosen) REQUIRE(pi(i, j) > 0);
      excess += (chosen ? 1 : 0) - pi(i, j);
      variance += pi(i, j) * (1 - pi(i, j));
      if (chosen) own.push_back(0.5 * std::erfc((m(i, j) - draws.y(i)) / std::sqrt(2 * model.variance(j))));
    }
    CHECK(std::abs(excess) <= 5 * std::sqrt(variance) + 1e-9);
    if (!own.empty()) CHECK(kolmogorov(own) < 2.5);
  }
}

}  // namespace

TEST_CASE("sample: values and experts have the distribution of the model", "[gaussian][property]") {
  check_distribution(test::random_model(1, 1, moe::SoftmaxGate{}, 1));
  check_distribution(test::random_model(3, 2, moe::SoftmaxGate{}, 2));
  check_distribution(test::random_model(4, 1, moe::TopKGate{.k = 2}, 3));
  check_distribution(test::random_model(3, 1, moe::TopKGate{.k = 1}, 4));
  check_distribution(test::random_model(2, 3, moe::ActivationGate<moe::Tanh>{}, 5));
}

TEST_CASE("sample: successive rows are uncorrelated, and so are seeds", "[gaussian][property]") {
  const auto model = test::random_model(3, 1, moe::SoftmaxGate{}, 6);
  const Matrix<double> x = Matrix<double>::Constant(kRows, 1, 0.4);
  const Eigen::VectorXd a = moe::sample(model, x, 1), b = moe::sample(model, x, 2);
  const moe::NormalMixture at = moe::conditional(model, x.row(0));
  const Eigen::ArrayXd za = (a.array() - at.mean()) / std::sqrt(at.variance());
  const Eigen::ArrayXd zb = (b.array() - at.mean()) / std::sqrt(at.variance());
  // products of independent standardised numbers: mean 0, variance 1
  CHECK(std::abs((za * zb).sum()) < 5 * std::sqrt(static_cast<double>(kRows)));
  CHECK(std::abs((za.head(kRows - 1) * za.tail(kRows - 1)).sum()) < 5 * std::sqrt(static_cast<double>(kRows)));
}

TEST_CASE("sample: pure function of row and seed, for any number of threads", "[gaussian]") {
  const auto model = test::random_model(3, 2, moe::SoftmaxGate{}, 7);
  const auto x = test::random_inputs(1000, 2, 22);
  const moe::Draws draws = moe::draw(model, x, 9);
  CHECK(moe::sample(model, x, 9) == draws.y);
  CHECK(moe::sample(model, x.topRows(300), 9) == draws.y.head(300));
  CHECK(moe::sample(model, x, 10) != draws.y);
  for (const Index threads : {1, 2, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    const moe::Draws again = moe::draw(model, x, 9);
    CAPTURE(threads);
    CHECK(again.y == draws.y);
    CHECK(again.experts == draws.experts);
  }
}

TEST_CASE("sample: wrong inputs are errors that name them", "[gaussian][error]") {
  const auto model = test::random_model(2, 2, moe::SoftmaxGate{}, 8);
  CHECK_THROWS_WITH(moe::sample(model, Matrix<double>::Zero(3, 1), 1), ContainsSubstring("x is [3, 1]"));
  CHECK_THROWS_WITH(moe::draw(model, Matrix<double>::Constant(3, 2, INFINITY), 1), ContainsSubstring("x is inf"));
}
