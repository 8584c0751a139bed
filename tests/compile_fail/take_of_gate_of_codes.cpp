// SPDX-License-Identifier: MIT
#include "moe/expert/glu.hpp"
#include "moe/gate/dselect_k.hpp"
#include "moe/gate/wrap/straight_through.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/linear.hpp"

using Gate = moe::StraightThrough<moe::DSelectKGate>;

auto small(const moe::MoeLayer<moe::LinearRouter, Gate, moe::ExpertPool<moe::Glu>>& layer) {
  return moe::take_experts(layer, {0, 1});
}
