// SPDX-License-Identifier: MIT
#include <cmath>

#include "likelihood/mixtures.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using moe::Matrix;

namespace {

using FreeTanh = moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>;

/// log p of the rows by the definition.
template <class F, class G>
double plain_log_likelihood(const moe::MixtureRegression<F, G>& m, const moe::ResponseData& data) {
  const Matrix<double> pi = moe::gate_weights(m, data.x);
  double sum = 0;
  for (Index i = 0; i < data.num_rows(); ++i) {
    const moe::Response response{.y = data.y(i), .trials = data.trials_of(i)};
    double p = 0;
    for (Index j = 0; j < m.num_experts(); ++j) {
      std::vector<double> eta;
      for (Index c = 0; c < m.family.num_predictors(); ++c)
        eta.push_back(m.slope.row(m.row(j, c)).dot(data.x.row(i)) + m.intercept(m.row(j, c)) + data.offset_of(i));
      p += pi(i, j) * std::exp(m.family.log_density(response, eta.data(), m.shape.row(j).data()));
    }
    if constexpr (moe::detail::num_noise<F>() > 0)
      p += pi(i, pi.cols() - 1) * std::exp(m.family.noise_log_density(data.y(i)));
    sum += data.weight(i) * std::log(p);
  }
  return sum;
}

/// Value by the definition, score and information by central differences.
template <class F, class G>
void check_derivatives(const moe::MixtureRegression<F, G>& m, moe::ResponseData data) {
  const Index n = data.num_rows();
  data.weights = Eigen::VectorXd::NullaryExpr(n, [](Index i) { return static_cast<double>(i % 4); });
  data.offset = Eigen::VectorXd::NullaryExpr(n, [](Index i) { return 0.1 * static_cast<double>(i % 3); });
  CHECK_THAT(moe::log_likelihood(m, data), WithinRel(plain_log_likelihood(m, data), 1e-12));
  const Eigen::VectorXd theta = moe::free_parameters(m), score = moe::score(m, data);
  const Eigen::MatrixXd information = moe::observed_information(m, data);
  REQUIRE(theta.size() == std::ssize(moe::parameter_names(m)));
  CHECK(moe::log_likelihood(moe::with_free_parameters(m, theta), data) == moe::log_likelihood(m, data));
  constexpr double h = 1e-5;  // rounding eps |l| / h and truncation h^2 l''' are both about 1e-8 of the scale
  const double scale = 1 + std::abs(moe::log_likelihood(m, data)) + information.cwiseAbs().maxCoeff();
  for (Index i = 0; i < theta.size(); ++i) {
    const Eigen::VectorXd step = h * Eigen::VectorXd::Unit(theta.size(), i);
    const auto above = moe::with_free_parameters(m, theta + step), below = moe::with_free_parameters(m, theta - step);
    CAPTURE(i, moe::parameter_names(m)[static_cast<std::size_t>(i)]);
    CHECK_THAT(score(i), WithinAbs((moe::log_likelihood(above, data) - moe::log_likelihood(below, data)) / (2 * h),
                                   1e-8 * scale));
    const Eigen::VectorXd change = (moe::score(below, data) - moe::score(above, data)) / (2 * h);
    CHECK((information.col(i) - change).cwiseAbs().maxCoeff() < 1e-8 * scale);
  }
}

}  // namespace

TEST_CASE("MixtureRegression: score and information are derivatives, every family and gate", "[likelihood][property]") {
  const auto check = [](const auto& model) { check_derivatives(model, test::simulated(model, 150, 3)); };
  check(test::random_mixture<moe::Normal>(2, 2, 1));
  check(test::random_mixture<moe::StudentT>(3, 1, 2));
  check(test::random_mixture<moe::Poisson>(3, 2, 3));
  check(test::random_mixture<moe::Binomial>(2, 2, 4));
  check(test::random_mixture<moe::Multinomial>(2, 1, 5, {.classes = 3}));
  check(test::random_mixture(2, 1, 6, moe::UniformNoise<moe::StudentT>({}, -30, 30)));
  check(test::random_mixture<moe::Poisson>(3, 2, 7, {}, FreeTanh{}));
  check(test::random_mixture<moe::Poisson>(3, 2, 8, {}, moe::TopKGate{.k = 2}));
  check(test::random_mixture<moe::Binomial>(1, 2, 9));
}

TEST_CASE("MixtureRegression: gate and experts may read columns of their own", "[likelihood]") {
  auto model = test::random_mixture<moe::Poisson>(2, 3, 1);
  model.gate_inputs = std::vector<Index>{0, 2};
  model.expert_inputs = std::vector<Index>{1};
  model.gate_slope.col(1).setZero();
  model.slope.col(0).setZero();
  model.slope.col(2).setZero();
  check_derivatives(model, test::simulated(model, 120, 4));
  CHECK(moe::free_parameters(model).size() == 3 + 2 * 2);
  CHECK(moe::parameter_names(model) ==
        std::vector<std::string>{"beta1[0,0]", "beta1[0,2]", "beta0[0]", "a[0,1]", "b[0]", "a[1,1]", "b[1]"});
}

