// SPDX-License-Identifier: MIT
#include "moe/gaussian/theory/distance.hpp"

#include "gaussian/models.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;

namespace {

using Dense = moe::GaussianMoe<moe::SoftmaxGate>;
using TopK = moe::GaussianMoe<moe::TopKGate>;
using Activated = moe::GaussianMoe<moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>>;

/// What the docstring promises: of h^2 by the rule, of V by its corrections at roots, and in both the rounding of p and
/// q, 1e-15 over their relative difference.
constexpr double kHellinger = 1e-12, kVariation = 3e-6;

moe::Matrix<double> inputs(Index n, Index d, int seed = 9) {
  const moe::RandomField field(moe::Purpose::User, seed);
  return moe::Matrix<double>::NullaryExpr(n, d, [&](Index i, Index c) { return 2 * field.uniform(i, c) - 1; });
}

/// One expert, y ~ N(mean, deviation^2) at any x.
Dense normal(double mean, double deviation) {
  return Dense(test::parameters_of({{0}, {0}, {0}, {mean}, {deviation * deviation}}));
}

double phi(double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); }

/// Closed forms between N(0, 1) and N(mean, s^2), s > 1 or (s = 1 and mean > 0).
double hellinger_squared(double mean, double s) {  // 1 - sqrt(2 s / (1 + s^2)) e^..., in expm1 and log1p
  return -std::expm1(0.5 * std::log1p(-(s - 1) * (s - 1) / (1 + s * s)) - mean * mean / (4 * (1 + s * s)));
}
double total_variation(double mean, double s) {
  if (s == 1) return std::erf(mean / std::sqrt(8.0));
  // p > q between the roots of (y - mean)^2 / s^2 - y^2 + 2 log s, a y^2 + b y + c
  const double a = 1 / (s * s) - 1, b = -2 * mean / (s * s), c = mean * mean / (s * s) + 2 * std::log(s);
  const double root = std::sqrt(b * b - 4 * a * c), lower = (-b + root) / (2 * a), upper = (-b - root) / (2 * a);
  return phi(upper) - phi(lower) - phi((upper - mean) / s) + phi((lower - mean) / s);
}

}  // namespace

TEST_CASE("density_distance: agrees with the closed forms of two normal densities", "[gaussian]") {
  for (const double scale : {1.0, 1e-3})
    for (const double s : {1.0, 1.1, 2.0, 20.0, 1e5})  // the last with uneven nodes
      for (const double mean : {0.0, 0.01, 0.5, 3.0, 12.0, 40.0}) {
        if (s == 1 && mean == 0) continue;
        CAPTURE(scale, s, mean);
        const auto d = moe::density_distance(normal(0, scale), normal(mean * scale, s * scale), inputs(3, 1));
        CHECK_THAT(d.hellinger_squared, WithinRel(hellinger_squared(mean, s), kHellinger));
        CHECK_THAT(d.hellinger, WithinRel(std::sqrt(hellinger_squared(mean, s)), kHellinger));
        CHECK_THAT(d.total_variation, WithinRel(total_variation(mean, s), kVariation));
        CHECK(d.total_variation_error == 0);
      }
}

TEST_CASE("density_distance: tiny differences are not lost", "[gaussian]") {
  // log p and log q are rounded by some 1e-15 where they differ by 1e-6: 1e-9 each, averaged over 150 nodes
  const double rounding = 1e-9;
  for (const double mean : {0.3, -7.0}) {
    CAPTURE(mean);
    // mean + 1e-6 is not 1e-6 above mean
    const double off = (mean + 1e-6) - mean;
    const auto shifted = moe::density_distance(normal(mean, 1), normal(mean + 1e-6, 1), inputs(1, 1));
    CHECK_THAT(shifted.hellinger_squared, WithinRel(hellinger_squared(off, 1), rounding));
    CHECK_THAT(shifted.total_variation, WithinRel(total_variation(off, 1), kVariation));
  }
  // V of a change of scale: (2 / sqrt(2 pi e)) log s, in first order
  const auto wider = moe::density_distance(normal(0, 1), normal(0, 1 + 1e-6), inputs(1, 1));
  CHECK_THAT(wider.hellinger_squared, WithinRel(hellinger_squared(0, 1 + 1e-6), rounding));
  CHECK_THAT(wider.total_variation, WithinRel(2e-6 / std::sqrt(2 * std::numbers::pi * std::numbers::e), kVariation));
}

