// SPDX-License-Identifier: MIT
#include "moe/expert/glu.hpp"
#include "moe/gate/sparse_mixer.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/linear.hpp"

auto twice(const moe::MoeLayer<moe::LinearRouter, moe::SparseMixerGate, moe::ExpertPool<moe::Glu>>& layer) {
  return moe::duplicate_experts(layer, 2);
}
