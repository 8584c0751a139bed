// SPDX-License-Identifier: MIT
#include "moe/gate/hash.hpp"

#include "moe/gate/hash_tables.hpp"
#include "moe/gate/top_k.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::ChoiceWeight;
using moe::HashGate;
using moe::Index;
using moe::Normalise;
using moe::Score;
using moe::Step;
using moe::TopKGate;

namespace {

/// A step whose tokens have these keys; refers to them.
Step with_keys(const std::vector<std::int64_t>& keys) {
  Step step;
  step.key = keys;
  return step;
}

/// Two experts of five for each of four keys.
HashGate two_of_five() {
  HashGate gate;
  gate.table.resize(4, 2);
  gate.table << 0, 4, 3, 1, 2, 0, 4, 3;
  return gate;
}

}  // namespace

TEST_CASE("HashGate: a token goes where the table sends its key, whatever its logits and id", "[gate]") {
  const std::vector<std::int64_t> keys = {3, 0, 0}, ids = {7, 8, 9};
  Step step = with_keys(keys);
  step.token_id = ids;
  const auto routing = test::routed(two_of_five(), test::random_logits<float>(3, 5, 1), step);
  CHECK(test::experts_of(routing, 0) == std::vector<Index>{4, 3});
  CHECK(test::experts_of(routing, 1) == std::vector<Index>{0, 4});
  CHECK(test::experts_of(routing, 2) == std::vector<Index>{0, 4});
  for (const float weight : routing.weights()) CHECK(weight == 0.5f);
}

TEST_CASE("HashGate: scores weigh as the top-K gate weighs the same experts, bit for bit", "[gate]") {
  const auto logits = test::random_logits<float>(6, 5, 2);
  const std::vector<std::int64_t> keys = {0, 1, 2, 3, 1, 0};
  const Step step = with_keys(keys);
  for (const Score score : {Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus})
    for (const Normalise normalise : {Normalise::Off, Normalise::Sum, Normalise::Euclidean}) {
      HashGate gate = two_of_five();
      gate.weight = ChoiceWeight::Score;
      gate.score = score, gate.normalise = normalise, gate.epsilon = 1e-3, gate.scale = 2.5;
      const TopKGate top_k{.score = score, .normalise = normalise, .epsilon = 1e-3, .scale = 2.5};
      const auto routing = test::routed(gate, logits, step);
      auto expected = routing;
      top_k.replay(logits, step, expected);
      CAPTURE(int(score), int(normalise));
      CHECK(test::equal_bits(routing, expected));
      CHECK(test::equal_bits(test::probabilities(gate, logits, step), test::probabilities(top_k, logits)));
      CHECK(test::equal_bits(test::Backward<float, HashGate>(gate, logits, step, routing).dlogits,
                             test::Backward<float, TopKGate>(top_k, logits, step, routing).dlogits));
    }
}

TEST_CASE("HashGate: gradients agree with central differences", "[gate]") {
  const auto logits = test::random_logits<double>(4, 5, 3);
  const std::vector<std::int64_t> keys = {0, 1, 2, 3};
  const Step step = with_keys(keys);
  for (const ChoiceWeight weight : {ChoiceWeight::Unit, ChoiceWeight::Score}) {
    HashGate gate = two_of_five();
    gate.weight = weight;
    CHECK(test::gate_gradient_error(gate, logits, step, test::routed(gate, logits, step)) < 1e-6);
  }
}

TEST_CASE("HashGate: all of thousands of experts", "[gate]") {
  HashGate gate;
  gate.table.resize(1, 5000);
  for (Index s = 0; s < 5000; ++s) gate.table(0, s) = static_cast<double>(4999 - s);
  gate.validate(5000);
  const std::vector<std::int64_t> keys = {0};
  const auto routing = test::routed(gate, moe::Matrix<float>(moe::Matrix<float>::Zero(1, 5000)), with_keys(keys));
  CHECK(routing.experts(0)[0] == 4999);
  CHECK(routing.experts(0)[4999] == 0);
}

