// SPDX-License-Identifier: MIT
#include "moe/compress/quantise.hpp"

auto small(const moe::Mlp& expert) { return moe::quantise(expert, 4); }
