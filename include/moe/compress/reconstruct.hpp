// SPDX-License-Identifier: MIT
#pragma once

#include "moe/compress/merge.hpp"

namespace moe::inline MOE_ABI {

/// Which clusters of a plan become the mean of their experts: none; all of a layer that is left with few of them; or
/// those of few experts.
enum class ReconstructRule { Never, FewClusters, SmallClusters };

struct ReconstructOptions {
  ReconstructRule rule = ReconstructRule::FewClusters;
  Index most = 3;  ///< clusters of the layer, or experts of a cluster, that count as few; >= 1
};

/// The layer with one expert for each cluster of a plan, as prune() has it, but where the rule says so the mean of the
/// cluster, as merge() has it: of all parameters and of the rows of the router. Where a layer is left with few experts,
/// each of them stands for many, and one of many is a poor copy of them all. Clusters that keep their representative
/// keep it bit for bit.
///   const auto clusters = moe::complete_linkage(moe::router_distance(layer.router()), 2);
///   const auto small = moe::reconstruct(layer, moe::nearest_to_means(clusters, layer.experts()));
/// `merge` says what experts count in a mean, the same by default. Throws std::invalid_argument unless most >= 1, and
/// as merge(). Lee et al., "STUN" (arXiv:2409.06211): at most 3 clusters, 2 in the code published.
template <class Layer>
Compressed<Layer> reconstruct(const Layer& layer, const ExpertPlan& plan, const ReconstructOptions& options = {},
                              const MergeOptions& merge = {}) {
  constexpr const char* kFunction = "moe::reconstruct";
  if (options.most < 1) fail(kFunction, ": most is ", options.most, ", expected at least 1");
  detail::require_plan(kFunction, plan);
  ExpertPlan means = plan;  // without the other experts of clusters that keep their representative
  for (Index i = 0; i < plan.num_kept(); ++i) {
    const std::vector<Index> members = plan.members(i);
    const Index count = options.rule == ReconstructRule::FewClusters ? plan.num_kept() : std::ssize(members);
    if (options.rule != ReconstructRule::Never && count <= options.most) continue;
    for (const Index e : members)
      if (e != plan.kept[static_cast<std::size_t>(i)])
        means.map.place[static_cast<std::size_t>(e)] = ExpertMap::kDropped;
  }
  Compressed<Layer> result = moe::merge(layer, means, merge);
  result.experts = plan.map;
  return result;
}

}  // namespace moe::inline MOE_ABI
