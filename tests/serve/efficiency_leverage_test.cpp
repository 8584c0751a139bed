// SPDX-License-Identifier: MIT
// The law has its published numbers and shape, and is found again from points of it.
#include "moe/serve/efficiency_leverage.hpp"

#include "moe/core/random.hpp"
#include "support/catch.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::EfficiencyLeverageLaw;
using moe::Index;
using moe::LeveragePoint;
using moe::MoeShape;

namespace {

const EfficiencyLeverageLaw kLaw;

/// Points of the law with noise, those below the given leverage.
std::vector<LeveragePoint> points_of(double below, double noise, std::uint64_t seed) {
  std::vector<LeveragePoint> points;
  const moe::RandomField random(moe::Purpose::User, seed);
  for (Index i = 0; std::ssize(points) < 60; ++i) {
    LeveragePoint p{std::pow(0.03, random.uniform(i, 0)), std::exp2(1 + 4 * random.uniform(i, 1)),
                    std::pow(10, 18 + 4 * random.uniform(i, 2))};
    p.leverage = kLaw(p.activation_ratio, p.granularity, p.compute);
    if (p.leverage >= below) continue;
    p.leverage *= std::exp(noise * random.normal(i, 3));
    points.push_back(p);
  }
  return points;
}

}  // namespace

// "More than 7" and "about 12" are what the publication says; the other numbers are its formula and parameters with the
// bases of the logarithms that give these, computed apart from the library.
TEST_CASE("EfficiencyLeverageLaw: the published statements, and numbers of the formula", "[serve][golden]") {
  CHECK(kLaw(0.031, 12, 1e22) > 7);
  CHECK_THAT(kLaw.best_granularity(), WithinAbs(12, 1));
  CHECK_THAT(kLaw(0.031, 12, 1e22), WithinAbs(7.245, 5e-4));
  CHECK_THAT(kLaw(0.034, 12, 1e22), WithinAbs(6.961, 5e-4));
  CHECK_THAT(kLaw(0.031, 2, 1e22), WithinAbs(5.267, 5e-4));
  CHECK_THAT(kLaw(0.031, 12, 1e20), WithinAbs(4.554, 5e-4));
  CHECK_THAT(kLaw(0.078, 2, 1e20), WithinAbs(2.525, 5e-4));
  CHECK_THAT(kLaw.best_granularity(), WithinAbs(11.337, 5e-4));
  CHECK_THAT(kLaw(1, 8, 1e21), WithinAbs(1, 0.02));
  CHECK_THAT((MoeShape{256, 8, 1, 2048, 1024}.activation_ratio()), WithinRel(9.0 / 257, 1e-15));
  CHECK_THAT((MoeShape{64, 4, 1, 6, 1}.granularity()), WithinRel(12.0, 1e-15));
  CHECK_THAT((MoeShape{64, 4, 1, 6, 1}.sharing_ratio()), WithinRel(0.2, 1e-15));
}

TEST_CASE("EfficiencyLeverageLaw: falls with A, grows with C, and has its inverse", "[serve][property]") {
  for (const double c : {1e18, 1e20, 1e22, 1e24})
    for (const double g : {1.0, 4.0, 11.0, 64.0})
      for (const double a : {0.008, 0.05, 0.3, 0.9}) {
        CAPTURE(a, g, c);
        CHECK(kLaw(a, g, c) > kLaw(1.05 * a, g, c));
        CHECK(kLaw(a, g, 10 * c) > kLaw(a, g, c));
        CHECK(kLaw(a, kLaw.best_granularity(), c) >= kLaw(a, g, c));
        CHECK_THAT(kLaw.activation_ratio(kLaw(a, g, c), g, c), WithinRel(a, 1e-10));
      }
  const EfficiencyLeverageLaw plain{.a_start = 0, .a_max = std::numeric_limits<double>::infinity()};
  CHECK(plain.effective_ratio(0.25) == 0.25);
}

TEST_CASE("fit_efficiency_leverage: predicts points that it has not seen", "[serve]") {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    const auto fit = moe::fit_efficiency_leverage(points_of(6, 0.02, seed));
    CAPTURE(seed, fit.law.a_start);
    CHECK(fit.deviation < 0.03);
    for (const double a : {0.02, 0.03})
      for (const double g : {6.0, 12.0, 20.0})
        if (const double actual = kLaw(a, g, 2e22); actual > 6)
          CHECK_THAT(fit.law(a, g, 2e22), WithinRel(actual, 0.03));
  }
  const auto exact = moe::fit_efficiency_leverage(points_of(100, 0, 4));
  CHECK_THAT(exact.law(0.02, 10, 1e23), WithinRel(kLaw(0.02, 10, 1e23), 1e-6));
  auto spoilt = points_of(100, 0, 4);
  spoilt[7].leverage *= 10;
  CHECK_THAT(moe::fit_efficiency_leverage(spoilt).law(0.05, 10, 1e21), WithinRel(kLaw(0.05, 10, 1e21), 0.01));
}

