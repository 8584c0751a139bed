// SPDX-License-Identifier: MIT
#include "moe/policy/diagonal_mixture.hpp"

#include <cmath>
#include <limits>
#include <numbers>
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
using moe::Squash;
using moe::Step;
using test::kTanh;
using test::random_mixture;

namespace {

/// log p of an action as the definition has it, without any care.
template <class S>
double plain_log_density(const DiagonalMixture<S>& mixture, Index t, const S* u) {
  double p = 0;
  for (Index k = 0; k < mixture.num_components(); ++k) {
    double product = std::exp(static_cast<double>(mixture.log_weight(t, k)));
    for (Index d = 0; d < mixture.dim(); ++d) {
      const Index c = k * mixture.dim() + d;
      const double s = std::exp(static_cast<double>(mixture.log_std(t, c)));
      const double e = (static_cast<double>(u[d]) - static_cast<double>(mixture.mean(t, c))) / s;
      product *= std::exp(-e * e / 2) / (s * std::sqrt(2 * std::numbers::pi));
    }
    p += product;
  }
  if (mixture.range.squash == Squash::Tanh)
    for (Index d = 0; d < mixture.dim(); ++d)
      p /= mixture.range.scale * (1 - std::pow(std::tanh(static_cast<double>(u[d])), 2));
  return std::log(p);
}

template <class S>
Matrix<S> log_density_of(const DiagonalMixture<S>& mixture, const Matrix<S>& latent) {
  auto out = test::nan_matrix<S>(latent.rows(), latent.cols() / mixture.dim());
  mixture.log_density(latent, out);
  return out;
}

/// Two components in one dimension: weights .3 and .7, means -1 and 1, deviations .5.
DiagonalMixture<double> two_components(moe::ActionRange range = {}) {
  DiagonalMixture<double> mixture;
  mixture.resize(1, 2, 1);
  mixture.range = range;
  mixture.log_weight << std::log(0.3), std::log(0.7);
  mixture.mean << -1, 1;
  mixture.log_std.setConstant(std::log(0.5));
  return mixture;
}

bool all_finite(const Matrix<double>& m) { return test::largest(m) < INFINITY; }

}  // namespace

TEST_CASE("DiagonalMixture: densities and responsibilities of a case worked out by hand", "[policy]") {
  const Matrix<double> u = Matrix<double>::Constant(1, 1, 0.2);
  CHECK_THAT(log_density_of(two_components(), u)(0, 0), WithinAbs(-1.779480, 5e-7));
  CHECK_THAT(log_density_of(two_components({.squash = Squash::Tanh, .scale = 1}), u)(0, 0), WithinAbs(-1.739744, 5e-7));
  Matrix<double> share(1, 2);
  two_components().responsibilities(u, share);
  CHECK_THAT(share(0, 0), WithinAbs(0.079636, 5e-7));
  CHECK_THAT(share(0, 1), WithinAbs(0.920364, 5e-7));
}

TEMPLATE_TEST_CASE("DiagonalMixture: the density is the plain sum", "[policy][property]", float, double) {
  // A float's density is computed in double: what is left is the rounding of the result, below 8 of magnitude.
  const double tolerance = std::is_same_v<TestType, float> ? 1e-6 : 1e-12;
  for (const moe::ActionRange range : {moe::ActionRange{}, kTanh})
    for (const Index components : {1, 2, 5}) {
      const auto mixture = random_mixture<TestType>(7, components, 3, 1, range);
      const auto latent = test::random_matrix<TestType>(7, 2 * 3, 5);
      const auto out = log_density_of(mixture, latent);
      for (Index t = 0; t < 7; ++t)
        for (Index i = 0; i < 2; ++i) {
          const double expected = plain_log_density(mixture, t, latent.row(t).data() + 3 * i);
          CHECK_THAT(static_cast<double>(out(t, i)), WithinAbs(expected, tolerance * (1 + std::abs(expected))));
        }
    }
}

TEST_CASE("DiagonalMixture: the density over the range of actions integrates to one", "[policy][property]") {
  // The midpoint rule over actions. The tails of u beyond the last midpoint carry less than 1e-6 here.
  constexpr Index kPoints = 20000;
  const auto mixture = two_components(kTanh);
  const double width = 2 * kTanh.scale / kPoints;
  Matrix<double> latent(1, kPoints);
  for (Index i = 0; i < kPoints; ++i)
    latent(0, i) = kTanh.latent(-kTanh.scale + (static_cast<double>(i) + 0.5) * width);
  double integral = 0;
  const auto density = log_density_of(mixture, latent);
  for (Index i = 0; i < kPoints; ++i) integral += width * std::exp(density(0, i));
  CHECK_THAT(integral, WithinAbs(1, 1e-5));
}

