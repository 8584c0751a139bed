// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"

struct Router {
  using Scalar = float;
  moe::Index num_experts() const { return 2; }
  moe::Index model_dim() const { return 3; }
};

moe::MoeLayer layer(Router{}, moe::TopKGate{}, moe::ExpertPool<moe::Mlp>::random(2, 3, 4, 1));
