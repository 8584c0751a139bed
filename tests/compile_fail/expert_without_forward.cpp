// SPDX-License-Identifier: MIT
#include "moe/expert/pool.hpp"

struct Expert {
  using Scalar = float;
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
};

moe::ExpertPool<Expert> pool({Expert{}, Expert{}});
