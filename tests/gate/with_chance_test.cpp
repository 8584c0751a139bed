// SPDX-License-Identifier: MIT
#include "moe/gate/wrap/with_chance.hpp"

#include "gate/own_gate.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/grouped.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_skipping.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Step;
using moe::TopKGate;
using moe::WithChance;

TEST_CASE("drop_by_chance: keeps what the draw is below, and always the first choice", "[gate]") {
  moe::Routing<double> routing;
  routing.resize(2, 3);
  for (const Index t : {0, 1})
    for (std::size_t s = 0; s < 3; ++s) {
      routing.experts(t)[s] = static_cast<Index>(s);
      routing.weights(t)[s] = s == 0 ? 0.1 : s == 1 ? 0.2 : 0.05;
    }
  routing.drop(5, moe::kDroppedByCapacity);
  std::vector<std::pair<Index, Index>> asked;
  moe::drop_by_chance(
      0.4,
      [&](Index t, Index slot) {
        asked.emplace_back(t, slot);
        return t == 0 ? 0.49 : 0.51;  // 0.2 / 0.4 is between them
      },
      routing);
  CHECK(asked == std::vector<std::pair<Index, Index>>{{0, 1}, {0, 2}, {1, 1}});
  CHECK(std::vector<std::uint8_t>(routing.dropped().begin(), routing.dropped().end()) ==
        std::vector<std::uint8_t>{0, 0, 4, 0, 4, 2});
  CHECK(routing.weights(0)[1] == 0.2);
  CHECK(routing.weights(0)[2] == 0);
}

TEST_CASE("drop_by_chance: threshold 0 keeps all, infinity only first choices", "[gate]") {
  const auto chosen = test::routed(TopKGate{.k = 3}, test::random_logits<double>(20, 5, 1));
  auto all = chosen, first = chosen;
  moe::drop_by_chance(
      0, [](Index, Index) { return 0.999; }, all);
  CHECK(test::equal_bits(all, chosen));
  moe::drop_by_chance(
      INFINITY, [](Index, Index) { return 0.0; }, first);
  for (Index t = 0; t < 20; ++t)
    for (std::size_t s = 0; s < 3; ++s) CHECK((first.dropped(t)[s] != 0) == (s > 0));
}

TEST_CASE("WithChance: a second choice is kept with probability weight over threshold", "[gate]") {
  constexpr Index kTokens = 20000;
  moe::Matrix<double> logits(kTokens, 2);
  for (Index t = 0; t < kTokens; ++t) logits.row(t) << std::log(0.8), std::log(0.2);  // weights 0.8 and 0.2
  const WithChance<TopKGate> gate{.gate = {.k = 2}, .threshold = 0.5};
  const auto routing = test::routed(gate, logits, Step::train(1, 2));
  double kept = 0;
  for (Index t = 0; t < kTokens; ++t) kept += routing.dropped(t)[1] ? 0 : 1;
  CHECK(std::abs(kept / kTokens - 0.4) < 5 * std::sqrt(0.4 * 0.6 / kTokens));  // 5 standard errors
}

TEST_CASE("WithChance: at inference it is its gate, unless it has a threshold there", "[gate]") {
  const auto logits = test::random_logits<double>(30, 6, 2);
  WithChance<TopKGate> gate{.gate = {.k = 3}};
  CHECK(test::equal_bits(test::routed(gate, logits), test::routed(gate.gate, logits)));
  gate.evaluation_threshold = INFINITY;
  const auto routing = test::routed(gate, logits);
  for (Index t = 0; t < 30; ++t)
    for (std::size_t s = 0; s < 3; ++s) CHECK((routing.dropped(t)[s] != 0) == (s > 0));
}

TEST_CASE("WithChance: gradients agree with central differences, alone and limited", "[gate]") {
  const auto logits = test::random_logits<double>(12, 6, 3);
  const WithChance<TopKGate> gate{.gate = {.k = 3, .normalise = moe::Normalise::Off}, .threshold = 0.4};
  const Step step = Step::train(2, 3);
  const auto routing = test::routed(gate, logits, step);
  CHECK(std::ranges::count(routing.dropped(), moe::kDroppedByChance) > 0);
  CHECK(test::gate_gradient_error(gate, logits, step) < 1e-6);
  const moe::WithCapacity<WithChance<TopKGate>> limited{
      .gate = gate, .capacity = {.factor = 0.6, .min_capacity = 1, .weights = moe::KeptWeights::Renormalised}};
  CHECK(test::gate_gradient_error(limited, logits, step) < 1e-6);
}

