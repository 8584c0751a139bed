// SPDX-License-Identifier: MIT
#include "moe/routing/gradient.hpp"

#include "moe/routing/balance/entropy.hpp"
#include "moe/routing/balance/z_loss.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::RoutingGradient;
using moe::Step;

TEST_CASE("RoutingGradient: losses add up in it", "[loss]") {
  const auto p = test::probabilities_of(test::random_logits<double>(5, 3));
  RoutingGradient<double> both, first, second;
  moe::entropy_loss(p, Step{}, 0.5, first);
  moe::mutual_information_loss(p, Step{}, 2.0, second);
  moe::entropy_loss(p, Step{}, 0.5, both);
  moe::mutual_information_loss(p, Step{}, 2.0, both);
  // Entries below 4; fma rounds once what the right-hand side rounds twice.
  CHECK(test::largest(both.probability - first.probability - second.probability) < 4 * 2.3e-16);
}

TEST_CASE("RoutingGradient: parts that no loss writes stay empty", "[loss]") {
  RoutingGradient<float> gradient;
  moe::z_loss(test::random_logits<float>(5, 3), Step{}, 1, gradient);
  CHECK(gradient.logits.rows() == 5);
  CHECK(gradient.probability.size() == 0);
  CHECK(gradient.weight.empty());
}

TEST_CASE("RoutingGradient: a batch of another shape needs clear() first", "[loss][error]") {
  RoutingGradient<float> gradient;
  moe::z_loss(test::random_logits<float>(5, 3), Step{}, 1, gradient);
  const auto next = test::random_logits<float>(4, 3);
  CHECK_THROWS_WITH(moe::z_loss(next, Step{}, 1, gradient), "moe::z_loss: gradient.logits is [5, 3], expected [4, 3]");
  gradient.clear();
  CHECK_NOTHROW(moe::z_loss(next, Step{}, 1, gradient));
}
