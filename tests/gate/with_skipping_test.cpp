// SPDX-License-Identifier: MIT
#include "moe/gate/wrap/with_skipping.hpp"

#include "gate/own_gate.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::SkippedWeight;
using moe::Step;
using moe::TopKGate;
using moe::WithSkipping;

namespace {

moe::Routing<double> weighed(const std::vector<std::vector<double>>& weights) {
  moe::Routing<double> routing;
  routing.resize_ragged(std::ssize(weights), [&](Index t) { return std::ssize(weights[std::size_t(t)]); });
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (std::size_t s = 0; s < routing.weights(t).size(); ++s) {
      routing.experts(t)[s] = static_cast<Index>(s);
      routing.weights(t)[s] = weights[std::size_t(t)][s];
    }
  return routing;
}

std::vector<int> dropped(const moe::Routing<double>& routing) {
  return {routing.dropped().begin(), routing.dropped().end()};
}

/// Raw top-k weights, whose sum is not one.
TopKGate raw(Index k) { return {.k = k, .normalise = moe::Normalise::Off}; }

}  // namespace

TEST_CASE("skip_light_choices: drops what is below the ratio, but for the heaviest", "[gate]") {
  const std::vector<std::vector<double>> weights = {{0.4, 0.2, 0.19, 0.1}, {}, {0.1, 0.8}, {0.3, 0.3}};
  auto routing = weighed(weights);
  moe::skip_light_choices(0.5, 1, SkippedWeight::Lost, routing);
  CHECK(dropped(routing) == std::vector<int>{0, 0, 3, 3, 3, 0, 0, 0});  // 0.2 is no less than 0.5 * 0.4
  CHECK(routing.weights(0)[1] == 0.2);
  CHECK(routing.weights(0)[2] == 0);
  routing = weighed(weights);
  moe::skip_light_choices(0.5, 3, SkippedWeight::Lost, routing);
  CHECK(dropped(routing) == std::vector<int>{0, 0, 0, 3, 0, 0, 0, 0});
  routing = weighed(weights);
  moe::skip_light_choices(1, 1, SkippedWeight::Lost, routing);
  CHECK(dropped(routing) == std::vector<int>{0, 3, 3, 3, 3, 0, 0, 0});
  routing = weighed(weights);
  moe::skip_light_choices(0, 1, SkippedWeight::Shared, routing);
  CHECK(test::equal_bits(routing, weighed(weights)));
}

TEST_CASE("skip_light_choices: choices that were dropped before do not count, and stay as they are", "[gate]") {
  auto routing = weighed({{0.8, 0.3, 0.1, 0.2}});
  routing.drop(0, moe::kDroppedByCapacity);
  moe::skip_light_choices(0.5, 2, SkippedWeight::Lost, routing);
  CHECK(dropped(routing) == std::vector<int>{2, 0, 3, 0});  // the best of those that are left weighs 0.3
}

TEST_CASE("skip_light_choices: what is shared out leaves sum and proportions as they were", "[gate]") {
  auto routing = weighed({{0.4, 0.1, 0.3}});
  moe::skip_light_choices(0.5, 1, SkippedWeight::Shared, routing);
  CHECK(dropped(routing) == std::vector<int>{0, 3, 0});
  CHECK_THAT(routing.weights(0)[0], Catch::Matchers::WithinAbs(0.8 * 4 / 7, 1e-15));
  CHECK_THAT(routing.weights(0)[2], Catch::Matchers::WithinAbs(0.8 * 3 / 7, 1e-15));
  auto nothing = weighed({{0, 0}});
  moe::skip_light_choices(1, 1, SkippedWeight::Shared, nothing);
  CHECK(dropped(nothing) == std::vector<int>{0, 0});
  CHECK(nothing.weights(0)[0] == 0);
}

TEST_CASE("WithSkipping: its choices are those of its gate that weigh enough", "[gate]") {
  const auto logits = test::random_logits<double>(50, 9, 1);
  const auto chosen = test::routed(raw(5), logits);
  const auto routing = test::routed(WithSkipping{raw(5), 0.4}, logits);
  Index skipped = 0;
  for (Index t = 0; t < 50; ++t)
    for (std::size_t s = 0; s < 5; ++s) {
      const bool stays = chosen.weights(t)[s] >= 0.4 * chosen.weights(t)[0];
      CHECK(routing.experts(t)[s] == chosen.experts(t)[s]);
      CHECK(routing.weights(t)[s] == (stays ? chosen.weights(t)[s] : 0));
      CHECK((routing.dropped(t)[s] == 0) == stays);
      skipped += stays ? 0 : 1;
    }
  CHECK(skipped > 20);
}

