// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"

moe::WithCapacity<moe::WithChance<moe::WithCapacity<moe::TopKGate>>> gate;
