// SPDX-License-Identifier: MIT
// Routing from outside: experts over ids and weights that somebody else supplies, and training with recorded ids. A
// rollout of reinforcement learning is trained on that way: with the experts that made it, though the router has moved
// on, or an engine with other kernels has broken ties otherwise (arXiv:2507.18071, arXiv:2510.11370).
#include <algorithm>
#include <cstdio>
#include <moe/moe.hpp>
#include <vector>

namespace {

constexpr moe::Index kTokens = 256, kModelDim = 16, kExperts = 8, kChosen = 2;

/// Share of the tokens with other experts, or in another order.
double changed(const moe::Routing<float>& a, const moe::Routing<float>& b) {
  double tokens = 0;
  for (moe::Index t = 0; t < kTokens; ++t) tokens += std::ranges::equal(a.experts(t), b.experts(t)) ? 0 : 1;
  return tokens / kTokens;
}

}  // namespace

int main() {
  moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kModelDim, 1), moe::TopKGate{.k = kChosen},
                      moe::ExpertPool<moe::Mlp>::random(kExperts, kModelDim, 32, 2));
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(kTokens, kModelDim), target = 2 * tokens;

  // What an engine leaves behind, [num_tokens, k] each: any integers, and weights. Here it is the layer itself.
  moe::Matrix<float> output(kTokens, kModelDim), again(kTokens, kModelDim), doutput;
  moe::Workspace workspace;
  layer.forward(tokens, output, workspace);
  const std::vector<std::int64_t> ids(workspace.routing.experts().begin(), workspace.routing.experts().end());
  const std::vector<float> weights(workspace.routing.weights().begin(), workspace.routing.weights().end());

  // The experts alone, over that: no router, no gate.
  moe::Scratch scratch;
  const auto routing = moe::Routing<float>::from(kTokens, ids, weights, kExperts);
  layer.mixture().forward(tokens, routing, {moe::Step{}, scratch}, again);
  const bool same_bits = again == output;
  std::printf("experts over recorded ids and weights: %s\n", same_bits ? "the same bits" : "other numbers");

  // Training with the recorded ids: the gate weighs them anew from its logits, and backward teaches the router by them.
  const auto choices = moe::Routing<float>::from(kTokens, ids, {}, kExperts);
  auto gradient = moe::zeros_like(layer);
  const moe::AdamW optimiser{.weight_decay = 0};
  moe::AdamW::State<decltype(layer)> state(layer);
  decltype(layer)::Tape tape;
  for (std::uint64_t update = 0; update <= 200; ++update) {
    const moe::Step step = moe::Step::train(update);
    layer.replay(tokens, step, choices, output, tape);
    const double loss = moe::squared_error<float>(output, target, step, doutput);
    if (update % 50 == 0) {
      layer.forward(tokens, again, workspace);  // what the router would do now
      std::printf("update %3d: squared error %.4f, replayed choices changed %.2f, the router's own %.2f\n",
                  static_cast<int>(update), loss, changed(tape.routing, routing), changed(workspace.routing, routing));
    }
    moe::set_zero(gradient);
    layer.backward(tokens, tape, doutput, gradient);
    optimiser.step(layer, gradient, state, 0.003);
  }
  return same_bits ? 0 : 1;
}
