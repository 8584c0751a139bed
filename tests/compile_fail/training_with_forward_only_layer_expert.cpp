// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Expert {
  using Scalar = float;
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
  void forward(const moe::ConstMatrixRef<float>&, moe::MatrixRef<float>, const moe::Context&) const {}
};

using Inner = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<Expert>>;
using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::LayerExpert<Inner>>>;
static_assert(!moe::DifferentiableExpert<moe::LayerExpert<Inner>>);

void train(const Layer& layer, Layer::Tape& tape, moe::Matrix<float>& tokens) {
  layer.forward(tokens, moe::Step::train(1), tokens, tape);
}
