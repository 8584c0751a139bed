// SPDX-License-Identifier: MIT
#include "moe/routing/balance/statistics.hpp"

#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Step;

namespace {

moe::DispatchPlan plan_of(const moe::Routing<double>& routing, Index num_experts) {
  moe::DispatchPlan plan;
  plan.build(routing, num_experts);
  return plan;
}

/// Experts 0, 1, 2 get 3, 1 and 0 rows; one choice of expert 2 is dropped.
moe::Routing<double> skewed() {
  auto routing = test::routing_of({{0, 1}, {0}, {2, 0}});
  routing.drop(3, moe::kDroppedByCapacity);
  return routing;
}

}  // namespace

TEST_CASE("tokens_per_expert: counts served choices, from the plan and from the routing", "[statistics]") {
  const std::vector<Index> expected = {3, 1, 0};
  CHECK(moe::tokens_per_expert(plan_of(skewed(), 3)) == expected);
  CHECK(moe::tokens_per_expert(skewed(), 3) == expected);
  CHECK(moe::tokens_per_expert(moe::DispatchPlan{}).empty());
}

TEST_CASE("tokens_per_expert: an expert out of range is an error", "[statistics][error]") {
  CHECK_THROWS_AS(moe::tokens_per_expert(skewed(), 2), std::invalid_argument);
}

TEST_CASE("load_imbalance: busiest over mean, from 1 to num_experts", "[statistics]") {
  CHECK(moe::load_imbalance(plan_of(skewed(), 3)) == 3.0 / (4.0 / 3.0));
  CHECK(moe::load_imbalance(plan_of(test::routing_of({{0}, {1}, {2}}), 3)) == 1);
  CHECK(moe::load_imbalance(plan_of(test::routing_of({{2}, {2}}), 5)) == 5);
}

TEST_CASE("load statistics: a plan without rows is balanced", "[statistics]") {
  for (const Index num_experts : {0, 4}) {
    const auto plan = plan_of({}, num_experts);
    CHECK(moe::load_imbalance(plan) == 1);
    CHECK(moe::load_cv(plan) == 0);
    CHECK(moe::load_entropy(plan) == 0);
  }
}

TEST_CASE("load_cv: standard deviation over mean of the rows per expert", "[statistics]") {
  // Rows (3, 1, 0): mean 4/3, variance ((5/3)^2 + (1/3)^2 + (4/3)^2) / 3 = 14/9.
  REQUIRE_THAT(moe::load_cv(plan_of(skewed(), 3)), WithinAbs(std::sqrt(14.0 / 9) / (4.0 / 3), 1e-15));
  CHECK(moe::load_cv(plan_of(test::routing_of({{0}, {1}}), 2)) == 0);
}

TEST_CASE("load_entropy: of the shares of the rows", "[statistics]") {
  REQUIRE_THAT(moe::load_entropy(plan_of(skewed(), 3)), WithinAbs(-.75 * std::log(.75) - .25 * std::log(.25), 1e-15));
  REQUIRE_THAT(moe::load_entropy(plan_of(test::routing_of({{0}, {1}}), 2)), WithinAbs(std::log(2.0), 1e-15));
}

TEST_CASE("drop_rate: dropped over all choices of valid tokens", "[statistics]") {
  CHECK(moe::drop_rate(skewed()) == 0.2);
  const std::vector<std::uint8_t> last_is_padding = {1, 1, 0};
  Step step;
  step.valid = last_is_padding;
  CHECK(moe::drop_rate(skewed(), step) == 0);
  CHECK(moe::drop_rate(moe::Routing<double>{}) == 0);
}

TEST_CASE("mean_active_experts: served choices per valid token", "[statistics]") {
  REQUIRE_THAT(moe::mean_active_experts(skewed()), WithinAbs(4.0 / 3, 1e-15));
  const std::vector<std::uint8_t> last_is_padding = {1, 1, 0};
  Step step;
  step.valid = last_is_padding;
  CHECK(moe::mean_active_experts(skewed(), step) == 1.5);
  CHECK(moe::mean_active_experts(moe::Routing<double>{}) == 0);
}

TEMPLATE_TEST_CASE("router_entropy: mean over valid tokens", "[statistics]", float, double) {
  const auto p = test::matrix<TestType>({{TestType(.5), TestType(.5)}, {1, 0}, {TestType(.5), TestType(.5)}});
  const std::vector<std::uint8_t> valid = {1, 1, 0};
  Step step;
  step.valid = valid;
  REQUIRE_THAT(moe::router_entropy(p, step), WithinAbs(std::log(2.0) / 2, 1e-15));
  REQUIRE(moe::router_entropy(moe::Matrix<TestType>(0, 2)) == 0);
}

TEST_CASE("statistics: a step of another batch is an error", "[statistics][error]") {
  const std::vector<std::uint8_t> valid = {1};
  Step step;
  step.valid = valid;
  CHECK_THROWS_AS(moe::drop_rate(skewed(), step), std::invalid_argument);
  CHECK_THROWS_AS(moe::mean_active_experts(skewed(), step), std::invalid_argument);
  CHECK_THROWS_AS(moe::router_entropy(moe::Matrix<double>(2, 2), step), std::invalid_argument);
}
