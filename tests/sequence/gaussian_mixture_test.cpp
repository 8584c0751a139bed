// SPDX-License-Identifier: MIT
// Mixtures of normals: density, gradient, moments, exact updates and divergences, against sums over grids.
#include "moe/sequence/gaussian_mixture.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::RowVector;
using Mixture = moe::GaussianMixture<double>;

namespace {

RowVector<double> row(std::initializer_list<double> values) {
  RowVector<double> result(static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), result.data());
  return result;
}
Matrix<double> square(std::initializer_list<double> values) {
  const auto n = static_cast<Index>(std::lround(std::sqrt(static_cast<double>(values.size()))));
  Matrix<double> result(n, n);
  std::copy(values.begin(), values.end(), result.data());
  return result;
}

Mixture line(const RowVector<double>& weights, const RowVector<double>& means, const RowVector<double>& deviations) {
  std::vector<Matrix<double>> factors;
  for (const double deviation : deviations) factors.push_back(square({deviation}));
  return Mixture(weights, means.transpose(), factors);
}

/// Three components in the plane.
Mixture plane() {
  Matrix<double> means(3, 2);
  means << 0, 1, -1, 0.5, 2, -1;
  return Mixture::from_covariances(
      row({1, 2, 1}), means, {square({1, 0.5, 0.5, 0.6}), square({0.3, 0, 0, 0.9}), square({0.5, -0.4, -0.4, 0.7})});
}

/// Calls f(x, cell) over a grid of the plane that holds all but 1e-9 of plane().
template <class F>
void over_plane(const F& f) {
  constexpr double kStep = 0.1;
  for (Index i = -90; i <= 100; ++i)
    for (Index j = -90; j <= 90; ++j)
      f(row({kStep * static_cast<double>(i), kStep * static_cast<double>(j)}), kStep * kStep);
}

}  // namespace

TEST_CASE("GaussianMixture: the density is the formula with inverse and determinant", "[sequence]") {
  const Mixture mixture = plane();
  for (const auto& x : {row({0, 0}), row({1.5, -2}), row({-3, 4})}) {
    double expected = 0;
    for (Index i = 0; i < 3; ++i) {
      const Matrix<double> s = mixture.covariance(i);
      const double det = s(0, 0) * s(1, 1) - s(0, 1) * s(1, 0);
      const double u = x(0) - mixture.means()(i, 0), v = x(1) - mixture.means()(i, 1);
      const double squared = (u * u * s(1, 1) - 2 * u * v * s(0, 1) + v * v * s(0, 0)) / det;
      expected += mixture.weights()(i) * std::exp(-0.5 * squared) / (2 * std::numbers::pi * std::sqrt(det));
    }
    CHECK(std::abs(mixture.log_density(x) - std::log(expected)) < 1e-13);
  }
}

TEST_CASE("GaussianMixture: density, mean and covariance are those of sums over a grid", "[sequence]") {
  const Mixture mixture = plane();
  double total = 0;
  RowVector<double> mean = row({0, 0});
  Matrix<double> second = square({0, 0, 0, 0});
  over_plane([&](const RowVector<double>& x, double cell) {
    const double p = cell * std::exp(mixture.log_density(x));
    total += p;
    for (Index r = 0; r < 2; ++r) {
      mean(r) += p * x(r);
      for (Index c = 0; c < 2; ++c) second(r, c) += p * x(r) * x(c);
    }
  });
  // Sums of smooth functions that vanish at the ends converge faster than any power of the step.
  CHECK(std::abs(total - 1) < 1e-8);
  for (Index r = 0; r < 2; ++r) {
    CHECK(std::abs(mixture.mean()(r) - mean(r)) < 1e-7);
    for (Index c = 0; c < 2; ++c)
      CHECK(std::abs(mixture.covariance()(r, c) - (second(r, c) - mean(r) * mean(c))) < 1e-7);
  }
}

TEST_CASE("GaussianMixture: the score is the central difference of the log-density", "[sequence]") {
  const Mixture mixture = plane();
  Matrix<double> x = row({0.4, -0.7});
  const Matrix<double> score = mixture.score(row({0.4, -0.7}));
  CHECK(test::gradient_error([&] { return mixture.log_density(x.row(0)); }, x, score) < 1e-9);
}

