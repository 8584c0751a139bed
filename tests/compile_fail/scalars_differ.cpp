// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

using Mlp = moe::BasicMlp<moe::F64>;

moe::MoeLayer layer(moe::LinearRouter(2, 3), moe::TopKGate{}, moe::ExpertPool<Mlp>::random(2, 3, 4, 1));
