// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Gate {
  void route(const moe::Logits<float>&, const moe::Context&, moe::Routing<float>&) const {}
};

moe::MoeLayer layer(moe::LinearRouter(2, 3), Gate{}, moe::ExpertPool<moe::Mlp>::random(2, 3, 4, 1));