TEST_CASE("density_distance: is a symmetric distance with h^2 <= V <= sqrt(2) h", "[gaussian][property]") {
  const auto x = inputs(20, 2);
  for (const int seed : {1, 2, 3, 4, 5}) {
    CAPTURE(seed);
    const Dense p(test::random_parameters(3, 2, seed)), r(test::random_parameters(2, 2, seed + 20));
    const TopK q(test::random_parameters(4, 2, seed + 10), {.k = 2});
    const auto pq = moe::density_distance(p, q, x), qp = moe::density_distance(q, p, x);
    CHECK_THAT(qp.hellinger_squared, WithinRel(pq.hellinger_squared, kHellinger));
    CHECK_THAT(qp.total_variation, WithinRel(pq.total_variation, kHellinger));
    CHECK(pq.hellinger_squared > 0);
    CHECK(pq.hellinger_squared <= pq.total_variation);
    CHECK(pq.total_variation <= std::sqrt(2.0) * pq.hellinger);
    CHECK(pq.total_variation <= 1);
    const auto pr = moe::density_distance(p, r, x), rq = moe::density_distance(r, q, x);
    CHECK(pq.hellinger <= pr.hellinger + rq.hellinger);
    CHECK(pq.total_variation <= pr.total_variation + rq.total_variation);
  }
}

TEST_CASE("density_distance: zero between equal densities, one between disjoint ones", "[gaussian]") {
  const auto x = inputs(8, 2);
  const auto parameters = test::random_parameters(3, 2, 4);
  CHECK(moe::density_distance(Dense(parameters), Dense(parameters), x).hellinger == 0);
  CHECK(moe::density_distance(Dense(parameters), Dense(parameters), x).total_variation == 0);
  // All experts active: another gate, the same density. Weights may be off by some ulp, hence densities by 1e-15.
  const auto same = moe::density_distance(Dense(parameters), TopK(parameters, {.k = 3}), x);
  CHECK_THAT(same.total_variation, WithinAbs(0, 1e-14));
  CHECK_THAT(same.hellinger, WithinAbs(0, 1e-14));
  const auto apart = moe::density_distance(normal(-1e6, 1), normal(1e6, 1), inputs(2, 1));
  CHECK_THAT(apart.hellinger, WithinAbs(1, kHellinger));
  CHECK_THAT(apart.total_variation, WithinAbs(1, kHellinger));
}

TEST_CASE("density_distance: more nodes change nothing that was promised", "[gaussian]") {
  const auto x = inputs(12, 1);
  for (int seed = 0; seed < 6; ++seed) {
    auto parameters = test::random_parameters(3, 1, seed);
    const Dense q(test::random_parameters(4, 1, seed + 40));
    for (const double narrow : {0.2, 1e-4, 1e-12}) {
      CAPTURE(seed, narrow);
      parameters.variance(1) = narrow;
      const auto d = moe::density_distance(Dense(parameters), q, x);
      const auto fine = moe::density_distance(Dense(parameters), q, x, {.nodes_per_deviation = 32});
      // a deviation of 1e-6 at means of up to 10 is known to 1e-9 by nodes in double, twice in the exponent
      const double rounding = narrow < 1e-10 ? 1e-8 : kHellinger;
      CHECK_THAT(d.hellinger_squared, WithinRel(fine.hellinger_squared, rounding));
      CHECK_THAT(d.total_variation, WithinRel(fine.total_variation, kVariation));
    }
  }
}

