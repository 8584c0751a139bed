// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "moe/train/trainer.hpp"

using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;

void train(moe::Trainer<Layer>& trainer, const moe::Matrix<float>& tokens) {
  trainer.accumulate(tokens, moe::Step{}, [](const moe::Matrix<float>&) { return 0.0; });
}
