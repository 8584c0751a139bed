// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/router/linear.hpp"

struct Mixture {
  using Scalar = float;
  moe::Index num_experts() const { return 2; }
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
};

moe::MoeLayer layer(moe::LinearRouter(2, 3), moe::TopKGate{}, Mixture{});
