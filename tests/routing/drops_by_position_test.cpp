// SPDX-License-Identifier: MIT
#include "moe/routing/balance/drops_by_position.hpp"

#include "moe/routing/capacity/capacity.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::drops_by_position;
using moe::Index;
using moe::ServiceOrder;
using moe::Step;

namespace {

/// `num_tokens` that all want expert 0, which has `capacity` places.
moe::Routing<double> crowded(Index num_tokens, Index capacity, ServiceOrder order, const Step& step) {
  auto routing = test::routing_of(std::vector<std::vector<Index>>(static_cast<std::size_t>(num_tokens), {0}));
  moe::apply_capacity({.factor = 0, .min_capacity = capacity, .order = order}, 1, step, routing);
  return routing;
}

}  // namespace

TEST_CASE("drops_by_position: choices by their places in sequences of any length, padding left out", "[statistics]") {
  // Rows 0 to 6: sequences 5, 9, 5, padding, 5, 9, 5. Sequence 5 has places 0 to 3, sequence 9 places 0 and 1.
  auto routing = test::routing_of({{0, 1}, {0, 1}, {0, 1}, {0, 1}, {0}, {0, 1}, {}});
  routing.drop(0, moe::kDroppedByCapacity);  // row 0, the first half of its sequence
  routing.drop(6, moe::kDroppedByGate);      // padding
  routing.drop(8, moe::kDroppedByCapacity);  // row 4, the second half
  routing.drop(9, moe::kDroppedByGate);      // row 5, the second half
  const std::vector<std::int64_t> group{5, 9, 5, 5, 5, 9, 5};
  const std::vector<std::uint8_t> valid{1, 1, 1, 0, 1, 1, 1};
  Step step;
  step.group_id = group;
  step.valid = valid;
  CHECK(drops_by_position(routing, step, 2) == std::vector<double>{1. / 6, 2. / 3});
  CHECK(drops_by_position(routing, step, 1) == std::vector<double>{3. / 9});
  // Of four parts, the short sequence has its tokens in the first and the third; the last one has no choices.
  CHECK(drops_by_position(routing, step, 4) == std::vector<double>{1. / 4, 0, 2. / 3, 0});
}

TEST_CASE("drops_by_position: service by position drops the end, random service every place alike", "[statistics]") {
  constexpr Index kTokens = 64, kPlaces = 48, kUpdates = 500;
  const auto last = drops_by_position(crowded(kTokens, kPlaces, ServiceOrder::ByPosition, Step::train(0)), Step{}, 4);
  CHECK(last == std::vector<double>{0, 0, 0, 1});
  std::vector<double> mean(4);
  for (std::uint64_t update = 0; update < kUpdates; ++update) {
    const auto routing = crowded(kTokens, kPlaces, ServiceOrder::Random, Step::train(update, 1));
    const auto rates = drops_by_position(routing, Step{}, 4);
    for (std::size_t b = 0; b < 4; ++b) mean[b] += rates[b] / kUpdates;
  }
  // A part has 16 of 64 tokens, of which the number dropped is hypergeometric: variance n p q (N - n) / (N - 1).
  const double error = std::sqrt(16 * 0.25 * 0.75 * 48 / 63 / kUpdates) / 16;
  for (const double rate : mean) CHECK(std::abs(rate - 0.25) < 3 * error);  // fixed seed: cannot flicker
}

TEST_CASE("random service: exactly the capacity is kept, each token with its share of the draws", "[capacity]") {
  constexpr Index kTokens = 10, kPlaces = 4, kUpdates = 20000;
  std::vector<double> kept(kTokens);
  for (std::uint64_t update = 0; update < kUpdates; ++update) {
    const auto routing = crowded(kTokens, kPlaces, ServiceOrder::Random, Step::train(update, 2));
    Index served = 0;
    for (std::size_t t = 0; t < kept.size(); ++t)
      if (!routing.dropped()[t]) kept[t] += 1, ++served;
    if (served != kPlaces) FAIL("update " << update << " keeps " << served);
  }
  const double error = std::sqrt(0.4 * 0.6 / kUpdates);
  for (const double count : kept) CHECK(std::abs(count / kUpdates - 0.4) < 3 * error);  // fixed seed: cannot flicker
}

TEST_CASE("drops_by_position: nothing to count is 0, and what does not fit an error", "[statistics][error]") {
  CHECK(drops_by_position(moe::Routing<float>{}, Step{}, 3) == std::vector<double>(3));
  const auto routing = test::routing_of({{0}, {1}});
  CHECK_THROWS_WITH(drops_by_position(routing, Step{}, 0), "moe::drops_by_position: bins is 0, expected at least 1");
  const std::vector<std::uint8_t> valid(3, 1);
  Step step;
  step.valid = valid;
  CHECK_THROWS_WITH(drops_by_position(routing, step, 3),
                    "moe::drops_by_position: step.valid has 3 entries, expected 0 or num_tokens = 2");
}