TEST_CASE("GaussianMixture: draws have its moments, and are functions of field and row", "[sequence]") {
  const Mixture mixture = plane();
  constexpr Index kDraws = 20000;
  const moe::RandomField random(moe::Purpose::User, 3);
  RowVector<double> mean = row({0, 0});
  for (Index t = 0; t < kDraws; ++t) mean += mixture.sample(random, t) / static_cast<double>(kDraws);
  for (Index c = 0; c < 2; ++c)  // four standard errors
    CHECK(std::abs(mean(c) - mixture.mean()(c)) < 4 * std::sqrt(mixture.covariance()(c, c) / kDraws));
  CHECK(test::same_bits(mixture.sample(random, 7), mixture.sample(random, 7)));
}

TEST_CASE("GaussianMixture: three readings of a mean give the posterior worked out by hand", "[sequence]") {
  const Mixture prior = line(row({0.4, 0.6}), row({-1, 2}), row({0.5, 1}));
  const Mixture posterior =
      prior.condition_linear(Matrix<double>::Ones(3, 1), 0.49 * Matrix<double>::Identity(3, 3), row({0.8, 1.2, 1.0}));
  const double weights[] = {0.013427, 0.986573}, means[] = {0.209677, 1.140401}, deviations[] = {0.314309, 0.374701};
  for (Index i = 0; i < 2; ++i) {
    CHECK(std::abs(posterior.weights()(i) - weights[i]) < 5e-7);
    CHECK(std::abs(posterior.means()(i, 0) - means[i]) < 5e-7);
    CHECK(std::abs(posterior.factor(i)(0, 0) - deviations[i]) < 5e-7);
  }
}

TEST_CASE("GaussianMixture: the update is Bayes' rule at every point, also one reading after the other", "[sequence]") {
  const Mixture prior = plane();
  Matrix<double> h(3, 2);
  h << 1, 0, 0.5, -1, 2, 1;
  const Matrix<double> noise = square({0.5, 0.1, 0, 0.1, 0.4, 0, 0, 0, 2});
  const auto y = row({0.3, 1, -0.5});
  const Mixture posterior = prior.condition_linear(h, noise, y);
  // log p(x | y) - log p(x) - log p(y | x) is the same number everywhere.
  const auto log_evidence = [&](const RowVector<double>& x) {
    const Mixture likelihood = Mixture::from_covariances(row({1}), moe::detail::product(x, h.transpose()), {noise});
    return prior.log_density(x) + likelihood.log_density(y) - posterior.log_density(x);
  };
  const double at_zero = log_evidence(row({0, 0}));
  for (const auto& x : {row({1, 1}), row({-2, 0.5}), row({3, -1})}) CHECK(std::abs(log_evidence(x) - at_zero) < 1e-11);
  const Mixture one = prior.condition_linear(h.topRows(2), noise.topLeftCorner(2, 2), y.head(2));
  const Mixture both = one.condition_linear(h.bottomRows(1), noise.bottomRightCorner(1, 1), y.tail(1));
  CHECK(std::abs(both.log_density(row({1, 1})) - posterior.log_density(row({1, 1}))) < 1e-12);
}

TEST_CASE("GaussianMixture: moved by a map and noise it has the moments that follow", "[sequence]") {
  const Mixture mixture = plane();
  Matrix<double> a(1, 2);
  a << 2, -1;
  const Mixture moved = mixture.push_forward(a, row({3}), square({0.7}));
  const auto mean = mixture.mean();
  const auto s = mixture.covariance();
  CHECK(std::abs(moved.mean()(0) - (2 * mean(0) - mean(1) + 3)) < 1e-14);
  CHECK(std::abs(moved.covariance()(0, 0) - (4 * s(0, 0) - 4 * s(0, 1) + s(1, 1) + 0.7)) < 1e-13);
  CHECK_THROWS_WITH(mixture.push_forward(Matrix<double>::Zero(1, 2), row({0}), square({0})),
                    ContainsSubstring("expected a positive definite matrix: it is singular"));
}

TEST_CASE("kl_divergence: within four standard errors of a sum over a grid, and below the bound", "[sequence]") {
  const Mixture p = plane();
  const Mixture q = p.push_forward(0.9 * Matrix<double>::Identity(2, 2), row({0.2, 0}), 0.2 * square({1, 0, 0, 1}));
  double exact = 0;
  over_plane([&](const RowVector<double>& x, double cell) {
    const double log_p = p.log_density(x);
    if (log_p > -100) exact += cell * std::exp(log_p) * (log_p - q.log_density(x));
  });
  const moe::MonteCarlo estimate = moe::kl_divergence(p, q, 20000, 5);
  CHECK(std::abs(estimate.value - exact) < 4 * estimate.standard_error);
  CHECK(moe::kl_bound(p, q) >= exact);
  CHECK(std::abs(moe::kl_bound(p, p)) < 1e-14);
  CHECK(moe::kl_divergence(p, p, 100, 5).value == 0);
}

