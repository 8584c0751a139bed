// SPDX-License-Identifier: MIT
#include "moe/routing/load_balancing.hpp"

#include "catch.hpp"
#include "gradient.hpp"
#include "routing/fixtures.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::LoadBalancingOptions;
using moe::RoutingGradient;
using moe::Step;

namespace {

const LoadBalancingOptions kFirstChoices = {.choices = moe::CountedChoices::First};
const LoadBalancingOptions kServedChoices = {.dropped = moe::DroppedChoices::Ignore};

template <class S>
double value(const moe::Matrix<S>& p, const moe::Routing<S>& routing, const LoadBalancingOptions& options = {},
             const Step& step = {}) {
  RoutingGradient<S> ignored;
  return moe::load_balancing_loss(p, routing, step, 1, ignored, options);
}

}  // namespace

TEST_CASE("load_balancing_loss: the worked example of four tokens gives 1.33125", "[loss]") {
  // f = (0.75, 0.25, 0), P = (0.475, 0.35, 0.175): 3 (0.75 * 0.475 + 0.25 * 0.35).
  const auto p = test::matrix<double>({{.7, .2, .1}, {.6, .3, .1}, {.1, .8, .1}, {.5, .1, .4}});
  RoutingGradient<double> gradient;
  const double loss = moe::load_balancing_loss(p, test::top_k_routing(p, 1), Step{}, 0.01, gradient);
  REQUIRE_THAT(loss, WithinAbs(1.33125, 1e-14));
  for (Index t = 0; t < 4; ++t) {  // weight * E f / B
    REQUIRE_THAT(gradient.probability(t, 0), WithinAbs(0.01 * 3 * 0.75 / 4, 1e-16));
    REQUIRE_THAT(gradient.probability(t, 1), WithinAbs(0.01 * 3 * 0.25 / 4, 1e-16));
    REQUIRE(gradient.probability(t, 2) == 0);
  }
}

TEMPLATE_TEST_CASE("load_balancing_loss: perfect balance gives 1 for any k", "[loss][property]", float, double) {
  const Index num_experts = GENERATE(1, 2, 8);  // powers of two, so that 1 / E and all sums are exact
  const Index k = GENERATE_COPY(range(Index{1}, num_experts + 1));
  const auto options = GENERATE(LoadBalancingOptions{}, kFirstChoices, kServedChoices);
  CAPTURE(num_experts, k);
  std::vector<std::vector<Index>> experts;
  for (Index t = 0; t < 3 * num_experts; ++t) {
    experts.emplace_back();
    for (Index s = 0; s < k; ++s) experts.back().push_back((t + s) % num_experts);
  }
  const auto share = TestType{1} / static_cast<TestType>(num_experts);
  const moe::Matrix<TestType> p = moe::Matrix<TestType>::Constant(3 * num_experts, num_experts, share);
  REQUIRE(value(p, test::routing_of<TestType>(experts), options) == 1);
}

TEST_CASE("load_balancing_loss: everything on one expert gives num_experts", "[loss]") {
  moe::Matrix<double> p = moe::Matrix<double>::Zero(6, 5);
  p.col(3).setOnes();
  REQUIRE(value(p, test::top_k_routing(p, 1)) == 5);
}

TEST_CASE("load_balancing_loss: First counts first choices only", "[loss]") {
  const auto p = test::matrix<double>({{.5, .25, .25}, {.5, .25, .25}});
  const auto routing = test::routing_of({{0, 1}, {0, 2}});
  REQUIRE_THAT(value(p, routing), WithinAbs(3 * (.5 * .5 + .25 * .25 + .25 * .25), 1e-15));
  REQUIRE_THAT(value(p, routing, kFirstChoices), WithinAbs(3 * .5, 1e-15));
}

TEST_CASE("load_balancing_loss: dropped choices count unless told otherwise", "[loss]") {
  const auto p = test::matrix<double>({{.75, .25}, {.75, .25}, {.75, .25}, {.75, .25}});
  auto routing = test::routing_of({{0}, {0}, {0}, {1}});
  routing.drop(1, moe::kDroppedByCapacity);
  routing.drop(2, moe::kDroppedByCapacity);
  // Chosen: f = (3/4, 1/4). Served: one each, f = (1/2, 1/2). P = (3/4, 1/4); all numbers are exact.
  REQUIRE(value(p, routing) == 2 * (.75 * .75 + .25 * .25));
  REQUIRE(value(p, routing, kServedChoices) == 1);
}

