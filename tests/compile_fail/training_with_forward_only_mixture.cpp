// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Mixture {
  using Scalar = float;
  moe::Index num_experts() const { return 2; }
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
  void forward(const moe::ConstMatrixRef<float>&, const moe::Routing<float>&, const moe::Context&,
               moe::MatrixRef<float>) const {}
};

using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, Mixture>;

void train(const Layer& layer, Layer::Tape& tape, moe::Matrix<float>& tokens) {
  layer.forward(tokens, moe::Step::train(1), tokens, tape);
}
