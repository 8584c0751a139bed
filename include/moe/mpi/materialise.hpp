// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

#include "moe/mpi/dispatch_rule.hpp"

namespace moe::inline MOE_ABI::mpi {

/// How many experts may come to other ranks for an iteration.
struct Materialisation {
  Index overlap = 0;  ///< most experts that are copied, the ones with the largest loads, see overlap_degree()
  Index memory = 0;   ///< most copies on a rank

  void validate(const char* function) const {
    if (overlap < 0 || memory < 0)
      fail(function, ": overlap = ", overlap, ", memory = ", memory, ", expected numbers that are not negative");
  }
};

/// How many experts of so many bytes go through a rank's link while it computes something else.
inline Index overlap_degree(double seconds, double bytes_per_second, double expert_bytes) {
  if (!(seconds >= 0 && bytes_per_second > 0 && expert_bytes > 0))
    fail("moe::mpi::overlap_degree: ", seconds, " s at ", bytes_per_second, " bytes/s, experts of ", expert_bytes,
         " bytes, expected positive numbers");
  return static_cast<Index>(std::min(seconds * bytes_per_second / expert_bytes, 1e9));
}

namespace detail {

/// Experts in the order of falling loads, equal ones ascending, the first `count` of them.
inline std::vector<Index> busiest(std::span<const double> loads, Index count) {
  std::vector<Index> order(loads.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::ranges::stable_sort(order, std::ranges::greater(), [&](Index e) { return loads[static_cast<std::size_t>(e)]; });
  order.resize(static_cast<std::size_t>(std::min(count, std::ssize(loads))));
  return order;
}

/// Room for copies, as it is used up.
class CopySlots {
 public:
  CopySlots(const Topology& topology, Index each) : topology_(topology), on_rank_(to_size(topology.ranks), each) {
    on_node_.assign(to_size(topology.nodes()), each * topology.per_node());
  }

  Index left() const { return std::accumulate(on_node_.begin(), on_node_.end(), Index{0}); }

  /// Adds a copy to a node without the expert first, then to the node with most room, then to the rank with most; to
  /// the first of equal ones. Returns whether there was room.
  bool add(Placement& placement, Index expert) {
    std::vector<bool> has(on_node_.size());
    for (const Index rank : placement.holders(expert)) has[to_size(topology_.node_of(rank))] = true;
    const auto rating = [&](Index rank) {
      const std::size_t node = to_size(topology_.node_of(rank));
      return std::tuple(!has[node], on_node_[node], on_rank_[to_size(rank)]);
    };
    Index best = -1;
    for (Index rank = 0; rank < topology_.ranks; ++rank) {
      if (on_rank_[to_size(rank)] == 0 || placement.holds(rank, expert)) continue;
      if (best < 0 || rating(rank) > rating(best)) best = rank;
    }
    if (best < 0) return false;
    placement.add(expert, best);
    --on_rank_[to_size(best)];
    --on_node_[to_size(topology_.node_of(best))];
    return true;
  }

 private:
  static std::size_t to_size(Index i) { return static_cast<std::size_t>(i); }

  Topology topology_;
  std::vector<Index> on_rank_, on_node_;
};

}  // namespace detail

/// Sparse materialisation: `shards` with copies of the busiest experts on other ranks, for one iteration. With t =
/// overlap and m = memory, the t experts with the largest loads are on all ranks where t <= m. Else D m copies are
/// shared among them in proportion to their loads: rounded, at least one of each while there is room, at most D - 1,
/// nodes without the expert first, then those with most room.
///   loads  [experts], >= 0, of the iteration to come: all ranks must have the same
/// The same result on every rank. Throws std::invalid_argument for other ranks, loads that are none and negative
/// numbers. O(E log E + D^2 m).
/// Qing et al., "Hecate: Unlocking efficient sparse model training via fully sharded sparse data parallelism",
/// algorithm 1 (arXiv:2502.02581).
inline Placement materialise(const Placement& shards, std::span<const double> loads, const Topology& topology,
                             const Materialisation& limits) {
  constexpr const char* kFunction = "moe::mpi::materialise";
  detail::require_topology_of(kFunction, shards, topology);
  detail::require_loads(kFunction, loads, shards.experts());
  limits.validate(kFunction);
  const Index ranks = topology.ranks, top = std::min(limits.overlap, shards.experts());
  const Index memory = std::min(limits.memory, top);
  const std::vector<Index> experts = detail::busiest(loads, top);
  Placement result = shards;
  if (top <= memory) {
    for (const Index e : experts)
      for (Index rank = 0; rank < ranks; ++rank) result.add(e, rank);
    return result;
  }
  double sum = 0;
  for (const Index e : experts) sum += loads[static_cast<std::size_t>(e)];
  detail::CopySlots room(topology, memory);
  for (const Index e : experts) {
    const double share = sum > 0 ? loads[static_cast<std::size_t>(e)] / sum : 1 / static_cast<double>(top);
    const auto wanted = static_cast<Index>(std::round(share * static_cast<double>(ranks * memory)));
    for (Index n = std::min(std::clamp<Index>(wanted, 1, std::max<Index>(1, ranks - 1)), room.left()); n > 0; --n)
      if (!room.add(result, e)) break;
  }
  return result;
}

/// Expert parameters that ranks get from owners for a placement, as all of them together and as one rank does.
inline Index copies_received(const Placement& placement, Index rank) {
  return std::ssize(placement.held_by(rank)) - std::ssize(placement.owned_by(rank));
}
/// Experts that all ranks receive, over those of a gather of all experts to all ranks. 0 with one rank.
inline double gather_volume(const Placement& placement) {
  const Index all = placement.experts() * (placement.ranks() - 1);
  return all > 0 ? static_cast<double>(placement.copies()) / static_cast<double>(all) : 0;
}

}  // namespace moe::inline MOE_ABI::mpi
