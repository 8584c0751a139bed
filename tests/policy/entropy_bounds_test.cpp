// SPDX-License-Identifier: MIT
#include "moe/policy/entropy_bounds.hpp"

#include <cmath>
#include <numbers>
#include <vector>

#include "policy/mixtures.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using moe::DiagonalMixture;
using moe::Index;
using moe::Matrix;

namespace {

struct Bounds {
  double lower, upper;
};
Bounds bounds_of(const DiagonalMixture<double>& one) {
  std::vector<double> lower(1), upper(1);
  moe::entropy_bounds(one, lower, upper);
  return {lower[0], upper[0]};
}

double gaussian_entropy(const DiagonalMixture<double>& mixture, Index k) {
  double sum = 0;
  for (Index d = 0; d < mixture.dim(); ++d)
    sum += mixture.log_std(0, k * mixture.dim() + d) + std::log(2 * std::numbers::pi * std::numbers::e) / 2;
  return sum;
}

}  // namespace

TEST_CASE("entropy_bounds: an entropy by Monte Carlo lies between them", "[policy][property]") {
  constexpr Index kDraws = 20000;
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u}) {
    CAPTURE(seed);
    const auto one = test::random_mixture<double>(1, 4, 2, seed);
    const auto mixture = test::repeated(one, kDraws);
    Matrix<double> latent(kDraws, 2), density(kDraws, 1);
    mixture.sample(moe::Step::train(0, seed), latent);
    mixture.log_density(latent, density);
    const double entropy = -density.mean();
    const double error = std::sqrt((density.array() + entropy).square().mean() / kDraws);
    const auto [lower, upper] = bounds_of(one);
    CHECK(lower < entropy + 3 * error);
    CHECK(entropy - 3 * error < upper);
    CHECK(upper - lower < std::log(4.0));
  }
}

TEST_CASE("entropy_bounds: both are exact where components are one, the same or far apart", "[policy]") {
  const auto single = test::random_mixture<double>(1, 1, 3);
  CHECK_THAT(bounds_of(single).lower, WithinAbs(gaussian_entropy(single, 0), 1e-13));
  CHECK_THAT(bounds_of(single).upper, WithinAbs(gaussian_entropy(single, 0), 1e-13));

  auto same = test::random_mixture<double>(1, 3, 1);
  same.mean.setConstant(0.4);
  same.log_std.setConstant(-0.2);
  CHECK_THAT(bounds_of(same).lower, WithinAbs(gaussian_entropy(same, 0), 1e-13));
  CHECK_THAT(bounds_of(same).upper, WithinAbs(gaussian_entropy(same, 0), 1e-13));

  auto apart = test::random_mixture<double>(1, 2, 1);
  apart.log_weight << std::log(0.3), std::log(0.7);
  apart.mean << -100, 100;
  const double expected =
      0.3 * (gaussian_entropy(apart, 0) - std::log(0.3)) + 0.7 * (gaussian_entropy(apart, 1) - std::log(0.7));
  CHECK_THAT(bounds_of(apart).lower, WithinAbs(expected, 1e-12));
  CHECK_THAT(bounds_of(apart).upper, WithinAbs(expected, 1e-12));
}

TEST_CASE("entropy_bounds: finite for components without weight and extreme deviations", "[policy][error]") {
  auto mixture = test::random_mixture<double>(1, 3, 1);
  mixture.log_weight << 0, -INFINITY, -INFINITY;
  mixture.log_std << 0.1, 20, -20;
  const double exact = gaussian_entropy(mixture, 0);
  CHECK_THAT(bounds_of(mixture).lower, WithinAbs(exact, 1e-12));
  CHECK_THAT(bounds_of(mixture).upper, WithinAbs(exact, 1e-12));
  mixture.log_weight.setConstant(-std::log(3.0));
  mixture.log_std << -300, 0, 300;
  CHECK(std::isfinite(bounds_of(mixture).lower));
  CHECK(std::isfinite(bounds_of(mixture).upper));
  std::vector<double> two(2), one(1);
  CHECK_THROWS_WITH(
      moe::entropy_bounds(mixture, two, one),
      ContainsSubstring("moe::entropy_bounds: lower and upper have 2 and 1 entries, expected num_rows = 1"));
}
