// SPDX-License-Identifier: MIT
#include "moe/gaussian/predict/normal_mixture.hpp"

#include <limits>
#include <string>

#include "gaussian/mixtures.hpp"
#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using moe::NormalMixture;
using Row = Eigen::RowVectorXd;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr Index kSizes[] = {1, 2, 3, 7};
// 1e-12 on both sides, as far out as intervals for many comparisons go
const double kLevels[] = {1e-12, 1e-6, 0.025, 0.3, 0.5, 0.500001, 0.75, 0.999, 1 - 1e-6, 1 - 1e-12};

Row row(std::initializer_list<double> values) {
  Row result(static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), result.data());
  return result;
}

/// Integral of f p over the line: the trapezoidal rule on a normal converges like exp(-2 (pi sigma / h)^2), below 1e-70
/// for h = sigma / 3, and 12 standard deviations leave 1e-32 out. What remains is the rounding of the sum.
template <class F>
double integral(const NormalMixture& mixture, F&& f) {
  const double narrow = std::sqrt(mixture.variances().minCoeff()), wide = std::sqrt(mixture.variances().maxCoeff());
  const double low = mixture.means().minCoeff() - 12 * wide, high = mixture.means().maxCoeff() + 12 * wide;
  const double h = narrow / 3;
  double sum = 0;
  for (double y = low; y <= high; y += h) sum += f(y) * mixture.density(y);
  return sum * h;
}

}  // namespace

TEST_CASE("NormalMixture: mass, mean and variance are the integrals of the density", "[gaussian][property]") {
  for (const Index k : kSizes)
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      CAPTURE(k, seed);
      const NormalMixture mixture = test::random_mixture(k, seed);
      // at most 2000 nodes, values of f up to 8^2: 2000 eps 64
      CHECK_THAT(integral(mixture, [](double) { return 1; }), WithinAbs(1, 1e-12));
      CHECK_THAT(integral(mixture, [](double y) { return y; }), WithinAbs(mixture.mean(), 1e-11));
      const auto square = [&](double y) { return std::pow(y - mixture.mean(), 2); };
      CHECK_THAT(integral(mixture, square), WithinAbs(mixture.variance(), 3e-11));
    }
}

TEST_CASE("NormalMixture: the cdf is the integral of the density, survival the rest", "[gaussian][property]") {
  const NormalMixture mixture = test::random_mixture(3, 4);
  double below = 0;
  const double h = std::sqrt(mixture.variances().minCoeff()) / 40;
  for (double y = -30; y < 10; y += h) {
    // Simpson's error per step is h^5 / 2880 max |p''''|, and |p''''| <= 3 / (sigma^5 sqrt(2 pi)): 4e-12 each, mostly 0
    below += h / 6 * (mixture.density(y) + 4 * mixture.density(y + h / 2) + mixture.density(y + h));
    REQUIRE_THAT(mixture.cdf(y + h), WithinAbs(below, 1e-9));
    REQUIRE_THAT(mixture.survival(y + h), WithinAbs(1 - below, 1e-9));
  }
}

TEST_CASE("NormalMixture: one component is the normal distribution", "[gaussian]") {
  const NormalMixture normal(row({3}), row({2}), row({0.25}));  // weights need not add up to 1
  CHECK(normal.weights()(0) == 1);
  CHECK(normal.mean() == 2);
  CHECK(normal.variance() == 0.25);
  CHECK(normal.mode() == 2);
  CHECK_THAT(normal.density(2.5),
             WithinRel(std::exp(-0.5) / std::sqrt(2 * 3.14159265358979323846) / 0.5, 8 * kEpsilon));
  // Phi(-30), and z_p to 20 digits computed with mpmath; z^2 eps is what a rounded argument costs
  CHECK_THAT(NormalMixture().cdf(-30), WithinRel(4.906713927148187059e-198, 900 * kEpsilon));
  CHECK_THAT(NormalMixture().survival(30), WithinRel(4.906713927148187059e-198, 900 * kEpsilon));
  CHECK_THAT(NormalMixture().quantile(1e-300), WithinRel(-37.047096299361199, 4 * kEpsilon));
  CHECK_THAT(NormalMixture().quantile(1e-12), WithinRel(-7.0344838253011319, 4 * kEpsilon));
  CHECK_THAT(NormalMixture().quantile(0.025), WithinRel(-1.9599639845400542, 4 * kEpsilon));
  CHECK_THAT(normal.quantile(0.75), WithinRel(2 + 0.5 * 0.67448975019608174, 4 * kEpsilon));
  CHECK(NormalMixture().quantile(0.5) == 0);
}

