// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "moe/train/trainer.hpp"

struct Expert {
  using Scalar = float;
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
  void forward(const moe::ConstMatrixRef<float>&, moe::MatrixRef<float>, const moe::Context&) const {}
};

using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<Expert>>;

moe::Trainer<Layer> make(Layer& layer) { return moe::Trainer(layer); }
