// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::mpi {

/// Ranks and the nodes that they share, equally many on each, one node after the other. What goes from node to node is
/// slow.
struct Topology {
  Index ranks = 1;
  Index ranks_per_node = 0;  ///< divides ranks; 0: all ranks are on one node

  Index per_node() const { return ranks_per_node == 0 ? ranks : ranks_per_node; }
  Index nodes() const { return ranks / per_node(); }
  Index node_of(Index rank) const { return rank / per_node(); }

  /// Throws std::invalid_argument unless there is a rank, and nodes have equally many.
  void validate(const char* function) const {
    if (ranks < 1) fail(function, ": ranks = ", ranks, ", expected at least 1");
    if (ranks_per_node < 0 || ranks % per_node() != 0)
      fail(function, ": ", ranks, " ranks, ", ranks_per_node, " on a node, expected equally many on each");
  }
};

}  // namespace moe::inline MOE_ABI::mpi
