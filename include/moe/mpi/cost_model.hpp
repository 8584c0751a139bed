// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "moe/mpi/materialise.hpp"

namespace moe::inline MOE_ABI::mpi {

/// Time that grows in a straight line: per start (a message, a call), and per amount (a byte, an operation).
///   seconds = per_start * starts + per_amount * amount
/// For messages alpha and beta, for products of matrices what a call costs, and gamma.
struct LinearCost {
  double per_start = 0;   ///< seconds, >= 0
  double per_amount = 0;  ///< seconds, >= 0

  double seconds(double starts, double amount) const { return per_start * starts + per_amount * amount; }
};

/// What was measured of such a cost.
struct Measured {
  double starts = 1;
  double amount = 0;
  double seconds = 0;  ///< > 0
};

namespace detail {

/// The scale of one column of relative amounts that is nearest to 1.
inline double fit_scale(double sum, double squares) { return squares > 0 ? sum / squares : 0; }

}  // namespace detail

/// The cost with the least sum of squared relative errors, neither number below 0. Measurements should have small
/// amounts, where starts show, and large ones. Throws std::invalid_argument for fewer than two measurements, times that
/// are not positive, and amounts that are negative or all 0.
inline LinearCost fit_cost(std::span<const Measured> measured) {
  constexpr const char* kFunction = "moe::mpi::fit_cost";
  if (measured.size() < 2) fail(kFunction, ": ", measured.size(), " measurements, expected at least 2");
  double aa = 0, ab = 0, bb = 0, a = 0, b = 0;  // normal equations of x a_i + y b_i = 1
  for (const Measured& one : measured) {
    if (!(one.seconds > 0 && one.starts >= 0 && one.amount >= 0 && std::isfinite(one.seconds)))
      fail(kFunction, ": ", one.seconds, " s for ", one.starts, " starts and ", one.amount,
           ", expected a positive time, and amounts that are not negative");
    const double starts = one.starts / one.seconds, amount = one.amount / one.seconds;
    aa += starts * starts, ab += starts * amount, bb += amount * amount;
    a += starts, b += amount;
  }
  if (!(bb > 0)) fail(kFunction, ": all amounts are 0, expected large ones, too");
  const double determinant = aa * bb - ab * ab;
  LinearCost cost;
  if (determinant > 1e-12 * aa * bb) {
    cost = {(a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant};
    if (cost.per_start >= 0 && cost.per_amount >= 0) return cost;
  }
  if (cost.per_amount < 0) return {detail::fit_scale(a, aa), 0};
  return {0, detail::fit_scale(b, bb)};
}

/// What a cluster costs: messages within a node and between nodes, bytes in one direction, and operations of a rank.
struct CostModel {
  LinearCost within_node;    ///< per message, per byte
  LinearCost between_nodes;  ///< per message, per byte
  LinearCost compute;        ///< per call, per operation of experts (a multiply-add is two)
};

/// Amounts from rank to rank: [source, destination].
using RankMatrix = Matrix<double>;

/// Rows that go from rank to rank where rank r has rows(r, e) for expert e, and divides them as holder_for() does.
///   rows  [ranks, experts], >= 0
/// Throws std::invalid_argument for other ranks and experts. O(ranks * experts * holders).
inline RankMatrix rows_between_ranks(const RankMatrix& rows, const Placement& placement, const Topology& topology) {
  constexpr const char* kFunction = "moe::mpi::rows_between_ranks";
  detail::require_topology_of(kFunction, placement, topology);
  if (rows.rows() != placement.ranks() || rows.cols() != placement.experts())
    fail(kFunction, ": rows is [", rows.rows(), ", ", rows.cols(), "], expected [ranks, experts] = [",
         placement.ranks(), ", ", placement.experts(), "]");
  RankMatrix between = RankMatrix::Zero(placement.ranks(), placement.ranks());
  for (Index source = 0; source < placement.ranks(); ++source)
    for (Index e = 0; e < placement.experts(); ++e) {
      const auto equal = detail::nearest_holders(placement, topology, source, e);
      for (const Index rank : equal) between(source, rank) += rows(source, e) / static_cast<double>(std::ssize(equal));
    }
  return between;
}

/// Copies of experts that go from owners to the other holders; the gradients come back the other way.
inline RankMatrix copies_between_ranks(const Placement& placement) {
  RankMatrix between = RankMatrix::Zero(placement.ranks(), placement.ranks());
  for (Index e = 0; e < placement.experts(); ++e)
    for (const Index rank : placement.holders(e))
      if (rank != placement.owner(e)) between(placement.owner(e), rank) += 1;
  return between;
}

namespace detail {

inline void require_bytes(const char* function, const Topology& topology, const RankMatrix& bytes) {
  topology.validate(function);
  if (bytes.rows() != topology.ranks || bytes.cols() != topology.ranks)
    fail(function, ": bytes is [", bytes.rows(), ", ", bytes.cols(),
         "], expected [ranks, ranks] with ranks = ", topology.ranks);
}

/// Messages and bytes of a rank, out and in; it sends and receives at once, so the larger ones take the time.
struct LinkUse {
  double sent = 0, received = 0, messages_sent = 0, messages_received = 0;

  void send(double bytes) { sent += bytes, messages_sent += bytes > 0 ? 1 : 0; }
  void receive(double bytes) { received += bytes, messages_received += bytes > 0 ? 1 : 0; }
  double seconds(const LinearCost& cost) const {
    return cost.seconds(std::max(messages_sent, messages_received), std::max(sent, received));
  }
};

}  // namespace detail

/// Time of an all-to-all in which every rank sends to every other that gets something, until the last one is ready.
///   bytes  [ranks, ranks]; what ranks keep is free
/// Throws std::invalid_argument for other ranks. O(ranks^2).
inline double flat_exchange_seconds(const CostModel& model, const Topology& topology, const RankMatrix& bytes) {
  detail::require_bytes("moe::mpi::flat_exchange_seconds", topology, bytes);
  double slowest = 0;
  for (Index rank = 0; rank < topology.ranks; ++rank) {
    detail::LinkUse within, between;
    for (Index other = 0; other < topology.ranks; ++other) {
      if (other == rank) continue;
      detail::LinkUse& use = topology.node_of(rank) == topology.node_of(other) ? within : between;
      use.send(bytes(rank, other));
      use.receive(bytes(other, rank));
    }
    slowest = std::max(slowest, within.seconds(model.within_node) + between.seconds(model.between_nodes));
  }
  return slowest;
}

/// The same in two hops: on its node a rank hands on to the rank of each place what goes to that place of any node,
/// then ranks of the same place exchange. With G ranks on a node (G - 1) + (D / G - 1) messages in place of D - 1, and
/// bytes that travel twice: faster where messages are many and small.
inline double hierarchical_exchange_seconds(const CostModel& model, const Topology& topology, const RankMatrix& bytes) {
  detail::require_bytes("moe::mpi::hierarchical_exchange_seconds", topology, bytes);
  const Index each = topology.per_node(), ranks = topology.ranks;
  RankMatrix within = RankMatrix::Zero(ranks, each), between = RankMatrix::Zero(ranks, topology.nodes());
  for (Index source = 0; source < ranks; ++source)
    for (Index to = 0; to < ranks; ++to) {
      within(source, to % each) += bytes(source, to);
      between(topology.node_of(source) * each + to % each, topology.node_of(to)) += bytes(source, to);
    }
  double first = 0, second = 0;
  for (Index rank = 0; rank < ranks; ++rank) {
    const Index node = topology.node_of(rank), place = rank % each;
    detail::LinkUse on_node, to_nodes;
    for (Index other = 0; other < each; ++other) {
      if (other == place) continue;
      on_node.send(within(rank, other));
      on_node.receive(within(node * each + other, place));
    }
    for (Index other = 0; other < topology.nodes(); ++other) {
      if (other == node) continue;
      to_nodes.send(between(rank, other));
      to_nodes.receive(between(other * each + place, node));
    }
    first = std::max(first, on_node.seconds(model.within_node));
    second = std::max(second, to_nodes.seconds(model.between_nodes));
  }
  return first + second;
}

/// What a layer does in a training step.
struct StepWork {
  double row_bytes = 0;       ///< of a row in one exchange
  double row_operations = 0;  ///< of experts, forward and backward together
  double calls = 0;           ///< of compute, see CostModel
  double exchanges = 4;       ///< of rows: there and back, forward and backward
  double expert_bytes = 0;    ///< of parameters, which gradients are as large as
  double gathers = 2;         ///< of experts: parameters, gradients; 3 where parameters come again for backward
  double other_seconds = 0;   ///< of everything else, during which experts may be on their way
  bool overlaps = true;       ///< whether they are
};

/// Parts of the time of a step.
struct StepTime {
  double compute = 0;   ///< of experts, on the rank with most rows
  double exchange = 0;  ///< of rows
  double gather = 0;    ///< of experts and their gradients, what other work does not hide
  double other = 0;

  double total() const { return compute + exchange + gather + other; }
};

/// Time of a training step by the model:
///   max_r compute_r + exchanges of rows + max(0, gathers of experts - other_seconds) + other_seconds
/// for a placement of shards alone that of expert parallelism. An estimate, whose figures beyond the machine that it
/// was fitted on are no measurements. Throws std::invalid_argument as rows_between_ranks().
inline StepTime step_time(const CostModel& model, const Topology& topology, const StepWork& work,
                          const RankMatrix& rows, const Placement& placement) {
  const RankMatrix between = rows_between_ranks(rows, placement, topology);
  StepTime time;
  time.compute = model.compute.seconds(work.calls, between.colwise().sum().maxCoeff() * work.row_operations);
  time.exchange = work.exchanges * flat_exchange_seconds(model, topology, between * work.row_bytes);
  const RankMatrix experts = copies_between_ranks(placement) * work.expert_bytes;
  const double gathers = work.gathers * flat_exchange_seconds(model, topology, experts);
  time.gather = std::max(0.0, gathers - (work.overlaps ? work.other_seconds : 0));
  time.other = work.other_seconds;
  return time;
}

}  // namespace moe::inline MOE_ABI::mpi
