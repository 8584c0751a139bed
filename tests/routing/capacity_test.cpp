// SPDX-License-Identifier: MIT
#include "moe/routing/capacity/capacity.hpp"

#include "moe/routing/balance/statistics.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using moe::CapacityOptions;
using moe::Index;
using moe::KeptWeights;
using moe::ServiceOrder;
using moe::Step;

namespace {

/// Exactly `capacity` choices per expert, in training.
CapacityOptions exactly(Index capacity, ServiceOrder order = ServiceOrder::ByPosition) {
  return {.factor = 0, .min_capacity = capacity, .order = order};
}

template <class S>
std::vector<bool> kept(const moe::Routing<S>& routing) {
  std::vector<bool> result;
  for (const std::uint8_t dropped : routing.dropped()) result.push_back(dropped == 0);
  return result;
}

const ServiceOrder kOrders[] = {ServiceOrder::ByPosition, ServiceOrder::ByScore, ServiceOrder::Random,
                                ServiceOrder::ByToken, ServiceOrder::ByWeight};

}  // namespace

TEST_CASE("apply_capacity: by position, first choices come before all second choices", "[capacity]") {
  // Expert 0 is the second choice of token 0 and the first of tokens 1 and 2, which take both places.
  auto routing = test::routing_of({{1, 0}, {0, 1}, {0, 1}});
  moe::apply_capacity(exactly(2), 2, Step::train(0), routing);
  CHECK(kept(routing) == std::vector<bool>{true, false, true, true, true, false});
  CHECK(test::copy_of(routing.weights()) == std::vector<double>{1, 0, 1, 1, 1, 0});
  CHECK(test::copy_of(routing.experts()) == std::vector<Index>{1, 0, 0, 1, 0, 1});
}

TEST_CASE("apply_capacity: by score, tokens with the largest weight come first, ties by position", "[capacity]") {
  auto routing = test::routing_of({{0, 1}, {0, 1}, {0, 1}, {0, 1}});
  const std::vector<double> weights = {.3, .2, .5, .1, .4, .45, .1, .5};  // largest: .3 .5 .45 .5
  std::copy(weights.begin(), weights.end(), routing.weights().begin());
  moe::apply_capacity(exactly(2, ServiceOrder::ByScore), 2, Step::train(0), routing);
  CHECK(kept(routing) == std::vector<bool>{false, false, true, true, false, false, true, true});
  // One place: tokens 1 and 3 tie at .5, so token 1 has it.
  auto one = test::routing_of({{0, 1}, {0, 1}, {0, 1}, {0, 1}});
  std::copy(weights.begin(), weights.end(), one.weights().begin());
  moe::apply_capacity(exactly(1, ServiceOrder::ByScore), 2, Step::train(0), one);
  CHECK(kept(one) == std::vector<bool>{false, false, true, true, false, false, false, false});
}

TEST_CASE("apply_capacity: by token, all choices of a token come before those of the next", "[capacity]") {
  auto routing = test::routing_of({{1, 0}, {0, 1}, {0, 1}});
  moe::apply_capacity(exactly(2, ServiceOrder::ByToken), 2, Step::train(0), routing);
  CHECK(kept(routing) == std::vector<bool>{true, true, true, true, false, false});
}

TEST_CASE("apply_capacity: by weight, experts keep their heaviest choices, ties by position, NaN last", "[capacity]") {
  const std::vector<double> weights = {.1, .9, .5, .5, .5, .5, .7, std::nan("")};
  auto routing = test::routing_of({{0, 1}, {0, 1}, {0, 1}, {0, 1}});
  std::copy(weights.begin(), weights.end(), routing.weights().begin());
  moe::apply_capacity(exactly(2, ServiceOrder::ByWeight), 2, Step::train(0), routing);
  CHECK(kept(routing) == std::vector<bool>{false, true, true, true, false, false, true, false});
}

TEST_CASE("apply_capacity: by score, NaN weights are served last and harm no one", "[capacity]") {
  auto routing = test::routing_of({{0}, {0}, {0}});
  const std::vector<double> weights = {std::nan(""), .1, .2};
  std::copy(weights.begin(), weights.end(), routing.weights().begin());
  moe::apply_capacity(exactly(2, ServiceOrder::ByScore), 1, Step::train(0), routing);
  CHECK(kept(routing) == std::vector<bool>{false, true, true});
}

TEST_CASE("apply_capacity: no expert exceeds its capacity, and none with room drops", "[capacity][property]") {
  const auto order = GENERATE(from_range(std::begin(kOrders), std::end(kOrders)));
  const Index capacity = GENERATE(0, 1, 7, 30);
  CAPTURE(static_cast<int>(order), capacity);
  auto routing = test::random_ragged_routing(80, 9);
  const auto wanted = moe::tokens_per_expert(routing, 9);
  moe::apply_capacity(exactly(capacity, order), 9, Step::train(0), routing);
  const auto served = moe::tokens_per_expert(routing, 9);
  for (std::size_t e = 0; e < 9; ++e) CHECK(served[e] == std::min(capacity, wanted[e]));
  for (std::size_t a = 0; a < routing.weights().size(); ++a)
    CHECK((routing.dropped()[a] == moe::kDroppedByCapacity) == (routing.weights()[a] == 0));
}