TEST_CASE("NormalMixture: the cdf of a quantile is its level, in both tails", "[gaussian][property]") {
  for (const Index k : kSizes)
    for (std::uint64_t seed = 0; seed < 200; ++seed)
      for (const double p : kLevels) {
        CAPTURE(k, seed, p);
        const NormalMixture mixture = test::random_mixture(k, seed);
        const double y = mixture.quantile(p);
        // rounding of the sum of tails, and of y and y - m, which moves a tail by its density
        const double level = std::min(p, 1 - p), reach = std::abs(y) + mixture.means().cwiseAbs().maxCoeff();
        const double tolerance = kEpsilon * (16 * level + 4 * reach * mixture.density(y));
        REQUIRE_THAT(p > 0.5 ? mixture.survival(y) : mixture.cdf(y), WithinAbs(level, tolerance));
      }
}

TEST_CASE("NormalMixture: the quantile of a cdf is the value", "[gaussian][property]") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const NormalMixture mixture = test::random_mixture(4, seed);
    for (double y = -6; y <= 6; y += 0.37) {
      const double p = mixture.cdf(y), density = mixture.density(y);
      if (!(p > 0 && p < 1) || density < 1e-9) continue;
      CAPTURE(seed, y, p);
      // p is off by some eps p (next to 1: eps), which moves y by that over the density
      REQUIRE_THAT(mixture.quantile(p), WithinAbs(y, kEpsilon * (16 * p / density + 4 * (std::abs(y) + 4))));
    }
  }
}

TEST_CASE("NormalMixture: quantiles cross gaps, spikes and weights of any size", "[gaussian]") {
  const NormalMixture gap(row({0.25, 0.75}), row({-1e6, 1e6}), row({1, 1}));
  CHECK(gap.cdf(gap.quantile(0.25)) == 0.25);  // any number in the gap
  CHECK_THAT(gap.quantile(0.125), WithinRel(-1e6, 1e-12));
  CHECK_THAT(gap.quantile(0.625), WithinRel(1e6, 1e-12));
  const NormalMixture spike(row({0.5, 0.5}), row({0.3, 0}), row({1e-20, 1}));
  for (const double p : {0.4, 0.5, 0.6, 0.8}) {
    // cdf(0.3) = 0.31 below the spike and 0.81 above, and doubles are 6e-17 apart there: 6e-7 deviations of the spike
    const double y = spike.quantile(p);
    CAPTURE(p, y);
    CHECK_THAT(spike.cdf(y), WithinAbs(p, 1e-6));
    CHECK_THAT(y, WithinAbs(0.3, 1e-9));
  }
  // the tail that belongs to a component of weight 1e-9
  const NormalMixture rare(row({1e-9, 1}), row({-50, 0}), row({1, 1}));
  CHECK_THAT(rare.quantile(5e-10), WithinAbs(-50, 1e-8));
}

TEST_CASE("NormalMixture: the mode is at least as high as a dense grid", "[gaussian][property]") {
  for (const Index k : kSizes)
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
      CAPTURE(k, seed);
      const NormalMixture mixture = test::random_mixture(k, seed);
      const double mode = mixture.mode(), highest = mixture.log_density(mode);
      double on_grid = -INFINITY;
      for (double y = -4; y <= 4; y += 1e-3) on_grid = std::max(on_grid, mixture.log_density(y));
      REQUIRE(highest >= on_grid - 4 * kEpsilon * std::abs(on_grid));
      REQUIRE(mixture.means().minCoeff() <= mode);
      REQUIRE(mode <= mixture.means().maxCoeff());
    }
}

TEST_CASE("NormalMixture: peaks that merge are found in the middle", "[gaussian]") {
  // Equal components two deviations apart: p'(y) ~ -y^3, so a slope of eps lets y move by eps^(1/3) = 6e-6.
  CHECK_THAT(NormalMixture(row({1, 1}), row({-1, 1}), row({1, 1})).mode(), WithinAbs(0, 1e-4));
  CHECK_THAT(NormalMixture(row({1, 1}), row({-1, 1}), row({1.44, 1.44})).mode(), WithinAbs(0, 1e-14));
}

