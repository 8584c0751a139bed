// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/layer/branches.hpp"

moe::WithBranches layer(moe::Mlp(3, 4), moe::Mlp(3, 4));
