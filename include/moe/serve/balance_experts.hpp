// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Where experts and their copies are: place p is on rank p / (places per rank), ranks of a node one after the other.
struct BalancedPlacement {
  std::vector<Index> expert_of_place;                ///< [num_places]
  std::vector<std::vector<Index>> places_of_expert;  ///< [num_experts], each at least one, ascending

  Index copies(Index expert) const { return std::ssize(places_of_expert[static_cast<std::size_t>(expert)]); }
};

/// What places are made of. Each number divides those that are made of it.
struct PlacementShape {
  Index places = 0;  ///< experts and copies together, at least as many as experts
  Index ranks = 1;   ///< each has equally many places
  Index nodes = 1;   ///< each has equally many ranks
  Index groups = 1;  ///< of consecutive experts that should stay on one node, as a gate that takes groups likes it
};

namespace detail {

/// Packs items into packs of equally many: in the order of falling weights each goes to the lightest pack with room.
/// With one in each they stay in their order, as in the published code. Returns (pack, place in the pack) of each item.
inline std::vector<std::pair<Index, Index>> pack_evenly(std::span<const double> weight, Index packs) {
  const Index items = std::ssize(weight), room = items / packs;
  std::vector<Index> order(weight.size());
  std::iota(order.begin(), order.end(), Index{0});
  if (room > 1)
    std::ranges::stable_sort(order, std::ranges::greater(),
                             [&](Index i) { return weight[static_cast<std::size_t>(i)]; });
  std::vector<double> load(static_cast<std::size_t>(packs));
  std::vector<Index> used(load.size());
  std::vector<std::pair<Index, Index>> place(weight.size());
  for (const Index i : order) {
    std::size_t best = load.size();
    for (std::size_t pack = 0; pack < load.size(); ++pack)
      if (used[pack] < room && (best == load.size() || load[pack] < load[best])) best = pack;
    place[static_cast<std::size_t>(i)] = {static_cast<Index>(best), used[best]++};
    load[best] += weight[static_cast<std::size_t>(i)];
  }
  return place;
}

/// Experts of so many replicas: each once, then one copy after the other of the one with the largest load per copy.
inline std::vector<Index> replicate(std::span<const double> load, Index replicas) {
  std::vector<Index> expert(load.size()), count(load.size(), 1);
  std::iota(expert.begin(), expert.end(), Index{0});
  while (std::ssize(expert) < replicas) {
    std::size_t most = 0;
    for (std::size_t e = 1; e < load.size(); ++e)
      if (load[e] / static_cast<double>(count[e]) > load[most] / static_cast<double>(count[most])) most = e;
    ++count[most];
    expert.push_back(static_cast<Index>(most));
  }
  return expert;
}

inline void require_placement(std::span<const double> load, const PlacementShape& shape) {
  constexpr const char* kFunction = "moe::balance_experts";
  const Index experts = std::ssize(load);
  for (const auto& [name, number] : {std::pair("places", shape.places), std::pair("ranks", shape.ranks),
                                     std::pair("nodes", shape.nodes), std::pair("groups", shape.groups)})
    if (number < 1) fail(kFunction, ": ", name, " = ", number, ", expected at least 1");
  if (experts < 1 || shape.places < experts)
    fail(kFunction, ": ", shape.places, " places for ", experts, " experts, expected at least 1 of each");
  if (experts % shape.groups != 0)
    fail(kFunction, ": ", experts, " experts in ", shape.groups, " groups, expected equally many in each");
  if (shape.places % shape.ranks != 0)
    fail(kFunction, ": ", shape.places, " places on ", shape.ranks, " ranks, expected equally many on each");
  if (shape.ranks % shape.nodes != 0)
    fail(kFunction, ": ", shape.ranks, " ranks on ", shape.nodes, " nodes, expected equally many on each");
  for (Index e = 0; e < experts; ++e)
    if (const double of = load[static_cast<std::size_t>(e)]; !(of >= 0 && std::isfinite(of)))
      fail(kFunction, ": load of expert ", e, " is ", of, ", expected a finite number that is not negative");
}

}  // namespace detail

