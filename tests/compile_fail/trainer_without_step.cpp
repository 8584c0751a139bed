// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"
#include "moe/train/trainer.hpp"

using Layer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;

struct Optimiser {
  template <class L>
  struct State {
    explicit State(const L&) {}
  };
};

moe::Trainer<Layer, Optimiser> make(Layer& layer) { return moe::Trainer(layer, Optimiser{}); }
