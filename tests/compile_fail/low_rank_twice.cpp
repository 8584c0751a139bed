// SPDX-License-Identifier: MIT
#include "moe/expert/low_rank.hpp"

auto twice(const moe::LowRank<moe::Linear>& expert) { return moe::LowRank<moe::LowRank<moe::Linear>>(expert); }
