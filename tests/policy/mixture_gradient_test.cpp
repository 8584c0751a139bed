// SPDX-License-Identifier: MIT
#include "moe/policy/mixture_gradient.hpp"

#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "policy/mixtures.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::DiagonalMixture;
using moe::Index;
using moe::Matrix;
using moe::MixtureEstimator;
using moe::MixtureGradient;
using moe::MixtureGradientOptions;
using moe::Step;

namespace {

/// f and its derivative.
struct Objective {
  std::function<double(double)> value, slope;
};
const Objective kSquare{[](double u) { return -(u - 0.4) * (u - 0.4); }, [](double u) { return -2 * (u - 0.4); }};

Matrix<double> map(const Matrix<double>& points, const std::function<double(double)>& f) {
  return points.unaryExpr([&](double u) { return f(u); });
}

/// Weights .3 and .7, means -1 and 1, deviations .5; `count` times.
DiagonalMixture<double> two_components(Index count) {
  DiagonalMixture<double> one;
  one.resize(1, 2, 1);
  one.log_weight << std::log(0.3), std::log(0.7);
  one.mean << -1, 1;
  one.log_std.setConstant(std::log(0.5));
  return test::repeated(one, count);
}

/// dJ by both logits, both means and both log deviations.
using Gradient = std::array<double, 6>;

/// That of kSquare and two_components(), worked out by hand: E_k = -2.21 and -.61, J = -1.09.
constexpr Gradient kExact = {-0.336, 0.336, 0.84, -0.84, -0.15, -0.35};

/// What the draws say of it, and the standard error of their mean.
struct Estimate {
  Gradient mean = {}, error = {};
};

/// A row is a draw: row t of the gradient is that of -1 / num_rows times its own.
Estimate estimate(const MixtureGradientOptions& options, Index draws, double baseline = 0) {
  const auto mixture = two_components(draws);
  const Step step = Step::train(1, 5);
  MixtureEstimator<double> estimator(options);
  estimator.propose(mixture, step);
  DiagonalMixture<double> gradient;
  gradient.clear_like(mixture);
  const std::vector<double> expected(baseline == 0 ? 0 : static_cast<std::size_t>(draws), baseline);
  estimator.backward(mixture, map(estimator.latent(), kSquare.value), map(estimator.latent(), kSquare.slope), expected,
                     step, gradient);
  Matrix<double> dlogits(draws, 2);
  mixture.log_weight_backward(gradient.log_weight, dlogits);
  Estimate result;
  const double count = static_cast<double>(draws);
  for (std::size_t i = 0; i < 6; ++i) {
    const Matrix<double>& part = i < 2 ? dlogits : i < 4 ? gradient.mean : gradient.log_std;
    double square = 0;
    for (Index t = 0; t < draws; ++t) result.mean[i] -= part(t, Index(i % 2));
    for (Index t = 0; t < draws; ++t) square += std::pow(-count * part(t, Index(i % 2)) - result.mean[i], 2);
    result.error[i] = std::sqrt(square) / count;
  }
  return result;
}

constexpr Index kDraws = 200000;

}  // namespace

TEST_CASE("MixtureEstimator: unbiased estimates are within three standard errors of the exact gradient",
          "[policy][property]") {
  const Estimate marginalised = estimate({.kind = MixtureGradient::Marginalised}, kDraws);
  const Estimate score = estimate({.kind = MixtureGradient::ScoreRatio}, kDraws);
  const Estimate compared = estimate({.kind = MixtureGradient::ScoreRatio}, kDraws, -1.09);
  for (std::size_t i = 0; i < 6; ++i) {
    CAPTURE(i);
    CHECK_THAT(marginalised.mean[i], WithinAbs(kExact[i], 3 * marginalised.error[i]));
    CHECK_THAT(score.mean[i], WithinAbs(kExact[i], 3 * score.error[i]));
    CHECK_THAT(compared.mean[i], WithinAbs(kExact[i], 3 * compared.error[i]));
    CHECK(marginalised.error[i] < 0.8 * compared.error[i]);
  }
  CHECK(compared.error[0] < 0.8 * score.error[0]);
}

