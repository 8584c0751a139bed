// SPDX-License-Identifier: MIT
// Gates whose weights are constants do not train a router in silence.
#include <string>

#include "moe/gate/balanced.hpp"
#include "moe/gate/noisy_top_k.hpp"
#include "moe/gate/prototype.hpp"
#include "moe/gate/rank.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/top_p.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/gate/wrap/with_skipping.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ConstantWeights;
using moe::Index;
using moe::KeptWeights;
using moe::NoisyTopKGate;
using moe::Normalise;
using moe::Score;
using moe::TopKGate;

namespace {

constexpr Index kExperts = 5;

/// dL/dlogits for dL/dw = 1 of four tokens.
template <class G, class S = double>
moe::Matrix<S> backward(const G& gate, Index num_experts = kExperts) {
  const auto logits = test::random_logits<S>(4, num_experts, 7);
  const auto routing = test::routed(gate, logits, moe::Step::train(1));
  const std::vector<S> dweight(routing.weights().size(), S{1});
  moe::Matrix<S> dlogits;
  G gradient = moe::zeros_like(gate);
  gate.backward(logits, moe::Step::train(1), routing, dweight, moe::Matrix<S>(), dlogits, gradient);
  return dlogits;
}

template <class G>
bool refused(const G& gate) {
  try {
    backward(gate);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

moe::WithCapacity<TopKGate> normalised_by_capacity(TopKGate gate, KeptWeights weights) {
  return {.gate = std::move(gate), .capacity = {.factor = 4, .weights = weights}};
}

}  // namespace

TEST_CASE("TopKGate: backward refuses k = 1 with normalised weights, and names what to set", "[gate][error]") {
  REQUIRE_THROWS_WITH(backward(TopKGate{.k = 1}),
                      ContainsSubstring("moe::TopKGate::backward: k is 1 and weights are normalised") &&
                          ContainsSubstring("TopKGate::switch_transformer()") &&
                          ContainsSubstring("constant_weights = ConstantWeights::Accept"));
  for (const Score score : {Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus})
    for (const Normalise normalise : {Normalise::Sum, Normalise::Euclidean, Normalise::PNorm}) {
      CAPTURE(static_cast<int>(score), static_cast<int>(normalise));
      TopKGate gate{.k = 1, .score = score, .normalise = normalise};
      CHECK(refused(gate));
      gate.epsilon = 1e-20;  // DeepSeek's; float does not see it
      CHECK(refused(gate));
      gate.epsilon = 0;
      gate.floor = 1e-12;  // ERNIE's
      CHECK(refused(gate));
      gate.floor = 0;
      gate.epsilon = 1e-6;  // weights from 0.99999 on
      CHECK(refused(gate));
      gate.epsilon = 0;
      gate.floor = score == Score::Softmax ? 0.2 : 0.005;  // the best of five probabilities is not below a fifth
      CHECK(refused(gate));
      gate.constant_weights = ConstantWeights::Accept;
      CHECK_FALSE(refused(gate));
    }
}

TEST_CASE("TopKGate: weights that vary are not refused", "[gate]") {
  CHECK_FALSE(refused(TopKGate{.k = 2}));
  CHECK_FALSE(refused(TopKGate{.k = 1, .score = Score::Sigmoid, .normalise = Normalise::Off}));
  CHECK_FALSE(refused(TopKGate{.k = 1, .score = Score::Sigmoid, .epsilon = 0.1}));
  CHECK_FALSE(refused(TopKGate{.k = 1, .floor = 0.9}));
  CHECK(test::largest(backward(TopKGate{.k = 1, .score = Score::Sigmoid, .epsilon = 0.1})) > 1e-3);
  CHECK_NOTHROW(backward(TopKGate{.k = 1}, 1));  // one expert: nothing to route
}

TEMPLATE_TEST_CASE("TopKGate: switch_transformer sends gradient to all logits", "[gate]", float, double) {
  const TopKGate gate = TopKGate::switch_transformer();
  CHECK(gate.k == 1);
  const auto logits = test::random_logits<TestType>(4, kExperts, 7);
  const auto routing = test::routed(gate, logits), top = test::routed(TopKGate{.k = 1}, logits);
  const auto p = test::probabilities(gate, logits);
  for (Index t = 0; t < 4; ++t) {
    CHECK(routing.experts(t)[0] == top.experts(t)[0]);
    CHECK(routing.weights(t)[0] == p(t, routing.experts(t)[0]));
  }
  const auto dlogits = backward<TopKGate, TestType>(gate);
  for (Index t = 0; t < 4; ++t)
    for (Index e = 0; e < kExperts; ++e) CHECK(dlogits(t, e) != 0);
  CHECK(test::gate_gradient_error(gate, test::random_logits<double>(4, kExperts, 7)) < 1e-6);
}

TEST_CASE("Gates around a top-1 gate refuse what it does", "[gate][error]") {
  const TopKGate constant{.k = 1}, accepted{.k = 1, .constant_weights = ConstantWeights::Accept},
      raw = TopKGate::switch_transformer();
  CHECK(refused(NoisyTopKGate{.top_k = constant}));
  CHECK(refused(NoisyTopKGate::gumbel(constant)));
  CHECK(refused(moe::WithChance<TopKGate>{.gate = constant}));
  CHECK(refused(moe::WithCapacity<TopKGate>{.gate = constant}));
  CHECK(refused(moe::WithCapacity<moe::WithChance<NoisyTopKGate>>{.gate = {.gate = {.top_k = constant}}}));
  CHECK(refused(moe::WithSkipping<TopKGate>{.gate = constant}));
  CHECK_FALSE(refused(NoisyTopKGate{.top_k = accepted}));
  CHECK_FALSE(refused(NoisyTopKGate::gumbel(raw)));
  CHECK_FALSE(refused(moe::WithChance<TopKGate>{.gate = accepted}));
  CHECK_FALSE(refused(moe::WithCapacity<TopKGate>{.gate = raw}));
  CHECK_FALSE(refused(moe::WithCapacity<moe::WithChance<NoisyTopKGate>>{.gate = {.gate = {.top_k = raw}}}));
}

TEST_CASE("WithCapacity: backward refuses to normalise the weight of one choice", "[gate][error]") {
  const TopKGate raw = TopKGate::switch_transformer();
  for (const KeptWeights weights : {KeptWeights::Renormalised, KeptWeights::NormalisedFirst}) {
    CAPTURE(static_cast<int>(weights));
    CHECK_THROWS_WITH(
        backward(normalised_by_capacity(raw, weights)),
        ContainsSubstring(
            "moe::WithCapacity::backward: each token has one choice and the capacity normalises weights"));
    TopKGate accepted = raw;
    accepted.constant_weights = ConstantWeights::Accept;
    CHECK_FALSE(refused(normalised_by_capacity(accepted, weights)));
    CHECK(test::largest(backward(normalised_by_capacity(accepted, weights))) == 0);
    CHECK_FALSE(refused(normalised_by_capacity({.k = 2}, weights)));
    auto with_floor = normalised_by_capacity(raw, weights);
    with_floor.capacity.floor = std::numeric_limits<float>::epsilon();  // DeepSpeed's and NLLB's
    CHECK(refused(with_floor));
    with_floor.capacity.floor = 0.9;
    CHECK_FALSE(refused(with_floor));
    using Chance = moe::WithChance<NoisyTopKGate>;
    CHECK(refused(moe::WithCapacity<Chance>{.gate = {.gate = {.top_k = raw}}, .capacity = {.weights = weights}}));
    const auto top_p = [&](Index most) {
      using Skipping = moe::WithSkipping<moe::TopPGate>;
      return moe::WithCapacity<Skipping>{.gate = {.gate = {.most = most}}, .capacity = {.weights = weights}};
    };
    CHECK(refused(top_p(1)));
    CHECK_FALSE(refused(top_p(2)));
    const moe::RankGate rank{.ranks = {1}, .normalise = Normalise::Off};
    CHECK(refused(moe::WithCapacity<moe::RankGate>{.gate = rank, .capacity = {.weights = weights}}));
  }
  CHECK_FALSE(refused(normalised_by_capacity(raw, KeptWeights::AsTheyAre)));
}

TEST_CASE("WithCapacity: gates that always make one choice are refused with it, too", "[gate][error]") {
  const auto check = []<class G>(const G& gate) {
    const auto limited = [&](KeptWeights weights) {
      return moe::WithCapacity<G>{.gate = gate, .capacity = {.factor = 4, .weights = weights}};
    };
    for (const KeptWeights weights : {KeptWeights::Renormalised, KeptWeights::NormalisedFirst}) {
      CHECK(refused(limited(weights)));
      auto accepted = limited(weights);
      accepted.gate.constant_weights = ConstantWeights::Accept;
      CHECK(test::largest(backward(accepted)) < 1e-15);  // nothing to learn from, indeed
    }
    CHECK(test::largest(backward(limited(KeptWeights::AsTheyAre))) > 1e-3);
  };
  check(moe::BalancedGate{});
  check(moe::PrototypeGate{.groups = 1, .k = 1});
  const moe::CapacityOptions capacity{.factor = 4, .weights = KeptWeights::Renormalised};
  CHECK_FALSE(refused(moe::WithCapacity<moe::PrototypeGate>{.gate = {.groups = 1, .k = 2}, .capacity = capacity}));
  CHECK_FALSE(refused(moe::WithCapacity<moe::PrototypeGate>{.gate = {.groups = 5, .k = 1}, .capacity = capacity}));
}
