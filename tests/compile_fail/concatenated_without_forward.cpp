// SPDX-License-Identifier: MIT
#include "moe/expert/concatenated.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"

struct Set {
  using Scalar = float;
  moe::Index size() const { return 2; }
  moe::Index input_dim() const { return 3; }
  moe::Index output_dim() const { return 3; }
};

moe::Concatenated sets(moe::ExpertPool<moe::Mlp>::random(2, 3, 4, 1), Set{});
