// SPDX-License-Identifier: MIT
#include "moe/expert/frozen.hpp"
#include "moe/gate/top_k.hpp"

const moe::Frozen gate(moe::TopKGate{});
