// SPDX-License-Identifier: MIT
#include "moe/expert/mlp.hpp"
#include "moe/layer/layer_expert.hpp"

moe::LayerExpert expert(moe::Mlp(3, 4));
