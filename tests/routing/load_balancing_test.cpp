// SPDX-License-Identifier: MIT
#include "moe/routing/balance/load_balancing.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::LoadBalancingOptions;
using moe::RoutingGradient;
using moe::Step;

namespace {

const LoadBalancingOptions kFirstChoices = {.choices = moe::CountedChoices::First};
const LoadBalancingOptions kServedChoices = {.dropped = moe::DroppedChoices::Ignore};

/// A batch in parts: rows and the step of each, where `valid` says which tokens count.
struct Part {
  Index first, count;
};
template <class S>
struct Batch {
  moe::Matrix<S> p;
  moe::Routing<S> routing;
  std::vector<std::uint8_t> valid;

  Batch(const moe::Matrix<S>& logits, Index k, std::vector<std::uint8_t> which = {})
      : p(test::probabilities_of(logits)), routing(test::top_k_routing(p, k)), valid(std::move(which)) {}
  Batch part(const Part& rows) const {
    Batch result = *this;
    result.p = p.middleRows(rows.first, rows.count);
    result.routing.resize(rows.count, static_cast<Index>(routing.experts(0).size()));
    for (Index t = 0; t < rows.count; ++t) {
      std::ranges::copy(routing.experts(rows.first + t), result.routing.experts(t).begin());
      std::ranges::copy(routing.weights(rows.first + t), result.routing.weights(t).begin());
    }
    if (!valid.empty()) result.valid.assign(valid.begin() + rows.first, valid.begin() + rows.first + rows.count);
    return result;
  }
  Step step() const {
    Step step;
    step.valid = valid;
    return step;
  }
};

/// The mean of the losses of the parts, weighted by valid tokens, and the gradient of it.
template <class S>
struct MeanOverParts {
  double loss = 0;
  moe::Matrix<S> gradient;

