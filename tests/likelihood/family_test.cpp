// SPDX-License-Identifier: MIT
#include <cmath>
#include <numbers>

#include "likelihood/mixtures.hpp"
#include "support/catch.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using moe::Response;

namespace {

/// Score and information of a row against central differences of its log density in (eta, log shape).
template <class F>
void check_derivatives(const F& family, const Response& response, const Eigen::VectorXd& at) {
  const Index c = family.num_predictors(), m = c + F::kShapes;
  const auto numbers = [&](const Eigen::VectorXd& theta) {
    Eigen::VectorXd all = theta;
    all.tail(F::kShapes) = all.tail(F::kShapes).array().exp().matrix().eval();
    return all;
  };
  const auto density = [&](const Eigen::VectorXd& theta) {
    const Eigen::VectorXd all = numbers(theta);
    return family.log_density(response, all.data(), all.data() + c);
  };
  const auto score_at = [&](const Eigen::VectorXd& theta) {
    const Eigen::VectorXd all = numbers(theta);
    Eigen::VectorXd score(m), information(m * m);
    family.derivatives(response, all.data(), all.data() + c, score.data(), information.data());
    return score;
  };
  Eigen::VectorXd information(m * m), score(m);
  const Eigen::VectorXd all = numbers(at);
  family.derivatives(response, all.data(), all.data() + c, score.data(), information.data());
  CAPTURE(at.transpose(), response.y);
  constexpr double h = 1e-5;  // truncation h^2 f''' and rounding eps |f| / h are both below 1e-9 of the scale
  const double scale = 1 + std::abs(density(at)) + score.cwiseAbs().maxCoeff() + information.cwiseAbs().maxCoeff();
  for (Index i = 0; i < m; ++i) {
    const Eigen::VectorXd step = h * Eigen::VectorXd::Unit(m, i);
    CHECK_THAT(score(i), WithinAbs((density(at + step) - density(at - step)) / (2 * h), 1e-8 * scale));
    const Eigen::VectorXd change = (score_at(at - step) - score_at(at + step)) / (2 * h);
    for (Index j = 0; j < m; ++j) CHECK_THAT(information(i * m + j), WithinAbs(change(j), 1e-8 * scale));
  }
}

/// Sum of f over whole numbers.
template <class F>
double total(const F& family, double eta, double trials, int last) {
  double sum = 0;
  for (int y = 0; y <= last; ++y)
    sum += std::exp(family.log_density({.y = static_cast<double>(y), .trials = trials}, &eta, nullptr));
  return sum;
}

}  // namespace

TEST_CASE("Families: score and information are the derivatives of the density", "[likelihood][property]") {
  for (const double y : {-7.0, -0.4, 0.31, 2.0, 40.0}) {
    check_derivatives(moe::Normal{}, {.y = y}, Eigen::Vector2d(0.3, 0.4));
    for (const double log_nu : {0.1, 1.0, 3.0, 6.0, 12.0})
      check_derivatives(moe::StudentT{}, {.y = y}, Eigen::Vector3d(0.3, 0.4, log_nu));
  }
  for (const double eta : {-4.0, 0.2, 3.0})
    for (const double y : {0.0, 1.0, 4.0}) {
      check_derivatives(moe::Poisson{}, {.y = y}, Eigen::VectorXd::Constant(1, eta));
      check_derivatives(moe::Binomial{}, {.y = y, .trials = 4}, Eigen::VectorXd::Constant(1, eta));
      check_derivatives(moe::Multinomial{.classes = 5}, {.y = y}, Eigen::Vector4d(eta, -0.3, 0.7, 1.1));
    }
}