/// Places for experts of unequal load, so that ranks have about equally much to do: what is busiest gets copies, and
/// copies, which share the load, are packed onto ranks. Where the groups can be dealt out to the nodes evenly, each
/// stays on one, and nodes are balanced first, then what is on each; else nodes and groups do not matter.
///   load  [num_experts], >= 0: tokens of each, as counted, or as expected
/// The same algorithm as DeepSeek's expert parallelism load balancer, with its order of places
/// (https://github.com/deepseek-ai/EPLB). Of equal loads the lower id comes first. Throws std::invalid_argument for
/// shapes that do not divide and loads that are none. O(places * (num_experts + ranks)).
inline BalancedPlacement balance_experts(std::span<const double> load, const PlacementShape& shape) {
  detail::require_placement(load, shape);
  const Index experts = std::ssize(load);
  const bool by_node = shape.groups % shape.nodes == 0;
  const Index nodes = by_node ? shape.nodes : 1, groups = by_node ? shape.groups : 1;
  const Index group_size = experts / groups;
  std::vector<double> group_load(static_cast<std::size_t>(groups));
  for (Index e = 0; e < experts; ++e)
    group_load[static_cast<std::size_t>(e / group_size)] += load[static_cast<std::size_t>(e)];
  const auto node_of_group = detail::pack_evenly(group_load, nodes);

  BalancedPlacement result;
  result.places_of_expert.resize(load.size());
  for (Index node = 0; node < nodes; ++node) {
    std::vector<Index> ids(static_cast<std::size_t>(experts / nodes));  // of the node, as its groups were packed
    for (Index e = 0; e < experts; ++e) {
      const auto [of, place] = node_of_group[static_cast<std::size_t>(e / group_size)];
      if (of == node) ids[static_cast<std::size_t>(place * group_size + e % group_size)] = e;
    }
    std::vector<double> own;
    for (const Index e : ids) own.push_back(load[static_cast<std::size_t>(e)]);
    const std::vector<Index> replica = detail::replicate(own, shape.places / nodes);
    std::vector<Index> copies(ids.size());
    for (const Index r : replica) ++copies[static_cast<std::size_t>(r)];
    std::vector<double> share;
    for (const Index r : replica)
      share.push_back(own[static_cast<std::size_t>(r)] / static_cast<double>(copies[static_cast<std::size_t>(r)]));
    const Index ranks = shape.ranks / nodes, per_rank = shape.places / shape.ranks;
    const auto rank_of = detail::pack_evenly(share, ranks);
    std::vector<Index> on_node(replica.size());
    for (std::size_t r = 0; r < replica.size(); ++r)
      on_node[static_cast<std::size_t>(rank_of[r].first * per_rank + rank_of[r].second)] =
          ids[static_cast<std::size_t>(replica[r])];
    result.expert_of_place.insert(result.expert_of_place.end(), on_node.begin(), on_node.end());
  }
  for (std::size_t p = 0; p < result.expert_of_place.size(); ++p)
    result.places_of_expert[static_cast<std::size_t>(result.expert_of_place[p])].push_back(static_cast<Index>(p));
  return result;
}

/// Load of each rank, the copies of an expert sharing its load evenly. Throws std::invalid_argument for loads of other
/// experts, and ranks that do not divide the places.
inline std::vector<double> rank_loads(std::span<const double> load, const BalancedPlacement& placement, Index ranks) {
  const Index places = std::ssize(placement.expert_of_place);
  if (std::ssize(load) != std::ssize(placement.places_of_expert) || ranks < 1 || places % ranks != 0)
    fail("moe::rank_loads: loads of ", load.size(), " experts and ", ranks, " ranks, expected those of ",
         placement.places_of_expert.size(), " experts on ", places, " places");
  std::vector<double> loads(static_cast<std::size_t>(ranks));
  for (Index p = 0; p < places; ++p) {
    const Index e = placement.expert_of_place[static_cast<std::size_t>(p)];
    loads[static_cast<std::size_t>(p / (places / ranks))] +=
        load[static_cast<std::size_t>(e)] / static_cast<double>(placement.copies(e));
  }
  return loads;
}

}  // namespace moe::inline MOE_ABI
