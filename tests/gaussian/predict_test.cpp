// SPDX-License-Identifier: MIT
#include "moe/gaussian/predict/predict.hpp"

#include <array>
#include <limits>

#include "gaussian/mixtures.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr Index kRows = 600;  // three tasks

/// The definition, from weights and means of all rows.
template <class Gate>
void check_against_definition(const moe::GaussianMoe<Gate>& model, const Matrix<double>& x) {
  const Matrix<double> pi = moe::gate_weights(model, x), m = moe::expert_means(model, x);
  const Eigen::VectorXd y = Eigen::VectorXd::LinSpaced(x.rows(), -6, 6);
  const moe::Moments moments = moe::predict_moments(model, x);
  const Eigen::VectorXd densities = moe::predict_density(model, x, y), cdf = moe::predict_cdf(model, x, y);
  for (Index i = 0; i < x.rows(); ++i) {
    CAPTURE(i);
    double mean = 0, square = 0, density = 0, below = 0;
    for (Index j = 0; j < model.num_experts(); ++j) {
      const double nu = model.variance(j), e = y(i) - m(i, j);
      mean += pi(i, j) * m(i, j);
      square += pi(i, j) * (nu + m(i, j) * m(i, j));
      density += pi(i, j) * std::exp(-0.5 * e * e / nu) / std::sqrt(2 * 3.14159265358979323846 * nu);
      below += pi(i, j) * 0.5 * std::erfc(-e / std::sqrt(2 * nu));
    }
    // sums of k terms; the textbook variance cancels against its mean square; exponents up to z^2 / 2 ~ 1000
    REQUIRE_THAT(moments.mean(i), WithinAbs(mean, 64 * kEpsilon * m.row(i).cwiseAbs().maxCoeff()));
    REQUIRE_THAT(moments.variance(i), WithinAbs(square - mean * mean, 64 * kEpsilon * square));
    REQUIRE_THAT(densities(i), WithinAbs(density, 2000 * kEpsilon));
    REQUIRE_THAT(cdf(i), WithinAbs(below, 64 * kEpsilon));
  }
}

}  // namespace

TEST_CASE("predict: moments, densities and cdf are those of the definition", "[gaussian]") {
  const auto x = test::random_inputs(kRows, 2, 3);
  check_against_definition(test::random_model(1, 2, moe::SoftmaxGate{}, 1), x);
  check_against_definition(test::random_model(3, 2, moe::SoftmaxGate{}, 2), x);
  check_against_definition(test::random_model(4, 2, moe::TopKGate{.k = 2}, 3), x);
  check_against_definition(test::random_model(3, 2, moe::DenseToSparseGate<moe::ConstantSchedule>{}, 4), x);
  check_against_definition(test::random_model(3, 2, moe::ActivationGate<moe::Tanh>{}, 5), x);
}

TEST_CASE("predict: with one active expert everything is that expert's", "[gaussian]") {
  const auto model = test::random_model(3, 2, moe::TopKGate{.k = 1}, 6);
  const auto x = test::random_inputs(kRows, 2, 7);
  const Matrix<double> m = moe::expert_means(model, x);
  const std::vector<Index> experts = moe::predict_expert(model, x);
  const std::array levels{0.05, 0.5};
  const Matrix<double> quantiles = moe::predict_quantiles(model, x, levels);
  const moe::Moments moments = moe::predict_moments(model, x);
  const Eigen::VectorXd modes = moe::predict_mode(model, x), variances = moe::predict_variance(model, x);
  for (Index i = 0; i < kRows; ++i) {
    const Index j = experts[static_cast<std::size_t>(i)];
    const double tolerance = 16 * kEpsilon * (std::abs(m(i, j)) + 10);  // |a . x + b| <= 10 summed in another order
    REQUIRE_THAT(moments.mean(i), WithinAbs(m(i, j), tolerance));
    REQUIRE(variances(i) == model.variance(j));
    REQUIRE(modes(i) == moments.mean(i));
    REQUIRE_THAT(quantiles(i, 1), WithinAbs(m(i, j), tolerance));
    REQUIRE_THAT(quantiles(i, 0), WithinAbs(m(i, j) - 1.6448536269514722 * std::sqrt(model.variance(j)), tolerance));
  }
}

