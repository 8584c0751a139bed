// SPDX-License-Identifier: MIT
#include "moe/expert/linear.hpp"
#include "moe/layer/structure.hpp"

auto parts(const moe::Linear& expert) { return moe::split_expert(expert, 2); }
