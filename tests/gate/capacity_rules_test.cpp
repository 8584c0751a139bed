// SPDX-License-Identifier: MIT
// The capacity rules of published models: Switch (per sequence) and NLLB (constants, floors, scaled evaluation).
#include <map>

#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::CapacityScope;
using moe::Index;
using moe::KeptWeights;
using moe::ServiceOrder;
using moe::Step;
using Gate = moe::WithCapacity<moe::TopKGate>;

namespace {

Gate gate_of(Index k, moe::CapacityOptions capacity) { return {{.k = k, .normalise = moe::Normalise::Off}, capacity}; }

/// dropped flags by counting, token after token and choice-major, in each group; order: tokens of the whole batch.
std::vector<bool> expected_drops(const moe::Routing<double>& all, const std::vector<Index>& order,
                                 const std::vector<std::int64_t>& group, Index capacity) {
  std::vector<bool> dropped(all.weights().size());
  std::map<std::pair<std::int64_t, Index>, Index> count;
  const auto k = static_cast<Index>(all.experts(0).size());
  for (Index slot = 0; slot < k; ++slot)
    for (const Index t : order) {
      const auto a = static_cast<std::size_t>(t * k + slot);
      dropped[a] = count[{group[static_cast<std::size_t>(t)], all.experts()[a]}]++ >= capacity;
    }
  return dropped;
}

std::vector<bool> drops(const moe::Routing<double>& routing) {
  return {routing.dropped().begin(), routing.dropped().end()};
}

}  // namespace

TEST_CASE("CapacityScope::Group: every group of tokens competes for places of its own", "[gate]") {
  const std::vector<std::int64_t> group = {7, 7, 3, 7, 3, 3, 7, 3, 7, 7, 3, 7, 9, 3};
  const auto logits = test::random_logits<double>(14, 3, 41);
  Step step = Step::train(0);
  step.group_id = group;
  const auto gate = gate_of(2, {.factor = 0, .min_capacity = 2, .scope = CapacityScope::Group});
  std::vector<Index> order(14);
  for (Index t = 0; t < 14; ++t) order[static_cast<std::size_t>(t)] = t;
  const auto all = test::routed(gate.gate, logits);
  CHECK(drops(test::routed(gate, logits, step)) == expected_drops(all, order, group, 2));

  auto by_score = gate;
  by_score.capacity.order = ServiceOrder::ByScore;
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return all.weights(a)[0] > all.weights(b)[0]; });
  CHECK(drops(test::routed(by_score, logits, step)) == expected_drops(all, order, group, 2));
}

TEST_CASE("CapacityScope::Group: a factor counts the choices of the group", "[gate]") {
  const auto logits = test::row<double>({1, 0}).replicate(6, 1).eval();  // all to expert 0
  const std::vector<std::int64_t> group = {0, 0, 0, 0, 1, 1};
  Step step = Step::train(0);
  step.group_id = group;
  const auto gate = gate_of(1, {.factor = 1, .min_capacity = 0, .scope = CapacityScope::Group});
  const auto routing = test::routed(gate, moe::Matrix<double>(logits), step);
  CHECK(drops(routing) == std::vector<bool>{false, false, true, true, false, true});  // 4 / 2 and 2 / 2 places
}

TEST_CASE("CapacityOptions: inference may have a minimum of its own", "[gate]") {
  const auto logits = test::row<double>({1, 0}).replicate(6, 1).eval();
  const auto gate = gate_of(1, {.factor = 0, .evaluation_factor = 0, .min_capacity = 4, .evaluation_min_capacity = 1});
  const auto kept = [&](const Step& step) {
    const auto flags = drops(test::routed(gate, moe::Matrix<double>(logits), step));
    return std::count(flags.begin(), flags.end(), false);
  };
  CHECK(kept(Step::train(0)) == 4);
  CHECK(kept(Step{}) == 1);
}

TEST_CASE("KeptWeights: the sum before drops, the sum after, and the floor of either", "[gate]") {
  // Both tokens choose expert 0, then 1; expert 0 has one place.
  const auto logits = test::row<double>({1, 0, -1}).replicate(2, 1).eval();
  const double p = std::exp(1.0) / (std::exp(1.0) + 1 + std::exp(-1.0)), q = p / std::exp(1.0);
  const auto weights = [&](KeptWeights kept, double floor) {
    const auto gate = gate_of(2, {.factor = 0, .min_capacity = 1, .weights = kept, .floor = floor});
    const auto routing = test::routed(gate, moe::Matrix<double>(logits), Step::train(0));
    return std::vector<double>(routing.weights().begin(), routing.weights().end());
  };
  const auto check = [](const std::vector<double>& found, const std::vector<double>& expected) {
    for (std::size_t a = 0; a < expected.size(); ++a)
      CHECK_THAT(found[a], Catch::Matchers::WithinAbs(expected[a], 1e-14));
  };
  check(weights(KeptWeights::NormalisedFirst, 0), {p / (p + q), q / (p + q), 0, 0});
  check(weights(KeptWeights::Renormalised, 0), {p / (p + q), q / (p + q), 0, 0});
  check(weights(KeptWeights::NormalisedFirst, 2), {p / 2, q / 2, 0, 0});
  check(weights(KeptWeights::Renormalised, 2), {p / 2, q / 2, 0, 0});
}

TEST_CASE("CapacityOptions: weights are scaled in evaluation, gradients with them", "[gate]") {
  const auto logits = test::random_logits<double>(12, 4, 43);
  for (const KeptWeights kept : {KeptWeights::AsTheyAre, KeptWeights::Renormalised, KeptWeights::NormalisedFirst})
    for (const double floor : {0.0, 0.45}) {
      const auto gate = gate_of(2, {.factor = 0,
                                    .evaluation_factor = 0,
                                    .min_capacity = 4,
                                    .order = ServiceOrder::ByScore,
                                    .weights = kept,
                                    .floor = floor,
                                    .evaluation_scale = 0.8});
      CAPTURE(static_cast<int>(kept), floor);
      const auto trained = test::routed(gate, logits, Step::train(0)), evaluated = test::routed(gate, logits);
      const auto flags = drops(evaluated);
      REQUIRE(std::count(flags.begin(), flags.end(), true) > 3);
      CHECK(test::dense(evaluated, 4).isApprox(0.8 * test::dense(trained, 4), 1e-14));
      CHECK(test::gate_gradient_error(gate, logits) < 1e-6);
      CHECK(test::gate_gradient_error(gate, logits, Step::train(0)) < 1e-6);
    }
}

TEST_CASE("CapacityOptions: a negative floor and an infinite scale are errors", "[gate][error]") {
  CHECK_THROWS_AS((moe::CapacityOptions{.floor = -1}.validate()), std::invalid_argument);
  CHECK_THROWS_AS((moe::CapacityOptions{.evaluation_scale = INFINITY}.validate()), std::invalid_argument);
}