  MeanOverParts(const Batch<S>& batch, const std::vector<Part>& parts, bool global)
      : gradient(moe::Matrix<S>::Zero(batch.p.rows(), batch.p.cols())) {
    std::vector<double> counts(static_cast<std::size_t>(batch.p.cols()));
    for (const Part& rows : parts) {
      const Batch<S> part = batch.part(rows);
      const auto own = moe::count_choices(part.routing, part.p.cols(), part.step());
      for (std::size_t e = 0; e < counts.size(); ++e) counts[e] += own[e];
    }
    const auto all = static_cast<double>(batch.step().num_valid(batch.p.rows()));
    for (const Part& rows : parts) {
      const Batch<S> part = batch.part(rows);
      const double share = static_cast<double>(part.step().num_valid(rows.count)) / all;
      LoadBalancingOptions options;
      if (global) options.counts = counts;
      RoutingGradient<S> own;
      loss += share * moe::load_balancing_loss<S>(part.p, part.routing, part.step(), share, own, options);
      gradient.middleRows(rows.first, rows.count) = own.probability;
    }
  }
};

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

TEMPLATE_TEST_CASE("load_balancing_loss: with global counts the mean over parts is the loss of the whole", "[loss]",
                   float, double) {
  const auto parts = GENERATE(std::vector<Part>{{0, 64}, {64, 64}}, std::vector<Part>{{0, 13}, {13, 100}, {113, 15}});
  const bool padded = GENERATE(false, true);
  const Batch<TestType> batch(test::random_logits<TestType>(128, 8), 2,
                              padded ? test::every_nth_padding(128, 5) : std::vector<std::uint8_t>());
  RoutingGradient<TestType> whole;
  const double expected = moe::load_balancing_loss<TestType>(batch.p, batch.routing, batch.step(), 1, whole);
  const MeanOverParts<TestType> global(batch, parts, true), local(batch, parts, false);
  // 128 probabilities summed in double in another order; the gradients are one product each, then rounded to S.
  CHECK_THAT(global.loss, WithinAbs(expected, 1e-13));
  CHECK(test::largest(moe::Matrix<TestType>(global.gradient - whole.probability)) <
        4 * std::numeric_limits<TestType>::epsilon());
  CHECK(std::abs(local.loss - expected) > 1e-3);  // what the counts are for
}

TEST_CASE("load_balancing_loss: counts of the routing itself change no bit", "[loss]") {
  const auto options = GENERATE(LoadBalancingOptions{}, kFirstChoices, kServedChoices);
  Batch<float> batch(test::random_logits<float>(40, 6), 3, test::every_nth_padding(40, 4));
  batch.routing.drop(7, moe::kDroppedByCapacity);
  LoadBalancingOptions counted = options;
  const auto counts = moe::count_choices(batch.routing, 6, batch.step(), options);
  counted.counts = counts;
  RoutingGradient<float> gradient, counted_gradient;
  const double loss = moe::load_balancing_loss<float>(batch.p, batch.routing, batch.step(), 0.1, gradient, options);
  CHECK(moe::load_balancing_loss<float>(batch.p, batch.routing, batch.step(), 0.1, counted_gradient, counted) == loss);
  CHECK(counted_gradient.probability == gradient.probability);
}

TEST_CASE("load_balancing_loss: with counts the gradient equals central differences", "[loss]") {
  Batch<double> batch(test::random_logits<double>(17, 5), 2, test::every_nth_padding(17, 4));
  const std::vector<double> counts{3, 0, 40, 1, 7.5};  // shares and moving averages serve as well
  RoutingGradient<double> gradient;
  moe::load_balancing_loss(batch.p, batch.routing, batch.step(), 0.3, gradient, {.counts = counts});
  const auto loss = [&] { return 0.3 * value(batch.p, batch.routing, {.counts = counts}, batch.step()); };
  REQUIRE(test::gradient_error(loss, batch.p, gradient.probability) < 1e-6);
}

TEST_CASE("load_balancing_loss: a part without valid tokens adds nothing to a global batch", "[loss]") {
  const Batch<double> batch(test::random_logits<double>(3, 2), 1, {0, 0, 0});
  const std::vector<double> counts{5, 3};
  RoutingGradient<double> gradient;
  CHECK(moe::load_balancing_loss(batch.p, batch.routing, batch.step(), 1, gradient, {.counts = counts}) == 0);
  CHECK(gradient.probability.isZero(0));
  CHECK(value(moe::Matrix<double>(0, 2), moe::Routing<double>{}, {.counts = counts}) == 0);
}

TEST_CASE("count_choices: counts what the options say, by valid tokens", "[loss]") {
  auto routing = test::routing_of({{0, 2}, {2, 1}, {1}, {}});
  routing.drop(1, moe::kDroppedByCapacity);
  const std::vector<std::uint8_t> valid{1, 1, 0, 1};
  Step step;
  step.valid = valid;
  CHECK(moe::count_choices(routing, 3, Step{}) == std::vector<double>{1, 2, 2});
  CHECK(moe::count_choices(routing, 3, step) == std::vector<double>{1, 1, 2});
  CHECK(moe::count_choices(routing, 3, step, kFirstChoices) == std::vector<double>{1, 0, 1});
  CHECK(moe::count_choices(routing, 3, step, kServedChoices) == std::vector<double>{1, 1, 1});
  CHECK(moe::count_choices(moe::Routing<double>{}, 3, Step{}) == std::vector<double>{0, 0, 0});
  CHECK_THROWS_AS(moe::count_choices(routing, 2, Step{}), std::invalid_argument);
}

TEST_CASE("load_balancing_loss: counts that cannot be are errors", "[loss][error]") {
  const moe::Matrix<double> p = moe::Matrix<double>::Constant(2, 2, 0.5);
  const auto routing = test::routing_of({{0}, {1}});
  const auto complaint = [&](const std::vector<double>& counts) {
    return value(p, routing, LoadBalancingOptions{.counts = counts});
  };
  CHECK_THROWS_WITH(complaint({1, 2, 3}),
                    "moe::load_balancing_loss: counts has 3 entries, expected 0 or num_experts = 2");
  CHECK_THROWS_WITH(complaint({1, -2}), "moe::load_balancing_loss: count of expert 1 is -2, expected 0 to 2^53");
  CHECK_THROWS_WITH(complaint({std::nan(""), 2}),
                    "moe::load_balancing_loss: count of expert 0 is nan, expected 0 to 2^53");
  CHECK_THROWS_AS(complaint({std::numeric_limits<double>::infinity(), 2}), std::invalid_argument);
  CHECK_THROWS_WITH(complaint({0, 0}),
                    "moe::load_balancing_loss: counts add up to 0, expected a positive number, as this routing has "
                    "choices");
  CHECK_THROWS_AS(complaint({1e-320, 1e-320}), std::invalid_argument);  // 1 / sum is infinite
  CHECK(value(p, test::routing_of({{}, {}}), LoadBalancingOptions{.counts = std::vector<double>{0, 0}}) == 0);
}
