// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Gate {
  void route(const moe::Logits<float>& logits, const moe::Context&, moe::Routing<float>& routing) const {
    routing.resize(logits.rows(), 1);
  }
};

moe::MoeLayer layer(moe::LinearRouter(2, 3), moe::StraightThrough<Gate>{},
                    moe::ExpertPool<moe::Mlp>::random(2, 3, 4, 1));
