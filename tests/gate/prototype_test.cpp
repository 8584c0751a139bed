// SPDX-License-Identifier: MIT
#include "moe/gate/prototype.hpp"

#include "moe/gate/top_k.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::PrototypeGate;
using moe::TopKGate;

namespace {

/// Columns [first, first + count) alone.
moe::Matrix<double> columns(const moe::Matrix<double>& all, Index first, Index count) {
  return all.middleCols(first, count);
}

}  // namespace

TEST_CASE("PrototypeGate: logits 1, 3, 2, 2 in two prototypes", "[gate]") {
  const auto routing = test::routed(PrototypeGate{.groups = 2}, test::row<double>({1, 3, 2, 2}));
  CHECK(test::experts_of(routing) == std::vector<Index>{1, 2});  // ties to the lower
  CHECK_THAT(routing.weights(0)[0], Catch::Matchers::WithinAbs(1 / (1 + std::exp(-2.0)), 1e-15));
  CHECK_THAT(routing.weights(0)[1], Catch::Matchers::WithinAbs(0.5, 1e-15));
}

TEST_CASE("PrototypeGate: one prototype is the raw top-K gate, bit for bit", "[gate]") {
  const auto logits = test::random_logits<float>(30, 17, 1);
  for (const Index k : {1, 3, 17}) {
    const TopKGate top_k{.k = k, .normalise = moe::Normalise::Off};
    const PrototypeGate gate{.k = k};
    const auto routing = test::routed(gate, logits);
    CHECK(test::equal_bits(routing, test::routed(top_k, logits)));
    CHECK(test::equal_bits(test::probabilities(gate, logits), test::probabilities(top_k, logits)));
    CHECK(test::equal_bits(test::Backward<float, PrototypeGate>(gate, logits, {}, routing).dlogits,
                           test::Backward<float, TopKGate>(top_k, logits, {}, routing).dlogits));
  }
}

TEST_CASE("PrototypeGate: every prototype is a gate of its own experts", "[gate]") {
  for (const auto& [groups, size, k] : {std::tuple<Index, Index, Index>{4, 5, 2}, {3, 1, 1}, {2, 9, 9}, {6, 8, 1}}) {
    const auto logits = test::random_logits<double>(20, groups * size, 2);
    const PrototypeGate gate{groups, k};
    const auto routing = test::routed(gate, logits);
    const auto p = test::probabilities(gate, logits);
    for (Index g = 0; g < groups; ++g) {
      const TopKGate alone{.k = k, .normalise = moe::Normalise::Off};
      const auto own = test::routed(alone, columns(logits, g * size, size));
      CHECK(test::equal_bits(moe::Matrix<double>(columns(p, g * size, size)),
                             test::probabilities(alone, columns(logits, g * size, size))));
      for (Index t = 0; t < 20; ++t)
        for (Index s = 0; s < k; ++s) {
          const auto at = static_cast<std::size_t>(g * k + s);
          CHECK(routing.experts(t)[at] == g * size + own.experts(t)[std::size_t(s)]);
          CHECK(routing.weights(t)[at] == own.weights(t)[std::size_t(s)]);
        }
    }
  }
}

TEST_CASE("PrototypeGate: thousands of experts, some or all of each prototype", "[gate]") {
  const auto logits = test::random_logits<float>(2, 5000, 3);
  CHECK(test::routed(PrototypeGate{.groups = 500, .k = 2}, logits).num_assignments() == 2 * 1000);
  CHECK(test::routed(PrototypeGate{.groups = 50, .k = 100}, logits).num_assignments() == 2 * 5000);
}

TEST_CASE("PrototypeGate: gradients agree with central differences", "[gate]") {
  const auto logits = test::random_logits<double>(6, 12, 4);
  for (const PrototypeGate& gate : {PrototypeGate{1, 2}, {3, 1}, {3, 2}, {4, 3}, {12, 1}}) {
    CAPTURE(gate.groups, gate.k);
    CHECK(test::gate_gradient_error(gate, logits) < 1e-6);
  }
  auto routing = test::routed(PrototypeGate{3, 2}, logits);
  for (const Index a : {0, 5, 6, 7}) routing.drop(a, moe::kDroppedByCapacity);
  CHECK(test::gate_gradient_error(PrototypeGate{3, 2}, logits, {}, routing) < 1e-6);
}

TEST_CASE("PrototypeGate: prototypes go with their experts", "[gate]") {
  const PrototypeGate gate{.groups = 3, .k = 2};
  CHECK(gate.take(std::vector<Index>{8, 9, 11, 0, 1, 2}, 12) == PrototypeGate{2, 2});
  CHECK(gate.take(std::vector<Index>{4, 5, 6}, 12) == PrototypeGate{1, 2});
  CHECK(gate.concatenate(PrototypeGate{2, 2}, 12, 8) == PrototypeGate{5, 2});
  CHECK_THROWS_AS(gate.take(std::vector<Index>{0, 1, 4}, 12), std::invalid_argument);
  CHECK_THROWS_AS(gate.take(std::vector<Index>{0, 4, 1, 5}, 12), std::invalid_argument);
  CHECK_THROWS_AS(gate.take(std::vector<Index>{0, 4, 8}, 12), std::invalid_argument);
  CHECK_THROWS_AS(gate.concatenate(gate, 12, 9), std::invalid_argument);
  CHECK_THROWS_AS(gate.concatenate(PrototypeGate{3, 1}, 12, 12), std::invalid_argument);
  const PrototypeGate accepts{3, 2, moe::ConstantWeights::Accept};
  CHECK(accepts.take(std::vector<Index>{4, 5, 6}, 12) == PrototypeGate{1, 2, moe::ConstantWeights::Accept});
  CHECK(accepts.concatenate(accepts, 12, 12) == PrototypeGate{6, 2, moe::ConstantWeights::Accept});
  CHECK_THROWS_WITH(
      gate.concatenate(accepts, 12, 12),
      "moe::PrototypeGate::concatenate: constant_weights is not the same in both, expected equal options");
}

TEST_CASE("PrototypeGate: prototypes that do not divide the experts and masked ones are refused", "[gate][error]") {
  CHECK_THROWS_WITH((PrototypeGate{3, 1}.validate(4)),
                    "moe::PrototypeGate: groups is 3, expected a divisor of num_experts = 4");
  CHECK_THROWS_WITH((PrototypeGate{8, 1}.validate(4)),
                    "moe::PrototypeGate: groups is 8, expected a divisor of num_experts = 4");
  CHECK_THROWS_AS((PrototypeGate{0, 1}.validate(4)), std::invalid_argument);
  CHECK_THROWS_WITH((PrototypeGate{2, 3}.validate(4)),
                    "moe::PrototypeGate: k is 3, expected 1 <= k <= experts of a prototype = 2");
  CHECK(test::experts_of(test::routed(PrototypeGate{2, 1}, test::row<double>({1, -INFINITY, -INFINITY, 0}))) ==
        std::vector<Index>{0, 3});
  CHECK_THROWS_AS(test::routed(PrototypeGate{2, 1}, test::row<double>({1, 2, -INFINITY, -INFINITY})),
                  std::invalid_argument);
  CHECK_THROWS_AS(test::routed(PrototypeGate{2, 1}, test::row<double>({1, NAN, 2, 2})), std::invalid_argument);
}
