// SPDX-License-Identifier: MIT
#include "moe/gate/null_expert.hpp"

#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_skipping.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Normalise;
using moe::NullExpertGate;
using moe::TopKGate;

namespace {

/// Refuses to learn for any other number of experts.
struct OfFourExperts : NullExpertGate {
  void require_backward(Index num_experts) const {
    if (num_experts != 4) moe::fail("OfFourExperts: asked for ", num_experts);
  }
};

}  // namespace

TEST_CASE("NullExpertGate: choices of nulls are none, and experts share the weight", "[gate]") {
  moe::Matrix<double> logits(4, 5);  // three experts, two nulls
  logits << 1, 3, 2, 2.5, 0,         // expert 1, null 0, expert 2
      5, 1, 0, 6, 7,                 // both nulls and expert 0
      1, 1, 1, 1, 1,                 // ties: the lower ones are experts
      0, 0, 0, 9, 8;
  const auto routing = test::routed(NullExpertGate{.k = 3, .nulls = 2}, logits);
  CHECK(test::experts_of(routing, 0) == std::vector<Index>{1, 2});
  CHECK_THAT(routing.weights(0)[0], Catch::Matchers::WithinAbs(1 / (1 + std::exp(-1.0)), 1e-15));
  CHECK(test::experts_of(routing, 1) == std::vector<Index>{0});
  CHECK(routing.weights(1)[0] == 1);
  CHECK(test::experts_of(routing, 2) == std::vector<Index>{0, 1, 2});
  CHECK(test::routed(NullExpertGate{.k = 2, .nulls = 2}, logits).experts(3).empty());
  const auto raw = test::routed(NullExpertGate{.k = 3, .nulls = 2, .normalise = Normalise::Off}, logits);
  const double sum = std::exp(-2.0) + 1 + std::exp(-1.0) + std::exp(-0.5) + std::exp(-3.0);
  CHECK_THAT(raw.weights(0)[0], Catch::Matchers::WithinAbs(1 / sum, 1e-15));
}

TEST_CASE("NullExpertGate: without nulls it is the top-K gate, bit for bit", "[gate]") {
  const auto logits = test::random_logits<float>(30, 9, 1);
  for (const Normalise normalise : {Normalise::Sum, Normalise::Off, Normalise::Euclidean}) {
    const NullExpertGate gate{.k = 4, .nulls = 0, .normalise = normalise};
    const TopKGate top_k{.k = 4, .normalise = normalise};
    const auto routing = test::routed(gate, logits);
    CHECK(test::equal_bits(routing, test::routed(top_k, logits)));
    CHECK(test::equal_bits(test::probabilities(gate, logits), test::probabilities(top_k, logits)));
    CHECK(test::equal_bits(test::Backward<float, NullExpertGate>(gate, logits, {}, routing).dlogits,
                           test::Backward<float, TopKGate>(top_k, logits, {}, routing).dlogits));
  }
}

TEST_CASE("NullExpertGate: probabilities are those of the experts, the nulls' share left out", "[gate]") {
  const auto logits = test::random_logits<double>(12, 7, 2);
  const auto p = test::probabilities(NullExpertGate{.k = 2, .nulls = 3}, logits);
  const auto all = test::probabilities_of(logits);
  REQUIRE(p.cols() == 4);
  CHECK(test::largest(p - all.leftCols(4)) < 1e-15);
}

TEST_CASE("NullExpertGate: gradients agree with central differences, of nulls too", "[gate]") {
  const auto logits = test::random_logits<double>(9, 7, 3);
  for (const Normalise normalise : {Normalise::Sum, Normalise::Off, Normalise::Euclidean})
    for (const Index nulls : {0, 1, 4}) {
      CAPTURE(int(normalise), nulls);
      const NullExpertGate gate{.k = 3, .nulls = nulls, .normalise = normalise};
      CHECK(test::gate_gradient_error(gate, logits) < 1e-6);
    }
  const NullExpertGate gate{.k = 3, .nulls = 2, .normalise = Normalise::Off};
  auto routing = test::routed(gate, logits);
  for (const Index a : {0, 3, 4}) routing.drop(a, moe::kDroppedByCapacity);
  CHECK(test::gate_gradient_error(gate, logits, {}, routing) < 1e-6);
}

TEST_CASE("NullExpertGate: a token chooses among what is not masked", "[gate]") {
  CHECK(test::experts_of(test::routed(NullExpertGate{.k = 3}, test::row<double>({-INFINITY, 1, -INFINITY, 2}))) ==
        std::vector<Index>{1});
  CHECK(test::routed(NullExpertGate{.k = 3}, test::row<double>({-INFINITY, -INFINITY, 2})).num_assignments() == 0);
  CHECK_THROWS_AS(test::routed(NullExpertGate{.k = 1}, test::row<double>({-INFINITY, -INFINITY, -INFINITY})),
                  std::invalid_argument);
}

