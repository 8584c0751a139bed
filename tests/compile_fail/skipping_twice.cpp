// SPDX-License-Identifier: MIT
#include "moe/gate/top_k.hpp"
#include "moe/gate/wrap/with_skipping.hpp"

moe::WithSkipping<moe::WithSkipping<moe::TopKGate>> gate;