TEST_CASE("Families: densities are those of their definitions", "[likelihood]") {
  constexpr double kPi = std::numbers::pi;
  const double eta = 0.7;
  for (const double nu : {0.5, 1.0, 2.5, 7.0, 24.0, 300.0}) {
    const double shape[] = {1.7, nu}, y = -1.2, q = std::pow(y - eta, 2) / shape[0];
    const double expected = std::lgamma((nu + 1) / 2) - std::lgamma(nu / 2) - 0.5 * std::log(kPi * nu * shape[0]) -
                            (nu + 1) / 2 * std::log1p(q / nu);
    CAPTURE(nu);
    CHECK_THAT(moe::StudentT{}.log_density({.y = y}, &eta, shape), WithinRel(expected, 1e-12));
  }
  const double limit[] = {1.7, 1e10};
  CHECK_THAT(moe::StudentT{}.log_density({.y = 2}, &eta, limit),
             WithinRel(moe::Normal{}.log_density({.y = 2}, &eta, limit), 1e-9));
  for (const double y : {0.0, 1.0, 3.0, 17.0, 400.0}) {
    CAPTURE(y);
    CHECK_THAT(moe::Poisson{}.log_density({.y = y}, &eta, nullptr),
               WithinRel(y * eta - std::exp(eta) - std::lgamma(y + 1), 1e-12));
    const double n = 400, choose = std::lgamma(n + 1) - std::lgamma(y + 1) - std::lgamma(n - y + 1);
    CHECK_THAT(moe::Binomial{}.log_density({.y = y, .trials = n}, &eta, nullptr),
               WithinRel(choose + y * eta - n * std::log1p(std::exp(eta)), 1e-11));
  }
  CHECK_THAT(total(moe::Poisson{}, 2.3, 1, 200), WithinRel(1.0, 1e-13));
  CHECK_THAT(total(moe::Binomial{}, -0.8, 30, 30), WithinRel(1.0, 1e-13));
  const double two[] = {0.4, -1.3};
  double classes = 0;
  for (int c = 0; c < 3; ++c)
    classes += std::exp(moe::Multinomial{.classes = 3}.log_density({.y = static_cast<double>(c)}, two, nullptr));
  CHECK_THAT(classes, WithinRel(1.0, 1e-14));
}

TEST_CASE("Poisson: huge counts keep their digits", "[likelihood]") {
  // log f at y = m is -log(2 pi m) / 2 - 1 / (12 m), though its terms are as large as y log y. exp has 35 ulp there, so
  // that m is known to 1e-14 and log f, quadratic in it, to m 1e-28.
  const double y = 1e12, eta = std::log(y);
  CHECK_THAT(moe::Poisson{}.log_density({.y = y}, &eta, nullptr),
             WithinAbs(-0.5 * std::log(2 * std::numbers::pi * y), 1e-12));
}

TEST_CASE("Families: draws have the mean and the variance of the density", "[likelihood][property]") {
  constexpr Index n = 20'000;
  const moe::RandomField random(moe::Purpose::User, 12);
  const auto check = [&](const auto& family, const double* eta, const double* shape, double trials, double mean,
                         double variance) {
    double sum = 0, squares = 0;
    for (Index i = 0; i < n; ++i) {
      const double y = family.draw(eta, shape, trials, random, i);
      sum += y, squares += (y - mean) * (y - mean);
    }
    CAPTURE(mean, variance);
    CHECK_THAT(sum / n, WithinAbs(mean, 4 * std::sqrt(variance / n)));
    CHECK_THAT(squares / n, WithinRel(variance, 0.1));  // four times sqrt(kurtosis / n), kurtosis up to 9
  };
  const double eta = 0.7, shape[] = {1.5, 8}, low = -1.1, high = std::log(3000.0), two[] = {0.4, -1.3};
  check(moe::Normal{}, &eta, shape, 1, 0.7, 1.5);
  check(moe::StudentT{}, &eta, shape, 1, 0.7, 1.5 * 8 / 6);
  check(moe::Poisson{}, &eta, nullptr, 1, std::exp(0.7), std::exp(0.7));
  check(moe::Poisson{}, &low, nullptr, 1, std::exp(-1.1), std::exp(-1.1));
  check(moe::Poisson{}, &high, nullptr, 1, 3000, 3000);
  const double p = 1 / (1 + std::exp(-0.7)), p1 = std::exp(0.4), p2 = std::exp(-1.3), all = 1 + p1 + p2;
  check(moe::Binomial{}, &eta, nullptr, 9, 9 * p, 9 * p * (1 - p));
  const double mean = (p1 + 2 * p2) / all;
  check(moe::Multinomial{.classes = 3}, two, nullptr, 1, mean, (p1 + 4 * p2) / all - mean * mean);
}

