// SPDX-License-Identifier: MIT
#include "moe/compress/quantise.hpp"
#include "moe/expert/offset.hpp"

auto small(const moe::Offset& expert) { return moe::quantise(expert, moe::WeightFormat::int4()); }
