// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <functional>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

#include "moe/mpi/materialise.hpp"

namespace moe::inline MOE_ABI::mpi {

namespace detail {

/// Places for the shards of all layers, and what they have to do in the layer at hand.
class ShardSlots {
 public:
  /// Equal places, one more on the first ranks where they do not divide.
  ShardSlots(const Topology& topology, Index shards) : topology_(topology) {
    for (Index rank = 0; rank < topology.ranks; ++rank)
      free_.push_back(shards / topology.ranks + (rank < shards % topology.ranks ? 1 : 0));
    next_layer();
  }

  void next_layer() {
    load_.assign(free_.size(), 0);
    node_load_.assign(static_cast<std::size_t>(topology_.nodes()), 0);
  }

  /// On the node with the least load, on the rank with the least there; of equal ones where less is free.
  Index place(double load) {
    return take(load, [&](Index rank) {
      const auto node = static_cast<std::size_t>(topology_.node_of(rank));
      return std::tuple(node_load_[node], free_on(topology_.node_of(rank)), load_[static_cast<std::size_t>(rank)],
                        free_[static_cast<std::size_t>(rank)]);
    });
  }
  /// Where most is free: for experts whose load others will share.
  Index fill() {
    return take(0, [&](Index rank) { return -free_[static_cast<std::size_t>(rank)]; });
  }

 private:
  Index free_on(Index node) const {
    const auto begin = free_.begin() + node * topology_.per_node();
    return std::accumulate(begin, begin + topology_.per_node(), Index{0});
  }
  template <class Cost>
  Index take(double load, const Cost& cost) {
    Index best = -1;
    for (Index rank = 0; rank < topology_.ranks; ++rank)
      if (free_[static_cast<std::size_t>(rank)] > 0 && (best < 0 || cost(rank) < cost(best))) best = rank;
    --free_[static_cast<std::size_t>(best)];
    load_[static_cast<std::size_t>(best)] += load;
    node_load_[static_cast<std::size_t>(topology_.node_of(best))] += load;
    return best;
  }

  Topology topology_;
  std::vector<Index> free_;
  std::vector<double> load_, node_load_;
};

}  // namespace detail

/// Heterogeneous sharding: owners for the experts of all layers together, so that ranks own equally many of them (or
/// one more) and have about equally much to do in each layer. The `overlap` busiest experts of a layer, which
/// materialise() copies, take what places the others leave: layers in the order of falling largest loads, in each the
/// experts in that of falling loads, to the node with least to do in the layer, there to such a rank.
///   layer_loads  [layers][experts], >= 0; layers may have different numbers of experts
/// For every hundred iterations or so, as shards have to move. Throws std::invalid_argument for loads that are none,
/// and a negative overlap. O(layers * experts * ranks). Hecate, algorithm 2 (arXiv:2502.02581).
inline std::vector<Placement> heterogeneous_sharding(std::span<const std::vector<double>> layer_loads,
                                                     const Topology& topology, Index overlap) {
  constexpr const char* kFunction = "moe::mpi::heterogeneous_sharding";
  topology.validate(kFunction);
  if (overlap < 0) fail(kFunction, ": overlap = ", overlap, ", expected a number that is not negative");
  Index shards = 0;
  std::vector<double> largest;
  std::vector<std::vector<Index>> owner;
  for (const std::vector<double>& loads : layer_loads) {
    detail::require_loads(kFunction, loads, std::ssize(loads));
    shards += std::ssize(loads);
    largest.push_back(loads.empty() ? 0 : std::ranges::max(loads));
    owner.emplace_back(loads.size());
  }
  const std::vector<Index> layers = detail::busiest(largest, std::ssize(largest));
  detail::ShardSlots room(topology, shards);
  const auto for_each = [&](const auto& place) {
    for (const Index layer : layers) {
      const auto at = static_cast<std::size_t>(layer);
      const std::vector<Index> experts = detail::busiest(layer_loads[at], std::ssize(layer_loads[at]));
      const auto shared = static_cast<std::size_t>(std::min(overlap, std::ssize(experts)));
      room.next_layer();
      place(layer_loads[at], owner[at], std::span(experts).first(shared), std::span(experts).subspan(shared));
    }
  };
  for_each([&](const auto& loads, auto& of, std::span<const Index>, std::span<const Index> others) {
    for (const Index e : others) of[static_cast<std::size_t>(e)] = room.place(loads[static_cast<std::size_t>(e)]);
  });
  for_each([&](const auto&, auto& of, std::span<const Index> shared, std::span<const Index>) {
    for (const Index e : shared) of[static_cast<std::size_t>(e)] = room.fill();
  });
  std::vector<Placement> result;
  for (auto& of : owner) result.emplace_back(std::move(of), topology.ranks);
  return result;
}

}  // namespace moe::inline MOE_ABI::mpi