TEST_CASE("load_balancing_loss: gradient equals central differences, the choices frozen", "[loss]") {
  const auto options = GENERATE(LoadBalancingOptions{}, kFirstChoices, kServedChoices);
  const auto valid = test::every_nth_padding(17, 4);
  Step step;
  step.valid = valid;
  auto p = test::probabilities_of(test::random_logits<double>(17, 5));
  auto routing = test::top_k_routing(p, 2);
  routing.drop(4, moe::kDroppedByCapacity);
  RoutingGradient<double> gradient;
  moe::load_balancing_loss(p, routing, step, 0.3, gradient, options);
  const auto loss = [&] { return 0.3 * value(p, routing, options, step); };
  REQUIRE(test::gradient_error(loss, p, gradient.probability) < 1e-6);
}

TEST_CASE("load_balancing_loss: permuting experts permutes the gradient", "[loss][property]") {
  const auto p = test::probabilities_of(test::random_logits<double>(40, 6));
  const std::vector<Index> to = {3, 5, 0, 1, 4, 2};
  auto routing = test::random_ragged_routing(40, 6);
  moe::Matrix<double> moved(40, 6);
  for (Index e = 0; e < 6; ++e) moved.col(to[static_cast<std::size_t>(e)]) = p.col(e);
  RoutingGradient<double> gradient, moved_gradient;
  const double loss = moe::load_balancing_loss(p, routing, Step{}, 1, gradient);
  for (Index& e : routing.experts()) e = to[static_cast<std::size_t>(e)];
  // Six terms of order 1 summed in another order.
  REQUIRE_THAT(moe::load_balancing_loss(moved, routing, Step{}, 1, moved_gradient), WithinAbs(loss, 1e-14));
  for (Index e = 0; e < 6; ++e) {
    CAPTURE(e);
    REQUIRE(moved_gradient.probability.col(to[static_cast<std::size_t>(e)]) == gradient.probability.col(e));
  }
}

TEST_CASE("load_balancing_loss: padding changes nothing, whatever it holds", "[loss][property]") {
  const auto p = test::probabilities_of(test::random_logits<double>(30, 4));
  moe::Matrix<double> padded = moe::Matrix<double>::Constant(33, 4, std::nan(""));
  padded.topRows(30) = p;
  auto experts = std::vector<std::vector<Index>>(30, {2, 0});
  const auto routing = test::routing_of(experts);
  experts.resize(33, {3, 3});
  std::vector<std::uint8_t> valid(33, 1);
  valid[30] = valid[31] = valid[32] = 0;
  Step step;
  step.valid = valid;
  RoutingGradient<double> gradient, padded_gradient;
  REQUIRE(moe::load_balancing_loss(padded, test::routing_of(experts), step, 1, padded_gradient) ==
          moe::load_balancing_loss(p, routing, Step{}, 1, gradient));
  REQUIRE(padded_gradient.probability.topRows(30) == gradient.probability);
  REQUIRE(padded_gradient.probability.bottomRows(3).isZero(0));
}

TEMPLATE_TEST_CASE("load_balancing_loss: any number of threads gives the same bits", "[loss][property]", float,
                   double) {
  const auto p = test::probabilities_of(test::random_logits<TestType>(1300, 7));
  const auto routing = test::top_k_routing(p, 2);
  const auto results = test::on_thread_counts([&] {
    RoutingGradient<TestType> gradient;
    const double loss = moe::load_balancing_loss(p, routing, Step{}, 0.01, gradient);
    return std::pair(loss, gradient.probability);
  });
  REQUIRE(test::all_equal(results));
}

TEST_CASE("load_balancing_loss: nothing to count gives 0 with zero gradient", "[loss]") {
  const std::vector<std::uint8_t> none(3, 0);
  Step all_padding;
  all_padding.valid = none;
  const moe::Matrix<double> p = moe::Matrix<double>::Constant(3, 2, 0.5);
  RoutingGradient<double> padding, unrouted, empty;
  CHECK(moe::load_balancing_loss(p, test::routing_of({{0}, {1}, {1}}), all_padding, 1, padding) == 0);
  CHECK(padding.probability.isZero(0));
  CHECK(moe::load_balancing_loss(p, test::routing_of({{}, {}, {}}), Step{}, 1, unrouted) == 0);
  CHECK(unrouted.probability.isZero(0));
  CHECK(moe::load_balancing_loss(moe::Matrix<double>(0, 2), moe::Routing<double>{}, Step{}, 1, empty) == 0);
}

TEST_CASE("load_balancing_loss: shapes that differ are errors", "[loss][error]") {
  const moe::Matrix<double> p = moe::Matrix<double>::Constant(3, 2, 0.5);
  CHECK_THROWS_WITH(value(p, test::routing_of({{0}, {1}})),
                    "moe::load_balancing_loss: routing has 2 tokens, expected num_tokens = 3");
  CHECK_THROWS_WITH(value(p, test::routing_of({{0}, {2}, {1}})),
                    "moe::load_balancing_loss: assignment 1 names expert 2, expected 0 <= expert < num_experts = 2");
}