TEST_CASE("kl_bound: is the divergence itself of one component", "[sequence]") {
  const Mixture p = line(row({1}), row({0.5}), row({0.8})), q = line(row({1}), row({-0.2}), row({1.3}));
  const double exact = std::log(1.3 / 0.8) + (0.64 + 0.49) / (2 * 1.69) - 0.5;
  CHECK(std::abs(moe::kl_bound(p, q) - exact) < 1e-14);
  const Mixture none = line(row({0, 1}), row({0, 0}), row({1, 1})), all = line(row({1, 0}), row({0, 0}), row({1, 1}));
  CHECK(moe::kl_bound(all, none) == std::numeric_limits<double>::infinity());
}

TEST_CASE("GaussianMixture: a component without weight takes no part, whatever it is", "[sequence]") {
  const Mixture one = line(row({1}), row({0.5}), row({0.8})), two = line(row({3, 0}), row({0.5, 1e200}), row({0.8, 1}));
  CHECK(two.log_density(row({0.1})) == one.log_density(row({0.1})));
  CHECK(two.mean()(0) == 0.5);
  CHECK(two.covariance()(0, 0) == one.covariance()(0, 0));
  CHECK(two.responsibilities(row({2}))(1) == 0);
  // Neither is its mean seen by an update, which would overflow, nor its deviation, which is singular beside the noise.
  const Mixture odd = line(row({3, 0}), row({0.5, 1e300}), row({0.8, 1e-170}));
  const auto posterior = odd.condition_linear(square({1e10}), square({1e20}), row({0}));
  CHECK(posterior.log_density(row({0})) ==
        one.condition_linear(square({1e10}), square({1e20}), row({0})).log_density(row({0})));
  CHECK(posterior.weights()(1) == 0);
  CHECK(posterior.means()(1, 0) == 1e300);
  CHECK(posterior.factor(1)(0, 0) == 1e-170);
  CHECK(two.push_forward(square({0.5}), row({1}), square({0})).means()(1, 0) == 0.5 * 1e200 + 1);
  CHECK(two.sample(moe::RandomField(moe::Purpose::User, 1), 3)(0) < 10);
}

TEST_CASE("GaussianMixture: updates of wide, correlated priors by narrow noise are Bayes' rule", "[sequence]") {
  // Of two coordinates with variances of 1e8 the difference, of variance v = 1e-3 to 5e-2, is read twice, once times 3.
  // Its precision and its mean follow by hand. Entries of covariances near 1e8 have ten roundings of 1.5e-8, which is
  // 2e-2 of the variance left, 1e-5; means come of a gain below 1e4, times 5, with a relative error of 1e-12.
  for (int i = 0; i < 10; ++i) {
    CAPTURE(i);
    const double off = 0.01 * i, own = 0.03 + 0.01 * i, v = off * off + own * own, noise = 1e-4;
    const Mixture prior(row({1}), Matrix<double>(row({3, -2})), {square({1e4, 0, 1e4 + off, own})});
    const Mixture posterior =
        prior.condition_linear(square({1, -1, 3, -3}), noise * Matrix<double>::Identity(2, 2), row({0.25, 0.75}));
    const Matrix<double>& factor = posterior.factor(0);
    const double first = factor(0, 0) - factor(1, 0), variance = 1 / (1 / v + 10 / noise);
    CHECK_THAT(first * first + factor(1, 1) * factor(1, 1), Catch::Matchers::WithinRel(variance, 2e-2));
    CHECK(std::abs(posterior.means()(0, 0) - posterior.means()(0, 1) - variance * (5 / v + 2.5 / noise)) < 1e-6);
  }
}

