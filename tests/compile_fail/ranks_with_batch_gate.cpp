// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/gate/expert_choice.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Shards : moe::ExpertPool<moe::Mlp> {
  using Pool = moe::ExpertPool<moe::Mlp>;
  static constexpr bool kCollective = true;
  explicit Shards(Pool pool) : Pool(std::move(pool)) {}
};

moe::MoeLayer layer(moe::LinearRouter(2, 3), moe::ExpertChoiceGate{}, Shards(Shards::Pool::random(2, 3, 4, 1)));