TEST_CASE("MixtureEstimator: the bias of Gumbel-softmax grows with the temperature, and its variance falls",
          "[policy][property]") {
  for (const auto relaxation : {moe::Relaxation::Soft, moe::Relaxation::StraightThrough}) {
    std::vector<double> bias, error;
    for (const double temperature : {0.1, 0.5, 1.0, 2.0}) {
      const Estimate of = estimate(
          {.kind = MixtureGradient::GumbelSoftmax, .temperature = temperature, .relaxation = relaxation}, kDraws / 5);
      bias.push_back(std::abs(of.mean[1] - kExact[1]));
      error.push_back(of.error[1]);
    }
    CAPTURE(bias, error);
    if (relaxation == moe::Relaxation::Soft) {
      for (std::size_t i = 1; i < bias.size(); ++i) {
        CHECK(bias[i] > bias[i - 1] - 3 * std::hypot(error[i], error[i - 1]));
        CHECK(error[i] < error[i - 1]);  // of as many draws: the variance falls
      }
      // Each is known within three standard errors.
      CHECK(bias[0] + 3 * error[0] < bias[3] - 3 * error[3]);
    }
    CHECK(bias[2] > 3 * error[2]);
    CHECK(bias[3] > 3 * error[3]);
  }
}

TEST_CASE("MixtureEstimator: weights of the frequency gradient rest at the win frequency", "[policy][property]") {
  constexpr Index kRows = 50000;
  auto mixture = two_components(kRows);
  const Step step = Step::train(1, 6);
  MixtureEstimator<double> estimator({.kind = MixtureGradient::Frequency});
  estimator.propose(mixture, step);
  const auto value = map(estimator.latent(), kSquare.value), slope = map(estimator.latent(), kSquare.slope);
  double won = 0;
  for (Index t = 0; t < kRows; ++t) won += value(t, 1) > value(t, 0) ? 1.0 / kRows : 0.0;
  // Proposals are -1 and 1 with deviation .5: by quadrature, P(|u_2 - .4| < |u_1 - .4|).
  double frequency = 0;
  const auto phi = [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; };
  for (double x = -8; x < 8; x += 1e-3) {
    const double distance = std::abs(1 + 0.5 * x - 0.4);
    const double nearer = phi((0.4 + distance + 1) / 0.5) - phi((0.4 - distance + 1) / 0.5);
    frequency += 1e-3 * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0)) * (1 - nearer);
  }
  CHECK_THAT(won, WithinAbs(frequency, 3 * std::sqrt(frequency * (1 - frequency) / kRows)));

  double logit = 0;  // of the second component over the first
  for (int update = 0; update < 60; ++update) {
    mixture.log_weight.col(1).setConstant(-std::log1p(std::exp(-logit)));
    mixture.log_weight.col(0).setConstant(-std::log1p(std::exp(logit)));
    DiagonalMixture<double> gradient;
    gradient.clear_like(mixture);
    estimator.backward(mixture, value, slope, {}, step, gradient);
    Matrix<double> dlogits(kRows, 2);
    mixture.log_weight_backward(gradient.log_weight, dlogits);
    logit -= 4 * dlogits.col(1).sum();
  }
  CHECK_THAT(mixture.weight(0, 1), WithinAbs(won, 1e-3));
  CHECK(won < 0.95);  // where the return itself would give all of the weight to the second component
}

namespace {

/// The worst error of the gradient of a function that the estimator differentiates exactly once its draws are made.
double path_error(const MixtureGradientOptions& options,
                  const std::function<double(const DiagonalMixture<double>&, const Matrix<double>&)>& total) {
  auto mixture = test::random_mixture<double>(4, 3, 2);
  const auto f = [](double u) { return std::sin(u) + 0.3 * u; };
  const auto g = [](double u) { return std::cos(u) + 0.3; };
  const Step step = Step::train(2, 3);
  MixtureEstimator<double> estimator(options);
  const auto value_of = [&] {  // of a point: the sum of f over its dimensions
    const auto each = map(estimator.latent(), f);
    Matrix<double> value(each.rows(), each.cols() / 2);
    for (Index i = 0; i < value.cols(); ++i) value.col(i) = each.col(2 * i) + each.col(2 * i + 1);
    return value;
  };
  const auto loss = [&] {
    estimator.propose(mixture, step);
    return total(mixture, value_of());
  };
  loss();
  DiagonalMixture<double> gradient;
  gradient.clear_like(mixture);
  estimator.backward(mixture, value_of(), map(estimator.latent(), g), {}, step, gradient);
  return std::max({test::gradient_error(loss, mixture.log_weight, gradient.log_weight),
                   test::gradient_error(loss, mixture.mean, gradient.mean),
                   test::gradient_error(loss, mixture.log_std, gradient.log_std)});
}

}  // namespace

