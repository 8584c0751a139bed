// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/wrap/grouped.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Gate {
  static constexpr bool kPerToken = true;
};

moe::MoeLayer layer(moe::LinearRouter(2, 3), moe::GroupedGate<Gate>{}, moe::ExpertPool<moe::Mlp>::random(2, 3, 4, 1));
