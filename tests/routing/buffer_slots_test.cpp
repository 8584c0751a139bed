// SPDX-License-Identifier: MIT
#include "moe/routing/capacity/buffer_slots.hpp"

#include <map>

#include "moe/routing/capacity/capacity.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::CapacityOptions;
using moe::CapacityScope;
using moe::Index;
using moe::ServiceOrder;
using moe::Step;

namespace {

const ServiceOrder kOrders[] = {ServiceOrder::ByPosition, ServiceOrder::ByScore, ServiceOrder::Random,
                                ServiceOrder::ByToken, ServiceOrder::ByWeight};

struct Choice {
  Index token, slot, assignment;
};

/// Whether a is served before b, by the definition of each order.
bool before(ServiceOrder order, const moe::Routing<double>& routing, const Step& step, const Choice& a,
            const Choice& b) {
  const auto key = [&](const Choice& c) {
    const auto weights = routing.weights(c.token);
    switch (order) {
      case ServiceOrder::ByScore:
        return -*std::max_element(weights.begin(), weights.end());
      case ServiceOrder::Random:
        return step.random(moe::Purpose::Capacity).uniform(step.id(c.token));
      case ServiceOrder::ByWeight:
        return -routing.weights()[static_cast<std::size_t>(c.assignment)];
      default:
        return 0.0;
    }
  };
  const bool rounds = order != ServiceOrder::ByToken && order != ServiceOrder::ByWeight;
  return std::tuple(rounds ? a.slot : 0, key(a), a.assignment) < std::tuple(rounds ? b.slot : 0, key(b), b.assignment);
}

/// The number of choices of the same expert, and group, that are served before.
std::vector<Index> expected_slots(const CapacityOptions& options, const Step& step,
                                  const moe::Routing<double>& routing) {
  std::vector<Choice> choices;
  std::vector<Index> slots(routing.experts().size(), -1);
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (Index a = routing.begin(t); a < routing.end(t) && step.is_valid(t); ++a)
      if (!routing.dropped()[static_cast<std::size_t>(a)]) choices.push_back({t, a - routing.begin(t), a});
  for (const Choice& own : choices) {
    Index count = 0;
    for (const Choice& other : choices) {
      const bool competes = options.scope == CapacityScope::Batch || step.group(own.token) == step.group(other.token);
      const auto expert_of = [&](const Choice& c) { return routing.experts()[static_cast<std::size_t>(c.assignment)]; };
      if (competes && expert_of(own) == expert_of(other)) count += before(options.order, routing, step, other, own);
    }
    slots[static_cast<std::size_t>(own.assignment)] = count;
  }
  return slots;
}

moe::Routing<double> with_weights(moe::Routing<double> routing) {
  const moe::RandomField random(moe::Purpose::User, 11);
  for (Index a = 0; a < routing.num_assignments(); ++a)
    routing.weights()[static_cast<std::size_t>(a)] = static_cast<double>(random.below(9, a)) / 8;  // with ties
  return routing;
}

}  // namespace

TEST_CASE("buffer_slots: what is served before, of every order and scope", "[capacity]") {
  const auto order = GENERATE(from_range(std::begin(kOrders), std::end(kOrders)));
  const auto scope = GENERATE(CapacityScope::Batch, CapacityScope::Group);
  CAPTURE(static_cast<int>(order), static_cast<int>(scope));
  const CapacityOptions options = {.order = order, .scope = scope};
  auto routing = with_weights(test::random_ragged_routing(70, 6));
  routing.drop(3, moe::kDroppedByGate);
  std::vector<std::int64_t> group;
  for (Index t = 0; t < 70; ++t) group.push_back(t * t % 4);
  const auto valid = test::every_nth_padding(70, 5);
  Step step = Step::train(7);
  step.group_id = group;
  CHECK(moe::buffer_slots(options, 6, step, routing) == expected_slots(options, step, routing));
  step.valid = valid;
  CHECK(moe::buffer_slots(options, 6, step, routing) == expected_slots(options, step, routing));
}

TEST_CASE("buffer_slots: apply_capacity keeps what has a slot below the capacity", "[capacity][property]") {
  const auto order = GENERATE(from_range(std::begin(kOrders), std::end(kOrders)));
  const auto scope = GENERATE(CapacityScope::Batch, CapacityScope::Group);
  const Index capacity = GENERATE(0, 1, 3, 8);
  const CapacityOptions options = {.factor = 0, .min_capacity = capacity, .order = order, .scope = scope};
  auto routing = with_weights(test::random_ragged_routing(60, 5));
  std::vector<std::int64_t> group;
  for (Index t = 0; t < 60; ++t) group.push_back(t % 3);
  Step step = Step::train(2);
  step.group_id = group;
  const auto slots = moe::buffer_slots(options, 5, step, routing);
  moe::apply_capacity(options, 5, step, routing);
  for (std::size_t a = 0; a < slots.size(); ++a) CHECK((routing.dropped()[a] == 0) == (slots[a] < capacity));
}

TEST_CASE("buffer_slots: groups count their tokens, those without choices too", "[capacity]") {
  // Per group of tokens: floor(1 * 4 / 2) = 2 places, though two of the four choose nothing.
  auto routing = test::routing_of({{0}, {}, {0}, {}, {0}, {0}, {0}, {0}});
  const std::vector<std::int64_t> group = {0, 0, 0, 0, 1, 1, 1, 1};
  Step step = Step::train(0);
  step.group_id = group;
  moe::apply_capacity({.factor = 1,
                       .min_capacity = 0,
                       .order = ServiceOrder::ByWeight,
                       .scope = CapacityScope::Group,
                       .load = moe::CapacityLoad::Tokens,
                       .rounding = moe::CapacityRounding::Down},
                      2, step, routing);
  CHECK(test::copy_of(routing.weights()) == std::vector<double>{1, 1, 1, 1, 0, 0});
}

TEST_CASE("buffer_slots: nothing to place, and an expert out of range", "[capacity][error]") {
  const moe::Routing<float> none;
  CHECK(moe::buffer_slots({}, 0, Step{}, none).empty());
  const auto routing = test::routing_of({{0}, {4}});
  CHECK_THROWS_WITH(moe::buffer_slots({}, 4, Step{}, routing),
                    "moe::buffer_slots: assignment 1 names expert 4, expected 0 <= expert < num_experts = 4");
}