TEST_CASE("DiagonalMixture: the order of components does not matter", "[policy][property]") {
  const auto mixture = random_mixture<double>(4, 3, 2);
  auto turned = mixture;
  for (Index k = 0; k < 3; ++k) {
    const Index from = (k + 1) % 3;
    turned.log_weight.col(k) = mixture.log_weight.col(from);
    turned.mean.middleCols(2 * k, 2) = mixture.mean.middleCols(2 * from, 2);
    turned.log_std.middleCols(2 * k, 2) = mixture.log_std.middleCols(2 * from, 2);
  }
  const auto latent = test::random_matrix<double>(4, 2, 9);
  // The terms are the same. Their sum, at most 3 times the largest, has two roundings of 2^-52 each, and its logarithm
  // is added to a number below 16, whose neighbours are 2^-49 apart: the differences are below 2^-47.
  REQUIRE(test::largest(log_density_of(mixture, latent)) < 14);
  CHECK(test::largest(Matrix<double>(log_density_of(turned, latent) - log_density_of(mixture, latent))) < 0x1p-47);
}

TEST_CASE("DiagonalMixture: gradients of the density are central differences", "[policy][property]") {
  auto mixture = random_mixture<double>(5, 3, 2, 1, kTanh);
  auto latent = test::random_matrix<double>(5, 2 * 2, 5);
  const auto c = test::random_matrix<double>(5, 2, 6);
  const auto loss = [&] { return log_density_of(mixture, latent).cwiseProduct(c).sum(); };
  DiagonalMixture<double> gradient;
  gradient.clear_like(mixture);
  auto dlatent = test::nan_matrix<double>(5, 4);
  mixture.log_density_backward(latent, c, gradient, dlatent);
  CHECK(test::gradient_error(loss, mixture.log_weight, gradient.log_weight) < 1e-8);
  CHECK(test::gradient_error(loss, mixture.mean, gradient.mean) < 1e-8);
  CHECK(test::gradient_error(loss, mixture.log_std, gradient.log_std) < 1e-8);
  CHECK(test::gradient_error(loss, latent, dlatent) < 1e-8);

  DiagonalMixture<double> without = gradient;  // accumulates, with and without dlatent
  mixture.log_density_backward(latent, c, without);
  CHECK(test::largest(Matrix<double>(without.mean - 2 * gradient.mean)) < 1e-13);
}

TEST_CASE("DiagonalMixture: gradients by logits are central differences", "[policy][property]") {
  auto logits = test::random_matrix<double>(4, 3, 2);
  const auto c = test::random_matrix<double>(4, 3, 3);
  auto mixture = random_mixture<double>(4, 3, 1);
  const auto loss = [&] {
    for (Index t = 0; t < 4; ++t)
      mixture.log_weight.row(t) = logits.row(t).array() - std::log(logits.row(t).array().exp().sum());
    return mixture.log_weight.cwiseProduct(c).sum();
  };
  loss();
  auto dlogits = test::nan_matrix<double>(4, 3);
  mixture.log_weight_backward(c, dlogits);
  CHECK(test::gradient_error(loss, logits, dlogits) < 1e-9);
}

TEST_CASE("DiagonalMixture: proposals have gradients of means and deviations", "[policy][property]") {
  auto mixture = random_mixture<double>(4, 2, 2);
  const Step step = Step::train(3, 4);
  const auto c = test::random_matrix<double>(4, 4, 6);
  auto latent = test::nan_matrix<double>(4, 4);
  const auto loss = [&] {
    mixture.propose(step, latent);
    return latent.cwiseProduct(c).sum() + latent.array().square().sum();
  };
  loss();
  DiagonalMixture<double> gradient;
  gradient.clear_like(mixture);
  mixture.propose_backward(latent, c + 2 * latent, gradient);
  CHECK(test::gradient_error(loss, mixture.mean, gradient.mean) < 1e-8);
  CHECK(test::gradient_error(loss, mixture.log_std, gradient.log_std) < 1e-8);
}

TEST_CASE("DiagonalMixture: gradients of proposals in float are those in double, rounded once", "[policy]") {
  const auto mixture = random_mixture<float>(50, 2, 2);
  const auto latent = test::random_matrix<float>(50, 4, 7), dlatent = test::random_matrix<float>(50, 4, 8);
  DiagonalMixture<float> gradient;
  gradient.clear_like(mixture);
  mixture.propose_backward(latent, dlatent, gradient);
  const Matrix<double> from_mean = latent.cast<double>() - mixture.mean.cast<double>();
  CHECK(gradient.log_std == Matrix<float>(dlatent.cast<double>().cwiseProduct(from_mean).cast<float>()));
  CHECK(gradient.mean == dlatent);
}

