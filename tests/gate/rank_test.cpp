// SPDX-License-Identifier: MIT
#include "moe/gate/rank.hpp"

#include <numeric>

#include "moe/gate/top_k.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Normalise;
using moe::RankGate;
using moe::TopKGate;

TEST_CASE("RankGate: logits 3, 1, 4, 1, 5 have these ranks", "[gate]") {
  const auto logits = test::row<double>({3, 1, 4, 1, 5});
  const auto chosen = [&](std::vector<Index> ranks) { return test::experts_of(test::routed(RankGate{ranks}, logits)); };
  CHECK(chosen({0}) == std::vector<Index>{4});
  CHECK(chosen({1}) == std::vector<Index>{2});
  CHECK(chosen({4, 0, 3}) == std::vector<Index>{3, 4, 1});  // of equal logits the lower expert is the better
  const auto weights = test::routed(RankGate{{2, 0}}, logits);
  CHECK_THAT(weights.weights(0)[0], Catch::Matchers::WithinAbs(1 / (1 + std::exp(2.0)), 1e-15));
  const auto raw = test::routed(RankGate{{2}, Normalise::Off}, logits);
  const double sum = std::exp(-2.0) + 2 * std::exp(-4.0) + std::exp(-1.0) + 1;
  CHECK_THAT(raw.weights(0)[0], Catch::Matchers::WithinAbs(std::exp(-2.0) / sum, 1e-15));
}

TEST_CASE("RankGate: ranks from 0 on are the top-K gate, bit for bit", "[gate]") {
  const auto logits = test::random_logits<float>(40, 17, 1);
  for (const Index k : {1, 2, 5, 17})
    for (const Normalise normalise : {Normalise::Off, Normalise::Sum, Normalise::Euclidean}) {
      RankGate gate{std::vector<Index>(std::size_t(k)), normalise};
      std::iota(gate.ranks.begin(), gate.ranks.end(), Index{0});
      CAPTURE(k, int(normalise));
      const TopKGate top_k{.k = k, .normalise = normalise};
      CHECK(test::equal_bits(test::routed(gate, logits), test::routed(top_k, logits)));
      CHECK(test::equal_bits(test::probabilities(gate, logits), test::probabilities(top_k, logits)));
    }
}

TEST_CASE("RankGate: the experts of all ranks are a permutation, by falling logits", "[gate][property]") {
  for (const Index experts : {2, 9, 130}) {
    const auto logits = test::random_logits<double>(5, experts, 2);
    for (Index t = 0; t < 5; ++t) {
      std::vector<bool> seen(static_cast<std::size_t>(experts), false);
      double before = INFINITY;
      for (Index rank = 0; rank < experts; ++rank) {
        const Index e = test::routed(RankGate{{rank}}, logits).experts(t)[0];
        CHECK_FALSE(seen[std::size_t(e)]);
        seen[std::size_t(e)] = true;
        CHECK(logits(t, e) <= before);
        before = logits(t, e);
      }
    }
  }
}

TEST_CASE("RankGate: the last of thousands of experts", "[gate]") {
  const auto logits = test::random_logits<float>(2, 5000, 3);
  const auto routing = test::routed(RankGate{{4999, 0}}, logits);
  for (Index t = 0; t < 2; ++t) {
    Index least = 0, most = 0;
    for (Index e = 1; e < 5000; ++e) {
      if (logits(t, e) < logits(t, least)) least = e;
      if (logits(t, e) > logits(t, most)) most = e;
    }
    CHECK(test::experts_of(routing, t) == std::vector<Index>{least, most});
  }
}

TEST_CASE("RankGate: a masked expert has no rank", "[gate]") {
  const auto logits = test::row<double>({1, -INFINITY, 0});
  CHECK(test::experts_of(test::routed(RankGate{{1}}, logits)) == std::vector<Index>{2});
  CHECK_THROWS_AS(test::routed(RankGate{{2}}, logits), std::invalid_argument);
}

TEST_CASE("RankGate: gradients agree with central differences", "[gate]") {
  const auto logits = test::random_logits<double>(6, 7, 4);
  CHECK(test::gate_gradient_error(RankGate{{1, 3}}, logits) < 1e-6);
  CHECK(test::gate_gradient_error(RankGate{{1}, Normalise::Off}, logits) < 1e-6);
  CHECK(test::gate_gradient_error(RankGate{{4, 0, 2}, Normalise::Euclidean}, logits) < 1e-6);
}

TEST_CASE("RankGate: one expert, ranks that are not there and routers that learn nothing are refused",
          "[gate][error]") {
  const auto message = [](std::vector<Index> ranks, Index experts) {
    return test::message_of([&] { RankGate{ranks}.validate(experts); });
  };
  CHECK(message({0}, 1) == "moe::RankGate: num_experts is 1, expected at least 2");
  CHECK(message({}, 4) == "moe::RankGate: 0 ranks, expected at least 1");
  CHECK(message({1, 4}, 4) == "moe::RankGate: ranks[1] is 4, expected 0 <= rank < num_experts = 4");
  CHECK(message({-1}, 4) == "moe::RankGate: ranks[0] is -1, expected 0 <= rank < num_experts = 4");
  CHECK(message({2, 1, 2}, 4) == "moe::RankGate: ranks[2] is 2 as ranks[0], expected distinct ranks");
  CHECK_THROWS_AS((RankGate{{2}}.take(std::vector<Index>{3, 1}, 4)), std::invalid_argument);
  CHECK_THROWS_AS((RankGate{{2}}.concatenate(RankGate{{1}}, 4, 4)), std::invalid_argument);
  const auto logits = test::random_logits<double>(2, 4, 5);
  CHECK_THROWS_AS(test::routed(RankGate{{7}}, logits), std::invalid_argument);
  CHECK_THROWS_AS(test::gate_gradient_error(RankGate{{1}}, logits), std::invalid_argument);
  CHECK_THROWS_AS(test::routed(RankGate{}, test::row<double>({1, NAN, 2})), std::invalid_argument);
}