TEST_CASE("efficiency_leverage: of loss curves", "[serve]") {
  const moe::LossCurve dense{20, 0.05}, better{18, 0.05};
  CHECK_THAT(moe::efficiency_leverage(dense, dense, 1e20), WithinRel(1.0, 1e-12));
  for (const double c : {1e18, 1e22})
    CHECK_THAT(moe::efficiency_leverage(dense, better, c), WithinRel(std::pow(20.0 / 18, 20), 1e-10));
  std::vector<std::pair<double, double>> points;
  for (const double c : {1e18, 1e19, 3e20}) points.emplace_back(c, better(c));
  const moe::LossCurve found = moe::fit_loss_curve(points);
  CHECK_THAT(found.coefficient, WithinRel(18.0, 1e-9));
  CHECK_THAT(found.exponent, WithinRel(0.05, 1e-9));
}

TEST_CASE("recommend: the best of all shapes within the budget", "[serve]") {
  const moe::LeverageBudget budget{
      .compute = 1e21, .expert_weights = 400 << 20, .active_weights = 20 << 20, .model_dim = 1024};
  const auto shape = moe::recommend(budget);
  REQUIRE(shape);
  const auto weights = [](const MoeShape& of, Index experts) { return 3 * of.model_dim * of.expert_dim * experts; };
  CHECK(weights(*shape, shape->experts + 1) <= budget.expert_weights);
  CHECK(weights(*shape, shape->active + 1) <= budget.active_weights);
  double best = 0;
  for (Index width = 16; width <= 4096; width += 16)
    for (Index active = 1; active < 60; ++active)
      for (Index experts = active; experts < 400; experts += experts < 300 ? 1 : 3) {
        const MoeShape other{experts, active, 1, 1024, width};
        if (weights(other, experts + 1) <= budget.expert_weights &&
            weights(other, active + 1) <= budget.active_weights && weights(other, active + 2) > budget.active_weights)
          best = std::max(best, kLaw(other, budget.compute));
      }
  CHECK(kLaw(*shape, budget.compute) >= best);
  CHECK_FALSE(moe::recommend({.compute = 1e21, .expert_weights = 100, .active_weights = 100, .model_dim = 1024}));
  // Models with widths of which the law says nothing.
  moe::LeverageBudget large{
      .compute = 1e22, .expert_weights = Index{6} << 30, .active_weights = 400 << 20, .model_dim = 8192};
  CHECK_THROWS_AS(kLaw(MoeShape{256, 8, 1, 8192, 16}, large.compute), std::invalid_argument);
  const auto found = moe::recommend(large);
  REQUIRE(found);
  CHECK(found->expert_dim == 2448);  // computed apart
  CHECK_THAT(kLaw(*found, large.compute), WithinAbs(5.3612, 5e-5));
  large.compute = 1e13;  // of which it says nothing at all
  CHECK_FALSE(moe::recommend(large));
  large.compute = 0;
  CHECK_THROWS_AS(moe::recommend(large), std::invalid_argument);
}

TEST_CASE("efficiency leverage: what the law does not have is refused", "[serve][error]") {
  CHECK_THROWS_AS(kLaw(0, 8, 1e20), std::invalid_argument);
  CHECK_THROWS_AS(kLaw(1.1, 8, 1e20), std::invalid_argument);
  CHECK_THROWS_AS(kLaw(0.1, 0, 1e20), std::invalid_argument);
  CHECK_THROWS_AS(kLaw(0.1, 1, 1e15), std::invalid_argument);
  CHECK_THROWS_AS(kLaw.activation_ratio(-1, 8, 1e20), std::invalid_argument);
  CHECK_THROWS_AS(moe::fit_efficiency_leverage(std::vector<LeveragePoint>(5)), std::invalid_argument);
  CHECK_THROWS_AS(moe::fit_efficiency_leverage(std::vector<LeveragePoint>(6, {0, 1, 1e20, 1})), std::invalid_argument);
  CHECK_THROWS_AS(moe::fit_loss_curve(std::vector<std::pair<double, double>>(3, {1e20, 2})), std::invalid_argument);
  CHECK_THROWS_AS(moe::efficiency_leverage({1, 0}, {1, 0}, 1e20), std::invalid_argument);
  CHECK_THROWS_AS(moe::recommend({.compute = 1e20}), std::invalid_argument);
}