TEST_CASE("DiagonalMixture: draws follow the weights, means and deviations", "[policy][property]") {
  constexpr Index kDraws = 20000;
  const auto mixture = test::repeated(two_components(), kDraws);
  const Step step = Step::train(1, 7);
  Matrix<double> latent(kDraws, 1), proposals(kDraws, 2), probable(kDraws, 1);
  std::vector<Index> component(kDraws);
  mixture.sample(step, latent);
  mixture.propose(step, proposals);
  mixture.draw_components(step, component);
  double of_second = 0, mean = 0, square = 0;
  for (Index t = 0; t < kDraws; ++t) {
    const Index k = component[static_cast<std::size_t>(t)];
    REQUIRE(latent(t, 0) == proposals(t, k));
    of_second += static_cast<double>(k) / kDraws;
    const double e = (proposals(t, 0) + 1) / 0.5;
    mean += e / kDraws;
    square += e * e / kDraws;
  }
  const double root = std::sqrt(double{kDraws});
  CHECK_THAT(of_second, WithinAbs(0.7, 3 * std::sqrt(0.7 * 0.3) / root));
  CHECK_THAT(mean, WithinAbs(0, 3 / root));
  CHECK_THAT(square, WithinAbs(1, 3 * std::sqrt(2.0) / root));
  mixture.most_probable(probable);
  CHECK(probable(0, 0) == 1);
}

TEST_CASE("DiagonalMixture: what is extreme stays a number", "[policy]") {
  auto mixture = random_mixture<double>(6, 2, 1, 1, kTanh);
  mixture.log_weight.row(0) << 0, -INFINITY;  // all weight on one
  mixture.log_weight.row(1) << -800, 0;       // and nearly
  mixture.log_std.row(2).setConstant(-20);
  mixture.log_std.row(3).setConstant(20);
  mixture.log_std.row(4).setConstant(-300);  // the square of a distance is infinite for one component
  mixture.mean.row(4) << 0.5, 1;
  Matrix<double> latent(6, 3), dout = Matrix<double>::Ones(6, 3), dlatent(6, 3);
  latent << 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0.5, 0.5, 0.5, 20, -20, 700;
  const auto density = log_density_of(mixture, latent);
  CHECK(all_finite(density));
  DiagonalMixture<double> gradient;
  gradient.clear_like(mixture);
  mixture.log_density_backward(latent, dout, gradient, dlatent);
  CHECK(all_finite(gradient.log_weight));
  CHECK(all_finite(gradient.mean));
  CHECK(all_finite(gradient.log_std));
  CHECK(all_finite(dlatent));
  CHECK(gradient.log_weight(0, 1) == 0);
  std::vector<Index> component(6);
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    mixture.draw_components(Step::train(0, seed), component);
    CHECK(component[0] == 0);
    CHECK(component[1] == 1);
  }
  auto far_away = mixture;  // of all components: a density that rounds to zero, and no gradient
  far_away.log_std.setConstant(-400);
  gradient.clear_like(mixture);
  far_away.log_density_backward(latent, dout, gradient, dlatent);
  CHECK(all_finite(gradient.mean.topRows(3)));
  CHECK(std::isinf(log_density_of(far_away, latent)(0, 0)));
}

TEST_CASE("DiagonalMixture: one component is the tanh Gaussian", "[policy]") {
  const auto mixture = random_mixture<double>(1, 1, 1, 1, kTanh);
  for (const double u : {-20.0, -1.0, 0.0, 0.3, 20.0}) {
    const double s = std::exp(mixture.log_std(0, 0)), e = (u - mixture.mean(0, 0)) / s;
    const double softplus = u > 0 ? std::log1p(std::exp(-2 * u)) : -2 * u + std::log1p(std::exp(2 * u));
    const double expected = -e * e / 2 - std::log(s) - std::log(2 * std::numbers::pi) / 2 - std::log(1.5) -
                            2 * (std::numbers::ln2 - u - softplus);
    const Matrix<double> at = Matrix<double>::Constant(1, 1, u);
    // e comes of exp(-log s) there and of a division here: 2 eps each, so that the halves of squares differ by up to
    // 9 eps of them; other terms add up to less than 64 and have as few roundings.
    const double tolerance = 16 * std::numeric_limits<double>::epsilon() * (64 + e * e / 2);
    CHECK_THAT(log_density_of(mixture, at)(0, 0), WithinAbs(expected, tolerance));
  }
}

