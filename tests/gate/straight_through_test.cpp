// SPDX-License-Identifier: MIT
#include "moe/gate/wrap/straight_through.hpp"

#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::StraightThrough;
using moe::TopKGate;

namespace {

/// Gradients of sum dw (w_soft + c) + sum dp p, c being 1 / k - w_soft at the logits as they are: the surrogate.
template <class G>
double surrogate_error(const StraightThrough<G>& gate, Matrix<double> logits, const Step& step) {
  const auto routing = test::routed(gate, logits, step);
  const test::Backward<double, StraightThrough<G>> back(gate, logits, step, routing);
  auto soft = routing;
  gate.gate.replay(logits, step, soft);
  std::vector<double> constant;
  for (std::size_t a = 0; a < soft.weights().size(); ++a) constant.push_back(routing.weights()[a] - soft.weights()[a]);
  const auto loss = [&] {
    auto replayed = routing;
    gate.gate.replay(logits, step, replayed);
    double sum = test::inner(back.dprobability, test::probabilities(gate, logits, step));
    for (std::size_t a = 0; a < constant.size(); ++a) sum += back.dweight[a] * (replayed.weights()[a] + constant[a]);
    return sum;
  };
  return test::gradient_error(loss, logits, back.dlogits);
}

}  // namespace

TEST_CASE("StraightThrough: chooses as the gate does and weighs all choices alike", "[gate]") {
  const auto logits = test::random_logits<float>(20, 6, 1);
  for (const Index k : {1, 2, 5}) {
    const StraightThrough<TopKGate> gate{{.k = k}};
    const auto routing = test::routed(gate, logits);
    CHECK(test::copy_of(routing.experts()) == test::copy_of(test::routed(gate.gate, logits).experts()));
    for (const float weight : routing.weights()) CHECK(weight == 1 / static_cast<float>(k));
    auto replayed = routing;
    gate.replay(logits, Step{}, replayed);
    CHECK(test::equal_bits(replayed, routing));
  }
}

TEST_CASE("StraightThrough: weights of a token sum to a total, if asked for", "[gate]") {
  const auto logits = test::random_logits<float>(20, 6, 1);
  for (const Index k : {1, 3, 6}) {
    const StraightThrough gate{TopKGate{.k = k, .normalise = moe::Normalise::Off}, static_cast<double>(k)};
    const auto routing = test::routed(gate, logits);
    for (const float weight : routing.weights()) CHECK(weight == 1);
    CHECK(gate.take(std::vector<Index>{0, 1, 2, 3, 4, 5}, 6).total == gate.total);
    CHECK_THROWS_AS(gate.concatenate(StraightThrough{gate.gate, 7.5}, 6, 6), std::invalid_argument);
  }
  const StraightThrough bad{TopKGate{}, std::numeric_limits<double>::infinity()};
  CHECK_THROWS_AS(bad.validate(6), std::invalid_argument);
}

TEST_CASE("StraightThrough: dropped choices weigh nothing and leave the others alone", "[gate]") {
  const StraightThrough<moe::WithChance<TopKGate>> gate{{{.k = 3}, 0.6}};
  const auto routing = test::routed(gate, test::random_logits<double>(50, 6, 1), Step::train(1));
  CHECK(std::ranges::count(routing.dropped(), moe::kDroppedByChance) > 0);
  for (std::size_t a = 0; a < routing.weights().size(); ++a)
    CHECK(routing.weights()[a] == (routing.dropped()[a] ? 0 : 1.0 / 3));
}

TEST_CASE("StraightThrough: gradients are those of the surrogate", "[gate]") {
  const auto logits = test::random_logits<double>(9, 5, 3);
  using Top = StraightThrough<TopKGate>;
  CHECK(surrogate_error(Top{TopKGate::switch_transformer()}, logits, {}) < 1e-6);
  CHECK(surrogate_error(Top{{.k = 3}}, logits, {}) < 1e-6);
  CHECK(surrogate_error(Top{{.k = 3, .normalise = moe::Normalise::Off}, 3}, logits, {}) < 1e-6);
  CHECK(surrogate_error(Top{{.k = 2, .score = moe::Score::Sigmoid, .normalise = moe::Normalise::Off}}, logits, {}) <
        1e-6);
  const StraightThrough<moe::WithChance<TopKGate>> chance{{{.k = 3}, 0.6}};
  CHECK(surrogate_error(chance, logits, Step::train(1)) < 1e-6);
}

TEST_CASE("StraightThrough: parameters learn as those of the gate", "[gate]") {
  using Inner = moe::DenseToSparseGate<moe::LearnableTemperature>;
  const auto logits = test::random_logits<double>(9, 5, 3);
  const StraightThrough<Inner> gate;
  const auto routing = test::routed(gate, logits, Step::train(1));
  const test::Backward<double, StraightThrough<Inner>> back(gate, logits, Step::train(1), routing);
  const test::Backward<double, Inner> of_gate(gate.gate, logits, Step::train(1), routing);
  CHECK(test::equal_bits(back.dlogits, of_gate.dlogits));
  CHECK(back.gradient.gate.temperature.raw == of_gate.gradient.temperature.raw);
  CHECK(of_gate.gradient.temperature.raw != 0);
}

TEST_CASE("StraightThrough: a gate whose weights are constant teaches nothing here, too", "[gate][error]") {
  CHECK_THROWS_AS(StraightThrough<TopKGate>{{.k = 1}}.require_backward(4), std::invalid_argument);
  CHECK_THROWS_AS(StraightThrough<TopKGate>{{.k = 5}}.validate(4), std::invalid_argument);
  StraightThrough<TopKGate>{TopKGate::switch_transformer()}.require_backward(4);
}
