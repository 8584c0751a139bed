// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/gate/wrap/with_skipping.hpp"

moe::WithChance<moe::WithSkipping<moe::WithChance<moe::TopKGate>>> gate;
