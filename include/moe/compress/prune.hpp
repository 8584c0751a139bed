// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/compress/expert_plan.hpp"

namespace moe::inline MOE_ABI {

/// A layer with fewer experts, and where the old ones went.
template <class Layer>
struct Compressed {
  Layer layer;
  ExpertMap experts;
};

/// The layer with the experts that a plan keeps: take_experts(layer, plan.kept). In a plan of clusters each of them
/// takes over what its cluster was asked for, as far as the router, which has rows of the kept experts alone, finds it.
/// A plan that keeps all gives the layer, bit for bit. Of a MoeLayer, WithBranches and a MoeBlock. Throws
/// std::invalid_argument for a plan of another number of experts or whose parts do not fit each other, and where
/// take_experts() does: a gate that chooses more experts than are left is refused.
///   const auto small = moe::prune(layer, moe::keep_best(calibration.use().contributions(), 8)).layer;
template <class Layer>
Compressed<Layer> prune(const Layer& layer, const ExpertPlan& plan) {
  if (layer.num_experts() != plan.num_experts())
    fail("moe::prune: the plan is of ", plan.num_experts(), " experts, expected ", layer.num_experts());
  detail::require_plan("moe::prune", plan);
  return {take_experts(layer, plan.kept), plan.map};
}

}  // namespace moe::inline MOE_ABI