TEST_CASE("NormalMixture: components without weight change nothing", "[gaussian]") {
  const NormalMixture mixture(row({0.4, 0.6}), row({-1, 2}), row({1, 0.5}));
  const NormalMixture padded(row({0, 0.4, 0, 0.6}), row({1e300, -1, -1e300, 2}), row({1e-300, 1, 1e300, 0.5}));
  CHECK(padded.mean() == mixture.mean());
  CHECK(padded.variance() == mixture.variance());
  CHECK(padded.mode() == mixture.mode());
  for (const double p : kLevels) CHECK(padded.quantile(p) == mixture.quantile(p));
  for (const double y : {-40.0, -1.0, 0.5, 3.0}) {
    CHECK(padded.density(y) == mixture.density(y));
    CHECK(padded.cdf(y) == mixture.cdf(y));
    CHECK(padded.survival(y) == mixture.survival(y));
    const Row r = mixture.responsibilities(y);
    CHECK(padded.responsibilities(y) == row({0, r(0), 0, r(1)}));
  }
}

TEST_CASE("NormalMixture: mirrored components swap the tails, bit by bit", "[gaussian][property]") {
  const NormalMixture mixture = test::random_mixture(5, 9);
  const NormalMixture mirrored(mixture.weights(), -mixture.means(), mixture.variances());
  for (const double y : {-40.0, -9.0, -1.0, 0.0, 2.5, 11.0, 70.0}) CHECK(mixture.cdf(y) == mirrored.survival(-y));
  CHECK(mixture.quantile(0.25) == -mirrored.quantile(0.75));
}

TEST_CASE("NormalMixture: log-density and responsibilities hold where densities underflow", "[gaussian]") {
  const NormalMixture mixture(row({0.75, 0.25}), row({0, 1}), row({4, 1}));
  CHECK(mixture.density(1e5) == 0);
  const double expected = std::log(0.75) - std::log(2) - 0.5 * std::log(2 * 3.14159265358979323846) - 1e10 / 8;
  CHECK_THAT(mixture.log_density(1e5), WithinRel(expected, 4 * kEpsilon));
  CHECK(mixture.responsibilities(1e5) == row({1, 0}));
  CHECK(mixture.expert() == 0);
  CHECK(mixture.expert(1) == 0);
  CHECK(NormalMixture(row({0.4, 0.6}), row({0, 3}), row({1, 1})).expert(0) == 0);
  CHECK(NormalMixture(row({1, 1}), row({0, 3}), row({1, 1})).expert() == 0);  // ties
  CHECK(NormalMixture(row({1, 1}), row({-3, 3}), row({1, 1})).expert(0) == 0);
  CHECK(mixture.cdf(INFINITY) == 1);
  CHECK(mixture.cdf(-INFINITY) == 0);
  CHECK(mixture.density(INFINITY) == 0);
}

TEST_CASE("NormalMixture: draws invert the weights", "[gaussian]") {
  const NormalMixture mixture(row({0, 0.25, 0, 0.75, 0}), row({9, 1, 9, 5, 9}), row({1, 4, 1, 9, 1}));
  CHECK(mixture.draw(0.2499, 0.5).expert == 1);
  CHECK(mixture.draw(0.2499, 0.5).y == 2);
  CHECK(mixture.draw(0.25, -1).expert == 3);
  CHECK(mixture.draw(0.25, -1).y == 2);
  CHECK(mixture.draw(1 - 1e-16, 0).expert == 3);
}

TEST_CASE("NormalMixture: wrong numbers are errors that name them", "[gaussian][error]") {
  CHECK_THROWS_WITH(NormalMixture(Row(0), Row(0), Row(0)), ContainsSubstring("weights is empty"));
  CHECK_THROWS_WITH(NormalMixture(row({1, 1}), row({1}), row({1, 1})), ContainsSubstring("means is [1, 1]"));
  CHECK_THROWS_WITH(NormalMixture(row({1, -1}), row({1, 1}), row({1, 1})), ContainsSubstring("weight 1 is -1"));
  CHECK_THROWS_WITH(NormalMixture(row({0, 0}), row({1, 1}), row({1, 1})), ContainsSubstring("add up to 0"));
  CHECK_THROWS_WITH(NormalMixture(row({1}), row({NAN}), row({1})), ContainsSubstring("mean 0 is nan"));
  CHECK_THROWS_WITH(NormalMixture(row({1}), row({1}), row({0})), ContainsSubstring("variance 0 is 0"));
  for (const double p : std::initializer_list<double>{0, 1, -0.5, 1.5, NAN, 1e-301})
    CHECK_THROWS_WITH(NormalMixture().quantile(p), ContainsSubstring("expected a number inside of (0, 1)"));
  CHECK_THROWS_WITH(NormalMixture().density(NAN), ContainsSubstring("y is NaN"));
  CHECK_THROWS_WITH(NormalMixture().cdf(NAN), ContainsSubstring("y is NaN"));
  CHECK_THROWS_WITH(NormalMixture().responsibilities(INFINITY), ContainsSubstring("y is inf"));
}
