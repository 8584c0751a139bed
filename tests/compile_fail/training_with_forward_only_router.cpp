// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"

struct Router {
  using Scalar = float;
  moe::Index num_experts() const { return 2; }
  moe::Index model_dim() const { return 3; }
  void logits(const moe::ConstMatrixRef<float>&, const moe::Context&, moe::MatrixRef<float>) const {}
};

using Layer = moe::MoeLayer<Router, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;

void train(const Layer& layer, Layer::Tape& tape, moe::Matrix<float>& tokens) {
  layer.forward(tokens, moe::Step::train(1), tokens, tape);
}