TEST_CASE("predict: rows agree with the distribution at one x", "[gaussian]") {
  const auto model = test::random_model(3, 2, moe::SoftmaxGate{}, 8);
  const auto x = test::random_inputs(5, 2, 9);
  const Eigen::VectorXd y = Eigen::VectorXd::LinSpaced(7, -3, 3);
  const std::array levels{0.1, 0.9};
  const Matrix<double> grid = moe::density_grid(model, x, y), quantiles = moe::predict_quantiles(model, x, levels);
  const Eigen::VectorXd modes = moe::predict_mode(model, x), means = moe::predict_mean(model, x);
  const std::vector<Index> prior = moe::predict_expert(model, x), posterior = moe::predict_expert(model, x, y.head(5));
  for (Index i = 0; i < 5; ++i) {
    const moe::NormalMixture at = moe::conditional(model, x.row(i));
    for (Index c = 0; c < 7; ++c) CHECK(grid(i, c) == at.density(y(c)));
    CHECK(quantiles(i, 0) == at.quantile(0.1));
    CHECK(quantiles(i, 1) == at.quantile(0.9));
    CHECK(modes(i) == at.mode());
    CHECK(means(i) == at.mean());
    CHECK(prior[static_cast<std::size_t>(i)] == at.expert());
    CHECK(posterior[static_cast<std::size_t>(i)] == at.expert(y(i)));
  }
}

TEST_CASE("predict: the same bits for any number of threads", "[gaussian]") {
  const auto model = test::random_model(4, 3, moe::TopKGate{.k = 2}, 10);
  const auto x = test::random_inputs(kRows, 3, 11);
  const std::array levels{0.01, 0.99};
  const Eigen::VectorXd mean = moe::predict_mean(model, x);
  const Matrix<double> quantiles = moe::predict_quantiles(model, x, levels);
  for (const Index threads : {1, 2, 3}) {
    test::ThreadExecutor executor(threads);
    const moe::UseExecutor use(executor);
    CAPTURE(threads);
    CHECK(moe::predict_mean(model, x) == mean);
    CHECK(moe::predict_quantiles(model, x, levels) == quantiles);
  }
}

TEST_CASE("predict: wrong inputs are errors that name them", "[gaussian][error]") {
  const auto model = test::random_model(2, 2, moe::SoftmaxGate{}, 12);
  Matrix<double> x = test::random_inputs(4, 2, 13);
  CHECK_THROWS_WITH(moe::predict_mean(model, x.leftCols(1)), ContainsSubstring("x is [4, 1], expected [4, 2]"));
  CHECK_THROWS_WITH(moe::predict_density(model, x, Eigen::VectorXd::Zero(3)), ContainsSubstring("y is [3, 1]"));
  CHECK_THROWS_WITH(moe::predict_quantiles(model, x, std::array{0.5, 1.0}), ContainsSubstring("p is 1"));
  x(2, 1) = NAN;
  CHECK_THROWS_WITH(moe::predict_mode(model, x), ContainsSubstring("x is nan in row 2, column 1"));
  auto bad = model;
  bad.variance(1) = -1;
  CHECK_THROWS_WITH(moe::conditional(bad, Eigen::RowVectorXd::Zero(2)), ContainsSubstring("variance of expert 1"));
  CHECK(moe::predict_mean(model, Matrix<double>(0, 2)).size() == 0);
}

TEST_CASE("predict: inputs whose scores overflow are an error, not NaN", "[gaussian][error]") {
  auto model = test::random_model(2, 1, moe::SoftmaxGate{}, 14);
  model.gate_slope(0, 0) = 1e10;
  CHECK_THROWS_AS(moe::predict_mean(model, Matrix<double>::Constant(1, 1, 1e300)), std::invalid_argument);
}
