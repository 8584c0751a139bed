// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Branch {
  using Scalar = float;
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
  void forward(const moe::ConstMatrixRef<float>&, moe::MatrixRef<float>, const moe::Context&) const {}
};

using Inner = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;
using Layer = moe::WithBranches<Inner, Branch>;

void train(const Layer& layer, Layer::Tape& tape, moe::Matrix<float>& tokens) {
  layer.forward(tokens, moe::Step::train(1), tokens, tape);
}
