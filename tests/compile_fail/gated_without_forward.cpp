// SPDX-License-Identifier: MIT
#include "moe/expert/gated_expert.hpp"

struct Expert {
  using Scalar = float;
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
};

moe::GatedExpert<Expert, moe::F32> gated(Expert{}, moe::Linear(1, 3));
