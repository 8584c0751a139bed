// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

// All that training needs but visit: without it nothing of the expert would learn, nor be saved.
struct Expert {
  using Scalar = float;
  using Rows = moe::ConstMatrixRef<float>;
  struct Tape {};
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
  void forward(const Rows&, moe::MatrixRef<float>, const moe::Context&) const {}
  void forward(const Rows&, moe::MatrixRef<float>, const moe::Context&, Tape&) const {}
  void backward(const Rows&, Tape&, const Rows&, moe::MatrixRef<float>, Expert&, const moe::Context&) const {}
};

using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<Expert>>;

void train(const Layer& layer, Layer::Tape& tape, moe::Matrix<float>& tokens) {
  layer.forward(tokens, moe::Step::train(1), tokens, tape);
}
