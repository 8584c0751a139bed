// SPDX-License-Identifier: MIT
#include "moe/layer/routed_experts.hpp"

struct Set {
  using Scalar = float;
  moe::Index size() const { return 2; }
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
};

moe::RoutedExperts mixture(Set{});