TEST_CASE("Families: draws of counts of any size end, and lie about their mean", "[likelihood]") {
  const moe::RandomField random(moe::Purpose::Draw, 5);
  const moe::Poisson poisson;
  for (const double eta : {-700.0, 20.0, 30.0, 36.0, 100.0, 699.0})
    for (Index row = 0; row < 20; ++row) {
      const double m = std::exp(eta), y = poisson.draw(&eta, nullptr, 1, random, row);
      CAPTURE(eta, row, y);
      CHECK(y == std::floor(y));
      CHECK(y >= 0);
      CHECK(std::abs(y - m) <= 6 * std::sqrt(m) + 1e-12 * m);
    }
  const moe::Binomial binomial;
  for (const double trials : {0.0, 1.0, 1e6, 9007199254740992.0})
    for (const double eta : {-700.0, -30.0, 0.0, 2.0, 40.0})
      for (Index row = 0; row < 20; ++row) {
        const double p = 1 / (1 + std::exp(-eta)), y = binomial.draw(&eta, nullptr, trials, random, row);
        CAPTURE(trials, eta, row, y);
        CHECK(y == std::floor(y));
        CHECK((y >= 0 && y <= trials));
        CHECK(std::abs(y - trials * p) <= 6 * std::sqrt(trials * p * (1 - p)) + 4);
      }
}

TEST_CASE("draw_from_mode: where it changes from inversion to a normal number, quantiles agree", "[likelihood]") {
  const moe::RandomField random(moe::Purpose::Draw, 6);
  const moe::Poisson poisson;
  for (const double sd : {65535.0, 65537.0}) {
    const double eta = 2 * std::log(sd), m = std::exp(eta);
    constexpr Index kDraws = 4000;
    Index below[3] = {};
    for (Index row = 0; row < kDraws; ++row) {
      const double z = (poisson.draw(&eta, nullptr, 1, random, row) - m) / sd;
      for (int q = 0; q < 3; ++q) below[q] += z < q - 1;
    }
    const double expected[] = {0.158655, 0.5, 0.841345};
    for (int q = 0; q < 3; ++q) {
      CAPTURE(sd, q);
      const double p = expected[q];
      CHECK(std::abs(static_cast<double>(below[q]) / kDraws - p) < 4 * std::sqrt(p * (1 - p) / kDraws));
    }
  }
}

TEST_CASE("Families: y that they do not have is refused", "[likelihood][error]") {
  const moe::Matrix<double> x = test::uniform_inputs(4, 1, 1);
  const auto message = [&](const auto& family, double y, double trials) {
    moe::ResponseData data(moe::RegressionData{x, Eigen::Vector4d(1, 0, y, 1)}, Eigen::Vector4d(1, 1, trials, 1));
    try {
      moe::fit_mixture(data, 1, family);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("(nothing was thrown)");
  };
  CHECK(message(moe::Poisson{}, -1, 1) == "moe::fit_mixture: y is -1 in row 2, expected a whole number from 0 to 2^53");
  CHECK(message(moe::Poisson{}, 0.5, 1) ==
        "moe::fit_mixture: y is 0.5 in row 2, expected a whole number from 0 to 2^53");
  CHECK(message(moe::Binomial{}, 3, 2) == "moe::fit_mixture: y is 3 in row 2, expected at most its trials, 2");
  CHECK(message(moe::Binomial{}, 0, 0) ==
        "moe::fit_mixture: trials is 0 in row 2, expected at least 1 (or a weight of 0)");
  CHECK(message(moe::Binomial{}, 1, 1.5) ==
        "moe::fit_mixture: trials is 1.5 in row 2, expected a whole number from 0 to 2^53");
  CHECK(message(moe::Multinomial{.classes = 3}, 3, 1) == "moe::fit_mixture: y is 3 in row 2, expected a class, 0 to 2");
  CHECK(message(moe::Multinomial{.classes = 1}, 0, 1) ==
        "moe::fit_mixture: Multinomial has 1 classes, expected 2 to 1000");
  CHECK(message(moe::StudentT{.least_degrees = 0}, 0, 1).starts_with("moe::fit_mixture: StudentT has degrees"));
  CHECK(message(moe::UniformNoise<moe::Normal>({}, 2, 1), 0, 1)
            .starts_with("moe::fit_mixture: UniformNoise has the range 2 to 1"));
  CHECK(message(moe::Poisson{}, std::nan(""), 1) == "moe::fit_mixture: y is nan in row 2, expected finite numbers");
}
