// SPDX-License-Identifier: MIT
// What optimisers, clipping and backward make of numbers that a layer only keeps.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "layer/fixtures.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/routing/balance/selection_bias.hpp"
#include "moe/routing/balance/statistics.hpp"
#include "moe/train/squared_error.hpp"
#include "moe/train/trainer.hpp"
#include "support/catch.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using moe::Step;
using moe::TopKGate;
using test::kModelDim;
using Mlp = moe::BasicMlp<moe::F32>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr Index kExperts = 4;

TopKGate biased_gate() {
  return {.k = 2,
          .selection_bias = Eigen::RowVectorXd::LinSpaced(kExperts, -1, 5),
          .weight_bias = Eigen::RowVectorXd::Ones(kExperts)};
}

/// A gate of one's own: dense, and it remembers how much each expert got. Whoever trains the layer sets it.
struct WatchedGate : moe::SoftmaxGate {
  Eigen::RowVectorXd mean_load = {};

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("mean_load", self.mean_load...);
  }
};

template <class Gate>
auto layer_with(Gate gate) {
  return test::layer_of<Mlp, Gate, moe::F32>(kExperts, std::move(gate));
}

/// 1000 steps with gradients of zero: what decays, decays.
template <class Optimiser, class Object>
void decay(const Optimiser& optimiser, Object& object) {
  const Object zeros = moe::zeros_like(object);
  typename Optimiser::template State<Object> state(object);
  for (int step = 0; step < 1000; ++step) optimiser.step(object, zeros, state, 0.01);
}

}  // namespace

TEST_CASE("State: 1000 steps with weight decay leave a selection bias as it is", "[train]") {
  const TopKGate before = biased_gate();
  TopKGate gate = before;
  decay(moe::AdamW{.weight_decay = 0.1}, gate);
  CHECK(gate.selection_bias == before.selection_bias);
  CHECK(gate.weight_bias(0) < 0.5);  // (1 - 0.001)^1000 = 0.37: this one is learned, and decays
  gate = before;
  decay(moe::Sgd{.momentum = 0.9, .weight_decay = 0.1}, gate);
  CHECK(gate.selection_bias == before.selection_bias);
  CHECK(gate.weight_bias(0) < 0.5);
}

TEST_CASE("State: 1000 steps with weight decay leave it as it is in a layer, of a gate of one's own, too", "[train]") {
  auto layer = layer_with(WatchedGate{{}, Eigen::RowVectorXd::LinSpaced(kExperts, -1, 5)});
  const auto before = layer;
  decay(moe::AdamW{.weight_decay = 0.1}, layer);
  CHECK(layer.gate().mean_load == before.gate().mean_load);
  CHECK(std::abs(layer.router().weight()(0, 0)) < std::abs(0.5f * before.router().weight()(0, 0)));
}

TEST_CASE("State: neither clipping nor a step looks at that of a gradient", "[train]") {
  TopKGate gate = biased_gate(), gradient = moe::zeros_like(gate);
  gradient.selection_bias.setConstant(kNan);
  gradient.weight_bias.setOnes();
  CHECK(moe::clip_by_norm(gradient, 1) == 2);
  CHECK(gradient.weight_bias(3) == 0.5);
  moe::AdamW::State state(gate);
  CHECK(moe::AdamW{}.step(gate, gradient, state, 0.1));
  CHECK(gate.selection_bias == biased_gate().selection_bias);
  CHECK(moe::num_parameters(gate) == kExperts);
  CHECK(moe::num_state(gate) == kExperts);
}

TEST_CASE("State: a controller may set a first selection bias when training has begun", "[train]") {
  auto layer = layer_with(TopKGate{.k = 2});
  const auto tokens = test::random_matrix<float>(9, kModelDim, 1), target = test::random_matrix<float>(9, kModelDim, 2);
  moe::Trainer trainer(layer, moe::AdamW{.weight_decay = 0.1});
  const auto loss = [&](const Matrix<float>& output, Matrix<float>& doutput) {
    return moe::squared_error<float>(output, target, Step{}, doutput);
  };
  Eigen::RowVectorXd last;
  for (std::uint64_t update = 0; update < 3; ++update) {
    trainer.accumulate(tokens, Step::train(update), loss);
    REQUIRE(trainer.update(0.1).taken);
    CHECK(layer.gate().selection_bias == last);
    moe::update_selection_bias(moe::tokens_per_expert(trainer.tape().mixture.plan), 0.1, layer.gate().selection_bias);
    last = layer.gate().selection_bias;
  }
  CHECK(last.size() == kExperts);
}

TEST_CASE("State: backward accepts a gradient whose state has another size", "[train]") {
  const auto layer = layer_with(biased_gate());
  auto gradient = moe::zeros_like(layer), plain = gradient;
  gradient.gate().selection_bias.resize(0);
  const auto tokens = test::random_matrix<float>(9, kModelDim, 1);
  for (auto* each : {&gradient, &plain}) {
    typename decltype(plain)::Tape tape;
    auto out = test::nan_matrix<float>(9, kModelDim), dtokens = out;
    layer.forward(tokens, Step{}, out, tape);
    layer.backward(tokens, tape, tokens, *each, dtokens);
  }
  CHECK(gradient.gate().weight_bias == plain.gate().weight_bias);
  CHECK(gradient.gate().weight_bias.norm() > 0);
  gradient.gate().weight_bias.resize(0);
  typename decltype(plain)::Tape tape;
  auto out = test::nan_matrix<float>(9, kModelDim), dtokens = out;
  layer.forward(tokens, Step{}, out, tape);
  CHECK_THROWS_AS(layer.backward(tokens, tape, tokens, gradient, dtokens), std::invalid_argument);
}