TEST_CASE("MixtureRegression: with Normal experts it is the Gaussian mixture", "[likelihood]") {
  const auto model = test::random_mixture<moe::Normal>(3, 2, 1);
  const auto data = test::simulated(model, 200, 3);
  moe::GaussianMoe<> gaussian;
  gaussian.gate_slope = model.gate_slope, gaussian.gate_bias = model.gate_bias;
  gaussian.slope = model.slope, gaussian.intercept = model.intercept, gaussian.variance = model.shape.col(0);
  CHECK_THAT(moe::log_likelihood(model, data), WithinRel(moe::log_likelihood(gaussian, data), 1e-13));
  CHECK((moe::responsibilities(model, data) - moe::responsibilities(gaussian, data)).cwiseAbs().maxCoeff() < 1e-12);
  CHECK((moe::predict_mean(model, data.x) - moe::predict_mean(gaussian, data.x)).cwiseAbs().maxCoeff() < 1e-12);
  const auto robust = moe::mixture_of<moe::StudentT>(gaussian);
  CHECK_THAT(moe::log_likelihood(robust, data), WithinRel(moe::log_likelihood(model, data), 1e-9));
}

TEST_CASE("MixtureRegression: the order of experts is no matter", "[likelihood][property]") {
  auto model = test::random_mixture<moe::Multinomial>(3, 2, 5, {.classes = 3});
  const auto data = test::simulated(model, 100, 4);
  const double before = moe::log_likelihood(model, data);
  model.gate_slope.row(0).swap(model.gate_slope.row(2));
  std::swap(model.gate_bias(0), model.gate_bias(2));
  for (Index c = 0; c < 2; ++c) {
    model.slope.row(model.row(0, c)).swap(model.slope.row(model.row(2, c)));
    std::swap(model.intercept(model.row(0, c)), model.intercept(model.row(2, c)));
  }
  CHECK_THAT(moe::log_likelihood(model, data), WithinRel(before, 1e-13));
}

TEST_CASE("MixtureRegression: bits do not depend on threads", "[likelihood]") {
  const auto model = test::random_mixture(2, 2, 6, moe::UniformNoise<moe::StudentT>({}, -30, 30));
  const auto data = test::simulated(model, 1500, 4);
  const auto all = [&](moe::Index workers) {
    test::ThreadExecutor threads(workers);
    const moe::UseExecutor use(threads);
    Eigen::VectorXd numbers(2 + model.num_components() * 1500);
    const Matrix<double> r = moe::responsibilities(model, data);
    numbers << moe::log_likelihood(model, data), moe::observed_information(model, data).sum(),
        Eigen::Map<const Eigen::VectorXd>(r.data(), r.size());
    return numbers;
  };
  CHECK(all(1) == all(3));
  CHECK(moe::sample(model, data.x, 9) == moe::sample(model, Matrix<double>(data.x), 9));
}

TEST_CASE("MixtureRegression: offsets and trials that are no numbers are refused", "[likelihood][error]") {
  const auto model = test::random_mixture<moe::Binomial>(2, 1, 1);
  const auto x = test::uniform_inputs(3, 1, 2);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const Eigen::Vector3d column(0, bad, 0);
    CHECK_THROWS_AS(moe::predict_mean(model, x, column), std::invalid_argument);
    CHECK_THROWS_AS(moe::expert_means(model, x, column), std::invalid_argument);
    CHECK_THROWS_AS(moe::draw(model, x, 1, {}, column), std::invalid_argument);
    CHECK_THROWS_AS(moe::draw(model, x, 1, column), std::invalid_argument);
  }
}

TEST_CASE("MixtureRegression: a bad model is refused", "[likelihood][error]") {
  const auto good = test::random_mixture<moe::StudentT>(2, 2, 6);
  const auto data = test::simulated(good, 20, 4);
  const auto refuse = [&](auto&& spoil, const std::string& expected) {
    auto bad = good;
    spoil(bad);
    std::string message = "(nothing was thrown)";
    try {
      moe::log_likelihood(bad, data);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message == expected);
  };
  refuse([](auto& m) { m.shape(1, 1) = 0; },
         "moe::log_likelihood: the degrees of freedom of expert 1 is 0, expected a finite number > 0");
  refuse([](auto& m) { m.slope(0, 1) = std::nan(""); },
         "moe::log_likelihood: a coefficient of the model is not finite");
  refuse([](auto& m) { m.intercept.conservativeResize(1); },
         "moe::log_likelihood: intercept is [1, 1], expected [1, 2]");
  refuse([](auto& m) { m = moe::MixtureRegression<moe::StudentT>::zero(2, 3); },
         "moe::log_likelihood: x has 2 columns, expected input_dim = 3");
}
