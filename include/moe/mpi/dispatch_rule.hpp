// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "moe/mpi/placement.hpp"
#include "moe/mpi/topology.hpp"

namespace moe::inline MOE_ABI::mpi {

namespace detail {

inline void require_topology_of(const char* function, const Placement& placement, const Topology& topology) {
  topology.validate(function);
  if (topology.ranks != placement.ranks())
    fail(function, ": topology of ", topology.ranks, " ranks, expected ", placement.ranks(), " as in the placement");
}

inline void require_loads(const char* function, std::span<const double> loads, Index experts) {
  if (std::ssize(loads) != experts) fail(function, ": ", loads.size(), " loads, expected one per expert, ", experts);
  for (std::size_t e = 0; e < loads.size(); ++e)
    if (!(loads[e] >= 0 && std::isfinite(loads[e])))
      fail(function, ": load of expert ", e, " is ", loads[e], ", expected a finite number that is not negative");
}

/// The holders of an expert among which a rank divides its tokens, by their shares: itself, else those on its node,
/// else all.
inline std::span<const Index> nearest_holders(const Placement& placement, const Topology& topology, Index source,
                                              Index expert) {
  const std::span<const Index> all = placement.shares(expert);
  const auto between = [&](Index first, Index last) {
    const auto begin = std::ranges::lower_bound(all, first), end = std::ranges::lower_bound(all, last);
    return std::span<const Index>(begin, end);
  };
  if (const auto own = between(source, source + 1); !own.empty()) return own;
  const Index first = topology.node_of(source) * topology.per_node();
  if (const auto on_node = between(first, first + topology.per_node()); !on_node.empty()) return on_node;
  return all;
}

}  // namespace detail

/// Where the i-th token that rank `source` has for an expert goes: to the rank itself if it holds the expert, else to a
/// holder on its node, else to any; to equal ones in turn, beginning at another for every source. O(log(holders)).
inline Index holder_for(const Placement& placement, const Topology& topology, Index source, Index expert, Index i) {
  const auto equal = detail::nearest_holders(placement, topology, source, expert);
  return equal[static_cast<std::size_t>((source + i) % std::ssize(equal))];
}

/// Load of each rank when all ranks have equally many tokens for each expert, and divide them as holder_for() does.
///   load  [experts], >= 0, of all ranks together
/// Throws std::invalid_argument for a topology of other ranks, and loads that are none. O(experts * ranks^2).
inline std::vector<double> rank_loads(std::span<const double> load, const Placement& placement,
                                      const Topology& topology) {
  constexpr const char* kFunction = "moe::mpi::rank_loads";
  detail::require_topology_of(kFunction, placement, topology);
  detail::require_loads(kFunction, load, placement.experts());
  std::vector<double> loads(static_cast<std::size_t>(placement.ranks()));
  for (Index e = 0; e < placement.experts(); ++e)
    for (Index source = 0; source < placement.ranks(); ++source) {
      const auto equal = detail::nearest_holders(placement, topology, source, e);
      for (const Index rank : equal)
        loads[static_cast<std::size_t>(rank)] +=
            load[static_cast<std::size_t>(e)] / static_cast<double>(placement.ranks() * std::ssize(equal));
    }
  return loads;
}

/// The largest load over the mean: what ranks wait for. 1 where there is none.
inline double rank_imbalance(std::span<const double> loads) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  return sum > 0 ? std::ranges::max(loads) * static_cast<double>(loads.size()) / sum : 1;
}

}  // namespace moe::inline MOE_ABI::mpi