TEST_CASE("WithChance: replay and gradient around what weighs by its own drops", "[gate]") {
  const auto logits = test::random_logits<double>(40, 6, 4);
  const Step step = Step::train(2, 3);
  const auto check = [&]<class G>(const G& inner) {
    const WithChance<G> gate{.gate = inner, .threshold = 0.5};
    const auto routing = test::routed(gate, logits, step);
    CHECK(std::ranges::count(routing.dropped(), moe::kDroppedByChance) > 5);
    CHECK(std::ranges::count_if(routing.dropped(), [](int by) { return by != 0 && by != moe::kDroppedByChance; }) > 5);
    auto replayed = routing;
    std::ranges::fill(replayed.weights(), NAN);
    gate.replay(logits, step, replayed);
    CHECK(test::equal_bits(routing, replayed));
    CHECK(test::gate_gradient_error(gate, logits, step) < 1e-6);
  };
  const TopKGate raw{.k = 4, .normalise = moe::Normalise::Off};
  const moe::CapacityOptions capacity{.factor = 0.7, .min_capacity = 1, .weights = moe::KeptWeights::Renormalised};
  const moe::WithSkipping<TopKGate> skipping{.gate = raw, .min_ratio = 0.3, .skipped = moe::SkippedWeight::Shared};
  const moe::WithCapacity<TopKGate> limited{.gate = raw, .capacity = capacity};
  check(skipping);
  check(limited);
  check(moe::WithCapacity<moe::WithSkipping<TopKGate>>{.gate = skipping, .capacity = capacity});
  check(test::OwnGate{.threshold = 0.1, .normalises = true, .drops_itself = true});
}

TEST_CASE("Adaptors: one of a kind is seen through others, so that no second one goes around", "[gate]") {
  using moe::GroupedGate, moe::StraightThrough, moe::WithCapacity, moe::WithSkipping;
  namespace detail = moe::detail;
  STATIC_REQUIRE(detail::kHasChance<WithCapacity<GroupedGate<WithChance<TopKGate>>>>);
  STATIC_REQUIRE_FALSE(detail::kHasChance<WithCapacity<GroupedGate<TopKGate>>>);
  STATIC_REQUIRE(detail::kHasCapacity<WithChance<WithSkipping<WithCapacity<TopKGate>>>>);
  STATIC_REQUIRE(detail::kHasCapacity<GroupedGate<WithCapacity<TopKGate>>>);
  STATIC_REQUIRE_FALSE(detail::kHasCapacity<WithChance<WithSkipping<TopKGate>>>);
  STATIC_REQUIRE(detail::kHasSkipping<StraightThrough<WithCapacity<WithSkipping<TopKGate>>>>);
  STATIC_REQUIRE_FALSE(detail::kHasSkipping<StraightThrough<WithCapacity<TopKGate>>>);
}

TEST_CASE("WithChance: a dweight of another batch is an error", "[gate][error]") {
  const WithChance<TopKGate> gate;
  const auto logits = test::random_logits<double>(3, 4, 1);
  const auto routing = test::routed(gate, logits);
  moe::Matrix<double> dlogits;
  WithChance<TopKGate> gradient;
  CHECK_THROWS_WITH(
      gate.backward(logits, Step{}, routing, std::vector<double>(5), moe::Matrix<double>(), dlogits, gradient),
      "moe::WithChance::backward: dweight has 5 entries, expected num_assignments = 6");
}

TEST_CASE("WithChance: thresholds that are no numbers of at least 0 are refused", "[gate][error]") {
  using Gate = WithChance<TopKGate>;
  CHECK(test::message_of([] { Gate{.threshold = -1}.validate(4); }) ==
        "moe::WithChance: threshold is -1, expected at least 0");
  CHECK(test::message_of([] { Gate{.evaluation_threshold = NAN}.validate(4); }) ==
        "moe::WithChance: evaluation_threshold is nan, expected at least 0");
  CHECK_THROWS_AS(Gate{.gate = {.k = 5}}.validate(4), std::invalid_argument);
}
