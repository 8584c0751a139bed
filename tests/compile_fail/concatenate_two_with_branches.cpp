// SPDX-License-Identifier: MIT
#include "moe/expert/glu.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/linear.hpp"

using Layer = moe::WithBranches<moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Glu>>, moe::Glu>;

void both(const Layer& a, const Layer& b) { moe::concatenate(a, b); }