TEST_CASE("HashGate: the table is state, and is renamed with its experts", "[gate]") {
  const HashGate gate = two_of_five();
  CHECK(moe::num_parameters(gate) == 0);
  CHECK(moe::num_state(gate) == 8);
  const HashGate turned = gate.take(std::vector<Index>{4, 3, 2, 1, 0}, 5);
  moe::Matrix<double> expected(4, 2);
  expected << 4, 0, 1, 3, 2, 4, 0, 1;
  CHECK(turned.table == expected);
  CHECK(gate.take(std::vector<Index>{0, 1, 2, 3, 4, 0, 1}, 5).table == gate.table);
  CHECK_THROWS_WITH(gate.take(std::vector<Index>{0, 1, 2, 3}, 5),
                    "moe::HashGate::take: the table has expert 4 for key 0, expected one of the ids");
}

TEST_CASE("HashGate: keys that are missing or not in the table are refused, those of padding not read",
          "[gate][error]") {
  const auto logits = test::random_logits<double>(2, 5, 4);
  const HashGate gate = two_of_five();
  CHECK_THROWS_WITH(test::routed(gate, logits),
                    "moe::HashGate::route: token 0 has no key, expected step.key to have one per token");
  const std::vector<std::int64_t> high = {0, 4}, low = {-1, 0}, three = {0, 0, 0};
  CHECK_THROWS_WITH(test::routed(gate, logits, with_keys(high)),
                    "moe::HashGate::route: key of token 1 is 4, expected 0 <= key < keys of the table = 4");
  CHECK_THROWS_WITH(test::routed(gate, logits, with_keys(low)),
                    "moe::HashGate::route: key of token 0 is -1, expected 0 <= key < keys of the table = 4");
  CHECK_THROWS_WITH(test::routed(gate, logits, with_keys(three)),
                    "moe::HashGate::route: step.key has 3 entries, expected 0 or num_tokens = 2");
  const std::vector<std::uint8_t> valid = {1, 0};
  Step step = with_keys(high);
  step.valid = valid;
  CHECK(test::routed(gate, logits, step).num_assignments() == 2);
  CHECK(test::routed(gate, moe::Matrix<double>(0, 5)).num_tokens() == 0);
}

TEST_CASE("HashGate: tables that name no experts, or one twice, are refused", "[gate][error]") {
  const auto message = [](double entry) {
    HashGate gate = two_of_five();
    gate.table(2, 1) = entry;
    return test::message_of([&] { gate.validate(5); });
  };
  CHECK(message(5) ==
        "moe::HashGate: the table has expert 5 for key 2, expected a whole number in [0, num_experts = 5)");
  for (const double entry : {-1.0, 0.5, double(NAN), double(INFINITY)})
    CHECK(message(entry).find("expected a whole number in [0, num_experts = 5)") != std::string::npos);
  CHECK(message(2) == "moe::HashGate: the table has expert 2 twice for key 2, expected distinct experts");
  CHECK_THROWS_WITH(HashGate{}.validate(5), "moe::HashGate: the table has 0 keys, expected at least 1");
  CHECK_THROWS_WITH(two_of_five().validate(1),
                    "moe::HashGate: the table has 2 experts per key, expected 1 to num_experts = 1");
  // A table that is changed after validate() leads nowhere either.
  HashGate changed = two_of_five();
  changed.table(1, 0) = 1e18;
  const std::vector<std::int64_t> keys = {1};
  CHECK_THROWS_AS(test::routed(changed, test::random_logits<double>(1, 5, 5), with_keys(keys)), std::invalid_argument);
  HashGate constant{.table = moe::Matrix<double>::Zero(1, 1), .weight = ChoiceWeight::Score};
  CHECK_THROWS_AS(constant.require_backward(5), std::invalid_argument);
}
