// SPDX-License-Identifier: MIT
#include "moe/expert/low_rank.hpp"
#include "moe/expert/offset.hpp"

const moe::LowRank<moe::Offset> expert(moe::Offset(3));
