// SPDX-License-Identifier: MIT
#include "moe/routing/balance/null_experts.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::null_expert_loss;
using moe::NullExperts;
using moe::RoutingGradient;
using moe::Step;

TEST_CASE("null_expert_loss: is the balance over experts and nulls, the choices of nulls shared among them", "[loss]") {
  // Two experts and two nulls, k = 2: f = (1/2, 1/4), F = 1/4; P = (.4, .3), .3 of the nulls.
  const auto p = test::matrix<double>({{.5, .2}, {.3, .4}});
  const auto routing = test::routing_of({{0, 1}, {0}});
  RoutingGradient<double> gradient;
  const double loss = null_expert_loss(p, routing, {.count = 2, .k = 2}, Step{}, 1.0, gradient);
  CHECK_THAT(loss, WithinAbs(4 * (.5 * .4 + .25 * .3 + .125 * .3), 1e-15));
  for (const Index t : {0, 1}) {
    CHECK_THAT(gradient.probability(t, 0), WithinAbs(4.0 / 2 * (.5 - .125), 1e-15));
    CHECK_THAT(gradient.probability(t, 1), WithinAbs(4.0 / 2 * (.25 - .125), 1e-15));
  }
}

TEST_CASE("null_expert_loss: 1 when all are alike, and the plain balance loss without nulls", "[loss]") {
  RoutingGradient<double> ignored, gradient, plain;
  const moe::Matrix<double> even = moe::Matrix<double>::Constant(4, 3, 0.25);  // three experts and one null
  CHECK_THAT(null_expert_loss(even, test::routing_of({{0}, {1}, {2}, {}}), {1, 1}, Step{}, 1.0, ignored),
             WithinAbs(1, 1e-15));
  const auto p = test::probabilities_of(test::random_logits<double>(300, 5, 1));
  const auto routing = test::top_k_routing(p, 2);
  const auto valid = test::every_nth_padding(300, 7);
  Step step;
  step.valid = valid;
  const double expected = moe::load_balancing_loss(p, routing, step, 0.5, plain);
  CHECK_THAT(null_expert_loss(p, routing, {0, 2}, step, 0.5, gradient), WithinAbs(expected, 1e-13));
  CHECK(test::largest(gradient.probability - plain.probability) < 1e-15);
}

TEST_CASE("null_expert_loss: its gradient is a central difference, on any number of threads", "[loss]") {
  moe::Matrix<double> p = test::probabilities_of(test::random_logits<double>(11, 6, 2)).leftCols(4);
  const auto routing = test::random_ragged_routing(11, 4, 3);
  const NullExperts nulls{.count = 2, .k = 4};
  RoutingGradient<double> gradient;
  null_expert_loss(p, routing, nulls, Step{}, 1.0, gradient);
  const auto loss = [&] {
    RoutingGradient<double> ignored;
    return null_expert_loss(p, routing, nulls, Step{}, 1.0, ignored);
  };
  CHECK(test::gradient_error(loss, p, gradient.probability) < 1e-9);
  CHECK(test::all_equal(test::on_thread_counts(loss)));
}

TEST_CASE("null_expert_loss: more choices than k and numbers out of range are refused", "[loss][error]") {
  const moe::Matrix<double> p = moe::Matrix<double>::Constant(2, 3, 0.2);
  const auto routing = test::routing_of({{0}, {1, 2}});
  RoutingGradient<double> gradient;
  CHECK_THROWS_WITH(null_expert_loss(p, routing, {1, 1}, Step{}, 1.0, gradient),
                    "moe::null_expert_loss: token 1 has 2 choices, expected at most k = 1");
  CHECK_THROWS_WITH(null_expert_loss(p, routing, {-1, 2}, Step{}, 1.0, gradient),
                    "moe::null_expert_loss: nulls.count is -1, expected at least 0");
  CHECK_THROWS_WITH(null_expert_loss(p, routing, {1, 0}, Step{}, 1.0, gradient),
                    "moe::null_expert_loss: nulls.k is 0, expected at least 1");
  CHECK(gradient.probability.size() == 0);
}