TEST_CASE("MixtureEstimator: what is differentiable once drawn has central differences for gradients",
          "[policy][property]") {
  CHECK(path_error({.kind = MixtureGradient::Marginalised},
                   [](const DiagonalMixture<double>& mixture, const Matrix<double>& value) {
                     return -mixture.log_weight.array().exp().matrix().cwiseProduct(value).sum() / 4;
                   }) < 1e-8);
  CHECK(path_error({.kind = MixtureGradient::GumbelSoftmax, .temperature = 0.7},
                   [](const DiagonalMixture<double>&, const Matrix<double>& value) { return -value.sum() / 4; }) <
        1e-8);
}

TEST_CASE(
    "MixtureEstimator: a straight-through draw has the gradient of weights of the soft point, and its own of means",
    "[policy][property]") {
  constexpr Index kRows = 4, kComponents = 3, kDim = 2;
  constexpr double kTemperature = 0.7;
  auto mixture = test::random_mixture<double>(kRows, kComponents, kDim);
  const Step step = Step::train(2, 3);
  Matrix<double> proposals(kRows, kComponents * kDim);
  mixture.propose(step, proposals);
  MixtureEstimator<double> soft({.kind = MixtureGradient::GumbelSoftmax, .temperature = kTemperature});
  MixtureEstimator<double> hard({.kind = MixtureGradient::GumbelSoftmax,
                                 .temperature = kTemperature,
                                 .relaxation = moe::Relaxation::StraightThrough});
  hard.propose(mixture, step);
  const auto g = map(hard.latent(), [](double u) { return std::cos(u) + 0.3; });  // stays that of the hard point
  DiagonalMixture<double> gradient;
  gradient.clear_like(mixture);
  hard.backward(mixture, Matrix<double>(), g, {}, step, gradient);

  const auto loss = [&] {
    soft.propose(mixture, step);
    return -g.cwiseProduct(soft.latent()).sum() / kRows;
  };
  CHECK(test::gradient_error(loss, mixture.log_weight, gradient.log_weight) < 1e-8);
  CHECK(test::largest(gradient.log_weight) > 1e-3);
  for (Index t = 0; t < kRows; ++t) {
    Index chosen = 0;
    for (Index k = 0; k < kComponents; ++k)
      if (proposals(t, k * kDim) == hard.latent()(t, 0)) chosen = k;
    for (Index k = 0; k < kComponents; ++k)
      for (Index d = 0; d < kDim; ++d) {
        CAPTURE(t, k, d);
        const Index c = k * kDim + d;
        const double expected = k == chosen ? -g(t, d) / kRows : 0.0;  // a quarter is exact
        CHECK(gradient.mean(t, c) == expected);
        CHECK(gradient.log_std(t, c) == expected * (proposals(t, c) - mixture.mean(t, c)));
      }
  }
}

TEST_CASE("MixtureEstimator: the point of a straight-through draw is a proposal", "[policy]") {
  const auto mixture = test::random_mixture<double>(50, 3, 1);
  const Step step = Step::train(1, 2);
  Matrix<double> proposals(50, 3);
  mixture.propose(step, proposals);
  for (const auto& options :
       {MixtureGradientOptions{.kind = MixtureGradient::GumbelSoftmax, .relaxation = moe::Relaxation::StraightThrough},
        MixtureGradientOptions{.kind = MixtureGradient::ScoreRatio}}) {
    MixtureEstimator<double> estimator(options);
    estimator.propose(mixture, step);
    for (Index t = 0; t < 50; ++t) CHECK((proposals.row(t).array() == estimator.latent()(t, 0)).any());
  }
}

TEST_CASE("MixtureEstimator: winners learn, or all do, and ties go to the first", "[policy]") {
  for (const auto learners : {moe::Learners::Winner, moe::Learners::Every}) {
    const auto mixture = test::random_mixture<double>(2, 3, 1);
    MixtureEstimator<double> estimator({.kind = MixtureGradient::Frequency, .learners = learners});
    estimator.propose(mixture, Step{});
    Matrix<double> value(2, 3);
    value << 1, 2, 2, 0, 0, 0;
    DiagonalMixture<double> gradient;
    gradient.clear_like(mixture);
    estimator.backward(mixture, value, Matrix<double>::Ones(2, 3), {}, Step{}, gradient);
    const double other = learners == moe::Learners::Every ? -0.5 : 0;
    Matrix<double> expected(2, 3);
    expected << other, -0.5, other, -0.5, other, other;
    CHECK(gradient.mean == expected);
  }
}