TEST_CASE("apply_capacity: inference drops nothing by default", "[capacity]") {
  auto routing = test::routing_of(std::vector<std::vector<Index>>(100, {0}));
  moe::apply_capacity({.factor = 1}, 8, Step{}, routing);
  CHECK(moe::drop_rate(routing) == 0);
  moe::apply_capacity({.factor = 1}, 8, Step::train(0), routing);
  CHECK(moe::drop_rate(routing) == 0.87);  // 13 = ceil(100 / 8) stay
}

TEST_CASE("apply_capacity: random order follows token ids, not positions", "[capacity][property]") {
  const Index num_tokens = 60;
  std::vector<std::int64_t> id(static_cast<std::size_t>(num_tokens)), reversed(id.size());
  for (std::size_t t = 0; t < id.size(); ++t) id[t] = reversed[id.size() - 1 - t] = 1000 + static_cast<std::int64_t>(t);
  const auto keeps = [&](std::span<const std::int64_t> token_id, std::uint64_t update) {
    auto routing = test::routing_of(std::vector<std::vector<Index>>(id.size(), {0}));
    Step step = Step::train(update);
    step.token_id = token_id;
    moe::apply_capacity(exactly(20, ServiceOrder::Random), 1, step, routing);
    return kept(routing);
  };
  auto mirrored = keeps(reversed, 1);
  std::reverse(mirrored.begin(), mirrored.end());
  CHECK(keeps(id, 1) == mirrored);
  CHECK(keeps(id, 1) == keeps(id, 1));
  CHECK(keeps(id, 1) != keeps(id, 2));
}

TEST_CASE("apply_capacity: random order keeps every token equally often", "[capacity][property]") {
  constexpr Index kUpdates = 4000, kTokens = 10, kPlaces = 3;
  std::vector<double> count(kTokens);
  for (std::uint64_t update = 0; update < kUpdates; ++update) {
    auto routing = test::routing_of(std::vector<std::vector<Index>>(kTokens, {0}));
    moe::apply_capacity(exactly(kPlaces, ServiceOrder::Random), 1, Step::train(update, 5), routing);
    for (std::size_t t = 0; t < kTokens; ++t) count[t] += routing.dropped()[t] ? 0 : 1;
  }
  const double expected = kUpdates * 0.3, deviation = std::sqrt(kUpdates * 0.3 * 0.7);
  for (const double c : count) REQUIRE_THAT(c, WithinAbs(expected, 4 * deviation));  // fixed seed: cannot flicker
}

TEST_CASE("apply_capacity: a uniform random top-1 drops the binomial share", "[capacity][property]") {
  // E[share] = num_experts E[max(0, n - C)] / num_tokens with n ~ Binomial(num_tokens, 1 / num_experts).
  constexpr Index kTokens = 256, kExperts = 8, kCapacity = kTokens / kExperts, kTrials = 400;
  double expected = 0, log_mass = kTokens * std::log1p(-1.0 / kExperts);
  for (Index n = 0; n <= kTokens; ++n) {
    expected += kExperts * std::exp(log_mass) * static_cast<double>(std::max<Index>(0, n - kCapacity)) / kTokens;
    log_mass += std::log(static_cast<double>(kTokens - n) / static_cast<double>(n + 1) / (kExperts - 1));
  }
  double sum = 0, squares = 0;
  for (std::uint64_t trial = 0; trial < kTrials; ++trial) {
    const auto random = Step::train(trial).random(moe::Purpose::User);
    std::vector<std::vector<Index>> experts;
    for (Index t = 0; t < kTokens; ++t) experts.push_back({static_cast<Index>(random.below(kExperts, t))});
    auto routing = test::routing_of(experts);
    moe::apply_capacity({.factor = 1.0, .min_capacity = 0}, kExperts, Step::train(trial), routing);
    sum += moe::drop_rate(routing);
    squares += moe::drop_rate(routing) * moe::drop_rate(routing);
  }
  const double mean = sum / kTrials, variance = squares / kTrials - mean * mean;
  REQUIRE(expected > 0.04);
  REQUIRE_THAT(mean, WithinAbs(expected, 3 * std::sqrt(variance / kTrials)));
}

