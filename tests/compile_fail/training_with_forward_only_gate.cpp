// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Gate {
  static constexpr bool kPerToken = true;
  void route(const moe::Logits<float>&, const moe::Context&, moe::Routing<float>&) const {}
};

using Layer = moe::MoeLayer<moe::LinearRouter, Gate, moe::ExpertPool<moe::Mlp>>;

void train(const Layer& layer, Layer::Tape& tape, Layer& gradient, moe::Matrix<float>& tokens) {
  layer.backward(tokens, tape, tokens, gradient, tokens);
}