TEST_CASE("NullExpertGate: thousands of experts and nulls", "[gate]") {
  const auto logits = test::random_logits<float>(2, 5000 + 1000, 4);
  CHECK(test::routed(NullExpertGate{.k = 6000, .nulls = 1000}, logits).num_assignments() == 2 * 5000);
}

TEST_CASE("NullExpertGate: nulls stay where experts are taken, in adaptors too", "[gate]") {
  const NullExpertGate gate{.k = 3, .nulls = 2};
  const std::vector<Index> ids = {3, 0}, columns = {3, 0, 4, 5};
  CHECK(gate.num_logits(4) == 6);
  CHECK(gate.logits_of(ids, 4) == columns);
  CHECK(gate.take(ids, 4) == gate);
  CHECK_THROWS_AS((NullExpertGate{.k = 5, .nulls = 2}.take(ids, 4)), std::invalid_argument);
  const moe::WithSkipping<NullExpertGate> skipping{.gate = gate};
  CHECK(moe::detail::num_logits(skipping, 4) == 6);
  CHECK(skipping.logits_of(ids, 4) == columns);
}

TEST_CASE("NullExpertGate: adaptors ask about experts, not logits, before backward", "[gate]") {
  const moe::WithSkipping<OfFourExperts> gate{.gate = {{.k = 3, .nulls = 2}}};
  CHECK(test::gate_gradient_error(gate, test::random_logits<double>(5, 6, 6)) < 1e-6);
}

TEST_CASE("NullExpertGate: backward refuses one normalised weight, of a single expert beside nulls too",
          "[gate][error]") {
  const auto refuses = [](NullExpertGate gate, Index num_experts) {
    try {
      gate.require_backward(num_experts);
    } catch (const std::invalid_argument&) {
      gate.constant_weights = moe::ConstantWeights::Accept;
      CHECK_NOTHROW(gate.require_backward(num_experts));
      return true;
    }
    return false;
  };
  CHECK(refuses({.k = 1, .nulls = 1}, 1));
  CHECK(refuses({.k = 3, .nulls = 2}, 1));
  CHECK(refuses({.k = 1, .nulls = 0}, 2));
  CHECK(refuses({.k = 1, .nulls = 2}, 4));
  CHECK_FALSE(refuses({.k = 1, .nulls = 0}, 1));  // nothing to learn
  CHECK_FALSE(refuses({.k = 2, .nulls = 1}, 2));
  CHECK_FALSE(refuses({.k = 3, .nulls = 2, .normalise = Normalise::Off}, 1));
  const auto logits = test::random_logits<double>(4, 3, 8);
  const NullExpertGate gate{.k = 3, .nulls = 2};
  CHECK_THROWS_AS(test::gate_gradient_error(gate, logits), std::invalid_argument);
  const NullExpertGate accepts{.k = 3, .nulls = 2, .constant_weights = moe::ConstantWeights::Accept};
  const std::vector<double> ones(4, 1.0);
  moe::Matrix<double> dlogits;
  NullExpertGate gradient;
  accepts.backward(logits, moe::Step{}, test::routed(accepts, logits), ones, moe::Matrix<double>(), dlogits, gradient);
  CHECK(dlogits.isZero(0));  // indeed
}

TEST_CASE("NullExpertGate: numbers out of range and choices of nulls from elsewhere are refused", "[gate][error]") {
  CHECK_THROWS_WITH((NullExpertGate{.k = 6, .nulls = 1}.validate(4)),
                    "moe::NullExpertGate: k is 6, expected 1 <= k <= num_experts + nulls = 5");
  CHECK_THROWS_WITH((NullExpertGate{.nulls = -1}.validate(4)), "moe::NullExpertGate: nulls is -1, expected at least 0");
  CHECK_THROWS_WITH(test::routed(NullExpertGate{.nulls = 3}, test::row<double>({1, 2, 3})),
                    "moe::NullExpertGate: logits have 3 columns, expected more than nulls = 3");
  const auto logits = test::random_logits<double>(1, 4, 5);
  auto routing = test::routing_of({{3}});
  CHECK_THROWS_WITH((NullExpertGate{.k = 1}.replay(logits, moe::Step{}, routing)),
                    "moe::NullExpertGate::replay: assignment 0 names expert 3, expected 0 <= expert < num_experts = 3");
  CHECK_THROWS_AS(test::gate_gradient_error(NullExpertGate{.k = 1}, logits), std::invalid_argument);
  CHECK_THROWS_AS(test::routed(NullExpertGate{}, test::row<double>({1, NAN, 2})), std::invalid_argument);
}
