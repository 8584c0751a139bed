// SPDX-License-Identifier: MIT
#include "moe/routing/balance/importance.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::RoutingGradient;
using moe::Step;
using moe::Variance;

namespace {

double value(const moe::Matrix<double>& p, const Step& step = {}, const moe::CvOptions& options = {}) {
  RoutingGradient<double> ignored;
  return moe::importance_loss(p, step, 1, ignored, options);
}

double value(const moe::Routing<double>& routing, Index num_experts, const Step& step = {},
             const moe::CvOptions& options = {}) {
  RoutingGradient<double> ignored;
  return moe::importance_loss(routing, num_experts, step, 1, ignored, options);
}

}  // namespace

TEST_CASE("importance_loss: the worked example, population and sample variance", "[loss]") {
  // Importance (1.9, 1.4, 0.7), mean 4/3.
  const auto p = test::matrix<double>({{.7, .2, .1}, {.6, .3, .1}, {.1, .8, .1}, {.5, .1, .4}});
  REQUIRE_THAT(value(p), WithinAbs(0.13625, 1e-14));
  REQUIRE_THAT(value(p, {}, {Variance::Sample}), WithinAbs(0.204375, 1e-14));
}

TEST_CASE("importance_loss: all experts chosen, weights and probabilities agree", "[loss]") {
  const auto p = test::probabilities_of(test::random_logits<double>(11, 4));
  // The same 11 terms per expert, in the same order.
  REQUIRE(value(test::top_k_routing(p, 4), 4) == value(p));
}

TEST_CASE("importance_loss: equal importance gives 0, one expert with all of it num_experts - 1", "[loss][property]") {
  const moe::Matrix<double> equal = moe::Matrix<double>::Constant(8, 4, 0.25);
  REQUIRE(value(equal) == 0);
  moe::Matrix<double> one = moe::Matrix<double>::Zero(8, 4);
  one.col(2).setOnes();
  REQUIRE(value(one) == 3);
}

TEST_CASE("importance_loss: gradient by probabilities equals central differences", "[loss]") {
  const moe::CvOptions options{GENERATE(Variance::Population, Variance::Sample), GENERATE(0.0, 0.5)};
  const auto valid = test::every_nth_padding(13, 5);
  Step step;
  step.valid = valid;
  auto p = test::probabilities_of(test::random_logits<double>(13, 5));
  RoutingGradient<double> gradient;
  moe::importance_loss(p, step, 0.7, gradient, options);
  const auto loss = [&] { return 0.7 * value(p, step, options); };
  REQUIRE(test::gradient_error(loss, p, gradient.probability) < 1e-6);
}

TEST_CASE("importance_loss: gradient by weights equals central differences and is 0 where dropped", "[loss]") {
  const moe::CvOptions options{GENERATE(Variance::Population, Variance::Sample), GENERATE(0.0, 0.5)};
  const auto valid = test::every_nth_padding(13, 5);
  Step step;
  step.valid = valid;
  auto routing = test::top_k_routing(test::probabilities_of(test::random_logits<double>(13, 5)), 2);
  routing.drop(3, moe::kDroppedByCapacity);
  RoutingGradient<double> gradient;
  moe::importance_loss(routing, 5, step, 0.7, gradient, options);
  const auto loss = [&] { return 0.7 * value(routing, 5, step, options); };
  REQUIRE(test::gradient_error(loss, routing.weights(), std::span<const double>(gradient.weight)) < 1e-6);
  REQUIRE(gradient.weight[3] == 0);
  REQUIRE(gradient.weight[2] != 0);
}

TEST_CASE("importance_loss: scaling all weights changes nothing", "[loss][property]") {
  auto routing = test::random_ragged_routing(50, 6);
  const double before = value(routing, 6);
  for (double& w : routing.weights()) w *= 4;
  REQUIRE(value(routing, 6) == before);
}

TEST_CASE("importance_loss: padding adds nothing", "[loss][property]") {
  const auto p = test::probabilities_of(test::random_logits<double>(10, 3));
  moe::Matrix<double> padded = moe::Matrix<double>::Constant(12, 3, std::nan(""));
  padded.topRows(10) = p;
  std::vector<std::uint8_t> valid(12, 1);
  valid[10] = valid[11] = 0;
  Step step;
  step.valid = valid;
  REQUIRE(value(padded, step) == value(p));
}

TEMPLATE_TEST_CASE("importance_loss: any number of threads gives the same bits", "[loss][property]", float, double) {
  const auto p = test::probabilities_of(test::random_logits<TestType>(1300, 7));
  const auto routing = test::top_k_routing(p, 2);
  const auto results = test::on_thread_counts([&] {
    RoutingGradient<TestType> gradient;
    const double by_weight = moe::importance_loss(routing, 7, Step{}, 0.1, gradient);
    const double by_probability = moe::importance_loss(p, Step{}, 0.1, gradient);
    return std::tuple(by_weight, by_probability, gradient.weight, gradient.probability);
  });
  REQUIRE(test::all_equal(results));
}

TEST_CASE("importance_loss: no weight at all gives 0 with zero gradient", "[loss]") {
  RoutingGradient<double> gradient, empty;
  moe::Matrix<double> zero = moe::Matrix<double>::Zero(4, 3);
  CHECK(moe::importance_loss(zero, Step{}, 1, gradient) == 0);
  CHECK(gradient.probability.isZero(0));
  CHECK(moe::importance_loss(moe::Routing<double>{}, 3, Step{}, 1, empty) == 0);
}

TEST_CASE("importance_loss: the sample variance of one expert is 0", "[loss]") {
  RoutingGradient<double> gradient;
  CHECK(moe::importance_loss(test::routing_of({{0}, {0}}), 1, Step{}, 1, gradient, {Variance::Sample}) == 0);
  CHECK(gradient.weight == std::vector<double>{0, 0});
}

TEST_CASE("importance_loss: an expert out of range and a gradient of another batch are errors", "[loss][error]") {
  RoutingGradient<double> gradient;
  CHECK_THROWS_AS(moe::importance_loss(test::routing_of({{3}}), 3, Step{}, 1, gradient), std::invalid_argument);
  moe::importance_loss(test::routing_of({{0}, {1}}), 3, Step{}, 1, gradient);
  CHECK_THROWS_WITH(moe::importance_loss(test::routing_of({{0}}), 3, Step{}, 1, gradient),
                    "moe::importance_loss: gradient.weight has 2 entries, expected num_assignments = 1");
}
