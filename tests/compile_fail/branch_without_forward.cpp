// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Branch {
  using Scalar = float;
};

moe::WithBranches layer(moe::MoeLayer(moe::LinearRouter(2, 3), moe::TopKGate{},
                                      moe::ExpertPool<moe::Mlp>::random(2, 3, 4, 1)),
                        Branch{});