TEST_CASE("apply_capacity: padding takes no place, changes no capacity and is dropped", "[capacity][property]") {
  const auto order = GENERATE(from_range(std::begin(kOrders), std::end(kOrders)));
  const CapacityOptions options = {.factor = 1.0, .min_capacity = 0, .order = order};
  auto plain = test::routing_of(std::vector<std::vector<Index>>(12, {0, 1}));
  moe::apply_capacity(options, 4, Step::train(3), plain);

  auto padded = test::routing_of(std::vector<std::vector<Index>>(24, {0, 1}));
  const auto valid = test::every_nth_padding(24, 2);
  std::vector<std::int64_t> id(24);
  for (std::size_t t = 0; t < 24; ++t) id[t] = static_cast<std::int64_t>(t / 2);  // valid tokens: ids 0, 1, 2, ...
  Step step = Step::train(3);
  step.valid = valid;
  step.token_id = id;
  moe::apply_capacity(options, 4, step, padded);
  std::vector<bool> of_valid;
  for (Index t = 0; t < 24; ++t)
    for (const std::uint8_t dropped : padded.dropped(t)) {
      if (step.is_valid(t))
        of_valid.push_back(dropped == 0);
      else
        CHECK(dropped == moe::kDroppedByGate);
    }
  CHECK(of_valid == kept(plain));
  CHECK(moe::drop_rate(plain) == 0.5);
}

TEST_CASE("apply_capacity: what the gate itself dropped takes no place", "[capacity]") {
  auto routing = test::routing_of({{0}, {0}, {0}});
  routing.drop(0, moe::kDroppedByGate);
  moe::apply_capacity(exactly(2), 1, Step::train(0), routing);
  CHECK(kept(routing) == std::vector<bool>{false, true, true});
  CHECK(routing.dropped()[0] == moe::kDroppedByGate);
}

TEST_CASE("apply_capacity: renormalised weights of the kept choices sum to 1", "[capacity]") {
  auto routing = test::routing_of({{0, 1}, {0, 1}, {0}, {1}});
  const std::vector<double> weights = {.5, .25, .3, .2, .6, .7};
  std::copy(weights.begin(), weights.end(), routing.weights().begin());
  CapacityOptions options = exactly(2);
  options.weights = KeptWeights::Renormalised;
  moe::apply_capacity(options, 2, Step::train(0), routing);
  // Expert 0 serves tokens 0 and 1; expert 1 serves the first choice of token 3, then the second of token 0.
  CHECK(test::copy_of(routing.weights()) == std::vector<double>{.5 / .75, .25 / .75, 1, 0, 0, 1});
}

TEST_CASE("apply_capacity: weights are renormalised where nothing is dropped too", "[capacity]") {
  auto routing = test::routing_of({{0, 1}});
  moe::apply_capacity({.weights = KeptWeights::Renormalised}, 2, Step{}, routing);
  CHECK(test::copy_of(routing.weights()) == std::vector<double>{.5, .5});
}

TEST_CASE("apply_capacity: a token that loses all choices has weights 0, renormalised or not", "[capacity]") {
  for (const auto weights : {KeptWeights::AsTheyAre, KeptWeights::Renormalised}) {
    auto routing = test::routing_of({{0, 1}, {0, 1}});
    CapacityOptions options = exactly(0);
    options.weights = weights;
    moe::apply_capacity(options, 2, Step::train(0), routing);
    CHECK(test::copy_of(routing.weights()) == std::vector<double>(4, 0));
  }
}

TEST_CASE("apply_capacity: no tokens, no experts and empty tokens are fine", "[capacity]") {
  const auto order = GENERATE(from_range(std::begin(kOrders), std::end(kOrders)));
  moe::Routing<double> none;
  CHECK_NOTHROW(moe::apply_capacity(exactly(0, order), 4, Step::train(0), none));
  CHECK_NOTHROW(moe::apply_capacity(exactly(0, order), 0, Step::train(0), none));
  auto ragged = test::routing_of({{}, {1, 2, 0}, {}, {1}});
  moe::apply_capacity(exactly(1), 3, Step::train(0), ragged);
  CHECK(kept(ragged) == std::vector<bool>{true, true, true, false});
}

TEST_CASE("apply_capacity: an expert out of range is an error before anything changes", "[capacity][error]") {
  auto routing = test::routing_of({{0}, {0}, {2}});
  CHECK_THROWS_WITH(moe::apply_capacity(exactly(1), 2, Step::train(0), routing),
                    "moe::apply_capacity: assignment 2 names expert 2, expected 0 <= expert < num_experts = 2");
  CHECK(kept(routing) == std::vector<bool>{true, true, true});
}

TEST_CASE("apply_capacity: a warm call keeps its working memory", "[capacity]") {
  auto routing = test::routing_of(std::vector<std::vector<Index>>(50, {0, 1}));
  const auto before = routing;
  moe::apply_capacity(exactly(5, ServiceOrder::ByScore), 2, Step::train(0), routing);
  const auto* queue = routing.scratch().get<moe::detail::Service>().queue.data();
  const Index* count = routing.scratch().get<moe::detail::Service>().count.data();
  routing.resize(50, 2);
  std::copy(before.experts().begin(), before.experts().end(), routing.experts().begin());
  moe::apply_capacity(exactly(5, ServiceOrder::ByScore), 2, Step::train(0), routing);
  CHECK(routing.scratch().get<moe::detail::Service>().queue.data() == queue);
  CHECK(routing.scratch().get<moe::detail::Service>().count.data() == count);
}
