// SPDX-License-Identifier: MIT
#include "moe/expert/offset.hpp"
#include "moe/layer/adapters.hpp"

auto adapted(const moe::ExpertPool<moe::Offset>& pool) { return moe::with_adapters(pool, {}, 1); }