TEST_CASE("WithSkipping: thousands of choices, of which many stay", "[gate]") {
  const auto logits = test::random_logits<float>(2, 5000, 4);
  const auto routing = test::routed(WithSkipping<TopKGate>{.gate = raw(5000), .min_ratio = 1, .least = 3000}, logits);
  for (Index t = 0; t < 2; ++t)
    for (std::size_t s = 0; s < 5000; ++s) {  // choices stand by falling weight; equal ones all stay
      const bool stays = s < 3000 || routing.weights(t)[s] == routing.weights(t)[2999];
      CHECK((routing.dropped(t)[s] == 0) == stays);
    }
}

TEST_CASE("WithSkipping: gradients agree with central differences, alone, limited and around limits", "[gate]") {
  const auto logits = test::random_logits<double>(14, 6, 2);
  const Step step = Step::train(2, 3);
  for (const SkippedWeight skipped : {SkippedWeight::Lost, SkippedWeight::Shared}) {
    CAPTURE(int(skipped));
    const auto around = [&]<class G>(const G& gate) {
      return WithSkipping<G>{.gate = gate, .min_ratio = 0.5, .skipped = skipped};
    };
    const auto check = [&](const auto& gate) {
      const auto routing = test::routed(gate, logits, step);
      CHECK(std::ranges::count(routing.dropped(), moe::kDroppedBySkipping) > 5);
      auto replayed = routing;
      gate.replay(logits, step, replayed);
      CHECK(test::equal_bits(routing, replayed));
      CHECK(test::gate_gradient_error(gate, logits, step) < 1e-6);
    };
    check(around(raw(4)));
    check(around(TopKGate{.k = 4}));
    // Divides by the sum over what it has chosen, and drops some of that itself.
    check(around(test::OwnGate{.threshold = 0.05, .normalises = true, .drops_itself = true}));
    const moe::CapacityOptions capacity{.factor = 0.8, .min_capacity = 1, .weights = moe::KeptWeights::Renormalised};
    check(moe::WithCapacity<WithSkipping<TopKGate>>{.gate = around(TopKGate{.k = 4}), .capacity = capacity});
    check(around(moe::WithCapacity<TopKGate>{.gate = TopKGate{.k = 4}, .capacity = capacity}));
  }
}

TEST_CASE("WithSkipping: it is of its gate in structure, parameters and logits", "[gate]") {
  using Gate = WithSkipping<TopKGate>;
  STATIC_REQUIRE(Gate::kPerToken);
  STATIC_REQUIRE_FALSE(WithSkipping<moe::WithCapacity<TopKGate>>::kPerToken);
  Gate gate{.gate = {.k = 2}, .min_ratio = 0.25};
  gate.gate.weight_bias = test::random_bias(4, 3, 1);
  CHECK(moe::num_parameters(gate) == 4);
  const Gate taken = gate.take(std::vector<Index>{3, 1}, 4);
  CHECK(taken.min_ratio == 0.25);
  CHECK(taken.gate.weight_bias(0) == gate.gate.weight_bias(3));
  CHECK(gate.concatenate(gate, 4, 4).gate.weight_bias.size() == 8);
  Gate other = gate;
  other.least = 2;
  CHECK_THROWS_WITH(gate.concatenate(other, 4, 4),
                    "moe::WithSkipping::concatenate: least is not the same in both, expected equal options");
}

TEST_CASE("WithSkipping: ratios outside [0, 1] and fewer than one choice are refused", "[gate][error]") {
  using Gate = WithSkipping<TopKGate>;
  CHECK_THROWS_WITH(Gate{.min_ratio = 1.5}.validate(4),
                    "moe::WithSkipping: min_ratio is 1.5, expected a value in [0, 1]");
  CHECK_THROWS_WITH(Gate{.min_ratio = NAN}.validate(4),
                    "moe::WithSkipping: min_ratio is nan, expected a value in [0, 1]");
  CHECK_THROWS_WITH(Gate{.least = 0}.validate(4), "moe::WithSkipping: least is 0, expected at least 1");
  CHECK_THROWS_AS(Gate{.gate = {.k = 5}}.validate(4), std::invalid_argument);
  auto routing = weighed({{1}});
  CHECK_THROWS_AS(moe::skip_light_choices(-1, 1, SkippedWeight::Lost, routing), std::invalid_argument);
}