TEST_CASE("ActionRange: actions at the ends of the range have latent numbers", "[policy]") {
  for (const double share : {-1.0, -0.3, 0.0, 0.5, 0.999, 1.0, 1.5}) {
    const double action = 1.5 * share;
    CHECK(std::isfinite(kTanh.latent(action)));
    CHECK(std::isfinite(kTanh.latent(static_cast<float>(action))));
    if (std::abs(share) < 1) CHECK_THAT(kTanh.action(kTanh.latent(action)), WithinAbs(action, 1e-14));
  }
  CHECK(kTanh.action(kTanh.latent(1.5)) > 1.5 * (1 - 1e-15));
  for (const double u : {-1.0, 0.0, 0.7}) {
    double at = u;
    const double slope = test::central_difference([&] { return kTanh.action(at); }, at);
    CHECK_THAT(kTanh.slope(u), WithinAbs(slope, 1e-9));
    CHECK_THAT(kTanh.log_slope_gradient(u),
               WithinAbs(test::central_difference([&] { return kTanh.log_slope(at); }, at), 1e-9));
  }
  CHECK_THROWS_WITH((moe::ActionRange{.scale = 0}.validate()),
                    ContainsSubstring("moe::ActionRange: scale is 0, expected a finite value above 0"));
}

TEST_CASE("DiagonalMixture: any threads and company give the same bits", "[policy][property]") {
  static constexpr Index kRows = 300;
  const auto mixture = random_mixture<float>(kRows, 3, 2, 1, kTanh);
  const auto latent = test::random_matrix<float>(kRows, 2, 5);
  struct Result {
    Matrix<float> density{kRows, 1}, proposals{kRows, 6}, sample{kRows, 2}, dlatent{kRows, 2};
    DiagonalMixture<float> gradient;
  };
  const auto run = [&] {
    Result result;
    mixture.log_density(latent, result.density);
    mixture.propose(Step::train(1, 2), result.proposals);
    mixture.sample(Step::train(1, 2), result.sample);
    result.gradient.clear_like(mixture);
    mixture.log_density_backward(latent, result.density, result.gradient, result.dlatent);
    return result;
  };
  const Result one = run();
  test::ThreadExecutor threads(4);
  const moe::UseExecutor use(threads);
  const Result many = run();
  CHECK(test::same_bits(one.density, many.density));
  CHECK(test::same_bits(one.proposals, many.proposals));
  CHECK(test::same_bits(one.sample, many.sample));
  CHECK(test::same_bits(one.dlatent, many.dlatent));
  CHECK(test::same_bits(one.gradient.log_std, many.gradient.log_std));

  DiagonalMixture<float> alone;  // row 17 by its id
  alone.range = kTanh;
  alone.log_weight = mixture.log_weight.row(17);
  alone.mean = mixture.mean.row(17);
  alone.log_std = mixture.log_std.row(17);
  const std::vector<std::int64_t> id = {17};
  Step step = Step::train(1, 2);
  step.token_id = id;
  Matrix<float> sample(1, 2);
  alone.sample(step, sample);
  CHECK(test::same_bits(sample, one.sample.row(17)));
  CHECK(test::same_bits(log_density_of(alone, Matrix<float>(latent.row(17))), one.density.row(17)));
}

TEST_CASE("DiagonalMixture: nothing of no rows, and what does not fit is refused", "[policy][error]") {
  DiagonalMixture<double> none;
  none.resize(0, 2, 3);
  CHECK(log_density_of(none, Matrix<double>(0, 3)).size() == 0);
  Matrix<double> nothing(0, 3);
  none.sample(Step{}, nothing);
  CHECK_THROWS_WITH(none.resize(1, 0, 1),
                    ContainsSubstring("moe::DiagonalMixture::resize: num_components is 0, expected at least 1"));

  auto mixture = random_mixture<double>(2, 2, 3);
  Matrix<double> out(2, 1);
  CHECK_THROWS_WITH(mixture.log_density(Matrix<double>(2, 4), out),
                    ContainsSubstring("log_density: latent is [2, 4], expected 2 rows of points of dimension 3"));
  CHECK_THROWS_WITH(mixture.log_density(Matrix<double>(2, 6), out),
                    ContainsSubstring("log_density: out is [2, 1], expected [2, 2]"));
  CHECK_THROWS_WITH(mixture.log_density_backward(Matrix<double>(2, 3), out, mixture),
                    ContainsSubstring("log_density_backward: gradient is the mixture itself"));
  std::vector<Index> component(3);
  CHECK_THROWS_WITH(mixture.draw_components(Step{}, component),
                    ContainsSubstring("draw_components: component has 3 entries, expected num_rows = 2"));
  mixture.log_std.resize(2, 5);
  CHECK_THROWS_WITH(mixture.log_density(Matrix<double>(2, 3), out),
                    ContainsSubstring("log_density: log_std is [2, 5], expected [2, 6]"));
}