TEST_CASE("density_distance_monte_carlo: agrees with quadrature within four standard errors", "[gaussian]") {
  const auto x = inputs(40, 2);
  for (const int seed : {1, 2, 3}) {
    CAPTURE(seed);
    const Activated p(test::random_parameters(3, 2, seed));
    const TopK q(test::random_parameters(4, 2, seed + 10), {.k = 2});
    const auto exact = moe::density_distance(p, q, x);
    const auto drawn = moe::density_distance_monte_carlo(p, q, x, {.draws = 500, .seed = 5});
    CHECK(drawn.total_variation_error > 0);
    CHECK(drawn.total_variation_error <= 0.5 / std::sqrt(40.0 * 500));
    CHECK(drawn.hellinger_squared_error <= 0.5 / std::sqrt(40.0 * 500));
    CHECK_THAT(drawn.total_variation, WithinAbs(exact.total_variation, 4 * drawn.total_variation_error));
    CHECK_THAT(drawn.hellinger_squared, WithinAbs(exact.hellinger_squared, 4 * drawn.hellinger_squared_error));
  }
}

TEST_CASE("density_distance_monte_carlo: keeps relative accuracy for close densities", "[gaussian]") {
  const auto drawn = moe::density_distance_monte_carlo(normal(0, 1), normal(1e-6, 1), inputs(10, 1));
  CHECK_THAT(drawn.hellinger_squared, WithinAbs(hellinger_squared(1e-6, 1), 4 * drawn.hellinger_squared_error));
  CHECK(drawn.hellinger_squared_error < 0.05 * drawn.hellinger_squared);
}

TEST_CASE("density_distance: the same bits for any number of threads", "[gaussian][property]") {
  const auto x = inputs(70, 2);
  const Dense p(test::random_parameters(3, 2, 1)), q(test::random_parameters(3, 2, 2));
  const auto both = [&](Index workers) {
    test::ThreadExecutor threads(workers);
    const moe::UseExecutor use(threads);
    const auto exact = moe::density_distance(p, q, x);
    const auto drawn = moe::density_distance_monte_carlo(p, q, x, {.draws = 20});
    return std::vector{exact.hellinger_squared, exact.total_variation, drawn.hellinger_squared, drawn.total_variation};
  };
  CHECK(both(1) == both(3));
}

TEST_CASE("density_distance: bad arguments are errors that name what is wrong", "[gaussian][error]") {
  const auto p = normal(0, 1);
  const auto x = inputs(3, 1);
  CHECK_THROWS_WITH(moe::density_distance(p, p, inputs(3, 2)), ContainsSubstring("x is [3, 2], expected [3, 1]"));
  CHECK_THROWS_WITH(moe::density_distance(p, p, inputs(0, 1)), ContainsSubstring("x has no rows"));
  CHECK_THROWS_WITH(moe::density_distance(p, p, x, {.nodes_per_deviation = 1}), ContainsSubstring("is 1, expected"));
  CHECK_THROWS_WITH(moe::density_distance_monte_carlo(p, p, x, {.draws = 1}), ContainsSubstring("draws is 1"));
  auto bad = p;
  bad.variance(0) = -1;
  CHECK_THROWS_WITH(moe::density_distance(p, bad, x), ContainsSubstring("variance of expert 0 is -1"));
  moe::Matrix<double> holed = x;
  holed(1, 0) = NAN;
  CHECK_THROWS_WITH(moe::density_distance(p, p, holed), ContainsSubstring("not finite"));
  auto steep = p;
  steep.slope(0, 0) = 1e308;
  CHECK_THROWS_WITH(moe::density_distance(steep, p, 1e3 * x), ContainsSubstring("overflows"));
  CHECK_THROWS_WITH(moe::density_distance(normal(1e308, 1), normal(-1e308, 1), x), ContainsSubstring("nodes"));
}