TEST_CASE("MixtureEstimator: all kinds agree for one component, and stay numbers where a weight is zero", "[policy]") {
  for (const auto kind : {MixtureGradient::Frequency, MixtureGradient::GumbelSoftmax, MixtureGradient::ScoreRatio,
                          MixtureGradient::Marginalised}) {
    const Step step = Step::train(1, 2);
    MixtureEstimator<double> estimator({.kind = kind});
    for (const Index components : {1, 2}) {
      auto mixture = test::random_mixture<double>(3, components, 1);
      mixture.log_weight.setConstant(-INFINITY);
      mixture.log_weight.col(0).setZero();
      estimator.propose(mixture, step);
      const auto slope = map(estimator.latent(), kSquare.slope);
      DiagonalMixture<double> gradient;
      gradient.clear_like(mixture);
      estimator.backward(mixture, map(estimator.latent(), kSquare.value), slope, {}, step, gradient);
      CHECK(test::largest(gradient.log_weight) < INFINITY);
      CHECK(test::largest(gradient.mean) < INFINITY);
      CHECK(test::largest(gradient.log_std) < INFINITY);
      if (components == 1) CHECK(test::largest(Matrix<double>(gradient.mean + slope / 3)) < 1e-15);
    }
  }
}

TEST_CASE("MixtureEstimator: padding gets nothing and does not count", "[policy]") {
  const std::vector<std::uint8_t> valid = {1, 0, 1};
  Step step = Step::train(1, 2);
  const auto mixture = test::random_mixture<double>(3, 2, 1);
  const auto run = [&](MixtureGradient kind) {
    MixtureEstimator<double> estimator({.kind = kind});
    estimator.propose(mixture, step);
    DiagonalMixture<double> gradient;
    gradient.clear_like(mixture);
    estimator.backward(mixture, map(estimator.latent(), kSquare.value), map(estimator.latent(), kSquare.slope), {},
                       step, gradient);
    return gradient;
  };
  for (const auto kind : {MixtureGradient::Frequency, MixtureGradient::GumbelSoftmax, MixtureGradient::ScoreRatio,
                          MixtureGradient::Marginalised}) {
    step.valid = {};
    const auto all = run(kind);
    step.valid = valid;
    const auto some = run(kind);
    CHECK(test::all_zero(some.log_weight.row(1)));
    CHECK(test::all_zero(some.mean.row(1)));
    CHECK(test::largest(Matrix<double>(some.mean.row(2) - 1.5 * all.mean.row(2))) < 1e-14);
    CHECK(test::largest(Matrix<double>(some.log_weight.row(0) - 1.5 * all.log_weight.row(0))) < 1e-14);
  }
}

TEST_CASE("MixtureEstimator: any threads give the same bits, no rows nothing, and misuse is named", "[policy][error]") {
  const auto mixture = test::random_mixture<float>(200, 3, 2);
  const auto run = [&](const DiagonalMixture<float>& of) {
    MixtureEstimator<float> estimator({.kind = MixtureGradient::Marginalised});
    estimator.propose(of, Step::train(1, 2));
    DiagonalMixture<float> gradient;
    gradient.clear_like(of);
    const Matrix<float> value = estimator.latent().leftCols(3);
    estimator.backward(of, value, estimator.latent(), {}, Step::train(1, 2), gradient);
    return gradient;
  };
  const auto one = run(mixture);
  test::ThreadExecutor threads(3);
  const moe::UseExecutor use(threads);
  const auto many = run(mixture);
  CHECK(test::same_bits(one.log_weight, many.log_weight));
  CHECK(test::same_bits(one.log_std, many.log_std));
  CHECK(run(test::random_mixture<float>(0, 3, 2)).mean.size() == 0);

  CHECK_THROWS_WITH(MixtureEstimator<float>({.temperature = 0}),
                    ContainsSubstring("moe::MixtureEstimator: temperature is 0, expected a finite value above 0"));
  MixtureEstimator<float> estimator;
  DiagonalMixture<float> gradient = mixture;
  const Matrix<float> value(200, 3), slope(200, 6);
  CHECK_THROWS_WITH(estimator.backward(mixture, value, slope, {}, Step{}, gradient),
                    ContainsSubstring("backward: propose() has drawn [0, 0], expected [200, 6]"));
  estimator.propose(mixture, Step{});
  CHECK_THROWS_WITH(estimator.backward(mixture, value.leftCols(1), slope, {}, Step{}, gradient),
                    ContainsSubstring("backward: value is [200, 1], expected [200, 3]"));
  const std::vector<float> baseline(200);
  CHECK_THROWS_WITH(estimator.backward(mixture, value, slope, baseline, Step{}, gradient),
                    ContainsSubstring("backward: there is a baseline, expected none but for ScoreRatio"));
}
