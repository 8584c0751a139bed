// SPDX-License-Identifier: MIT
#include "moe/layer/diversify.hpp"

struct Expert {
  using Scalar = float;
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
};

auto copies(const Expert& expert) { return moe::diversify(expert, 2, 0.1, 1); }