TEST_CASE("GaussianMixture: far points have the log-density of the component that is nearest there", "[sequence]") {
  using Catch::Matchers::WithinRel;
  const Mixture mixture = plane();
  // On the first axis x^T Sigma^-1 x is 0.6 / 0.35 = 1.7 times x^2 for component 0, 1 / 0.3 and 0.7 / 0.19 times for
  // the others, of which nothing is left beside it. Its Sigma^-1 is [0.6, -0.5; -0.5, 1] / 0.35. Some 20 roundings.
  const auto at = [](double x) {
    const double u = x, v = -1;  // from the mean (0, 1)
    return std::log(0.25) - std::log(2 * std::numbers::pi * std::sqrt(0.35)) -
           0.5 * (0.6 * u * u - u * v + v * v) / 0.35;
  };
  for (const double x : {1e3, 1e15, 1e100}) CHECK_THAT(mixture.log_density(row({x, 0})), WithinRel(at(x), 1e-14));
  CHECK(mixture.log_density(row({1e200, 0})) == -std::numeric_limits<double>::infinity());
  const moe::GaussianMixture<float> narrow(2);
  CHECK(std::abs(narrow.log_density(RowVector<float>::Ones(2)) + 2.8378770664f) < 1e-6f);
  for (const float x : {1e3f, 1e15f})  // log(2 pi) and x^2, whose halves of two coordinates add up
    CHECK_THAT(narrow.log_density(RowVector<float>::Constant(2, x)), WithinRel(-1.8378770664f - x * x, 1e-6f));
}

TEST_CASE("GaussianMixture: singular covariances and other bad numbers are errors that say so", "[sequence][error]") {
  const Matrix<double> mean = row({0, 0});
  const auto of = [&](const Matrix<double>& covariance) {
    return Mixture::from_covariances(row({1}), mean, {covariance});
  };
  CHECK_THROWS_WITH(of(square({1, 1, 1, 1})), ContainsSubstring("the covariance of component 0 has pivot 0 at 1"));
  CHECK_THROWS_WITH(of(square({1, 2, 2, 1})), ContainsSubstring("expected a positive definite matrix: it is singular"));
  CHECK_THROWS_WITH(of(square({0, 0, 0, 1})), ContainsSubstring("it is singular"));
  CHECK_THROWS_WITH(of(square({1, 0.5, 0.4, 1})), ContainsSubstring("expected a symmetric matrix of finite numbers"));
  CHECK_THROWS_WITH(of(square({1, test::kNan<double>, 0, 1})), ContainsSubstring("expected a symmetric matrix"));
  CHECK_THROWS_WITH(
      Mixture(row({1}), mean, {square({1, 0, 0, 0})}),
      ContainsSubstring("factor 0 has diagonal entry 0, expected numbers > 0: the covariance is singular"));
  CHECK_THROWS_WITH(line(row({0, 0}), row({1, 1}), row({1, 1})), ContainsSubstring("the weights add up to 0"));
  CHECK_THROWS_WITH(line(row({1, -1}), row({1, 1}), row({1, 1})), ContainsSubstring("weight 1 is -1"));
  CHECK_THROWS_WITH(line(row({1}), row({test::kNan<double>}), row({1})), ContainsSubstring("mean 0 has entry nan"));
  CHECK_THROWS_WITH(Mixture(row({1}), mean, {}), ContainsSubstring("there are 0 factors, expected 1"));
  CHECK_THROWS_WITH(plane().log_density(row({1})), ContainsSubstring("x has 1 entries, expected the dimension 2"));
  CHECK_THROWS_WITH(plane().score(row({1, test::kNan<double>})), ContainsSubstring("x has an entry NaN"));
  CHECK_THROWS_WITH(plane().responsibilities(row({1e200, 0})), ContainsSubstring("log p(x) is -inf"));
  CHECK_THROWS_WITH(plane().condition_linear(square({1, 0, 0, 1}), square({1, 1, 1, 1}), row({0, 0})),
                    ContainsSubstring("the matrix R of observation 0 has pivot 0"));
  const double nan = test::kNan<double>, infinity = std::numeric_limits<double>::infinity();
  const Mixture one(1);
  CHECK_THROWS_WITH(one.condition_linear(square({1}), square({1}), row({nan})),
                    ContainsSubstring("y has entry nan, expected finite numbers"));
  CHECK_THROWS_WITH(one.condition_linear(square({infinity}), square({1}), row({0})),
                    ContainsSubstring("H has entry inf, expected finite numbers"));
  CHECK_THROWS_WITH(one.condition_linear(square({1}), square({nan}), row({0})),
                    ContainsSubstring("R has entry nan, expected finite numbers"));
  CHECK_THROWS_WITH(one.condition_linear(square({1}), square({1}), row({1e200})),
                    ContainsSubstring("the largest log-density of y is -inf"));
  for (const Index dim : {0, -1})
    CHECK_THROWS_WITH(Mixture(dim), ContainsSubstring("dim is " + std::to_string(dim) + ", expected at least 1"));
  CHECK_THROWS_WITH(moe::kl_divergence(plane(), Mixture(1), 10, 1),
                    ContainsSubstring("q has 1 dimensions, expected 2"));
}
