// SPDX-License-Identifier: MIT
#include "moe/expert/glu.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/structure.hpp"

struct OwnRouter {
  using Scalar = float;
  moe::Index num_experts() const { return 4; }
  moe::Index model_dim() const { return 8; }
  void logits(const moe::ConstMatrixRef<float>&, const moe::Context&, moe::MatrixRef<float> out) const {
    out.setZero();
  }
};

auto small(const moe::MoeLayer<OwnRouter, moe::TopKGate, moe::ExpertPool<moe::Glu>>& layer) {
  return moe::take_experts(layer, {0, 1});
}
