// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/visit.hpp"
#include "moe/mpi/sharded_experts.hpp"
#include "moe/mpi/sparse_exchange.hpp"

namespace moe::inline MOE_ABI::mpi {

namespace detail {

/// The parameters of one scalar type that every rank has.
template <class T>
struct CollectLeaves {
  static constexpr bool kSkipsShards = true;
  std::vector<std::span<T>>& leaves;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf& leaf) const {
    if constexpr (std::is_same_v<ParameterScalar<Leaf>, T>) leaves.push_back(parameter_span(leaf));
  }
  template <class... Sets>
  void shards(Sets&...) const {}
};

/// All of them as one message, as most are small.
template <class T, Communicator C, class Gradient>
void all_reduce_leaves(const C& ranks, Gradient& gradient) {
  std::vector<std::span<T>> leaves;
  moe::visit(CollectLeaves<T>{leaves}, gradient);
  std::vector<T> values;
  for (const std::span<T> leaf : leaves) values.insert(values.end(), leaf.begin(), leaf.end());
  if (values.empty()) return;
  all_reduce<T>(ranks, values);
  auto from = values.begin();
  for (const std::span<T> leaf : leaves) {
    std::copy_n(from, leaf.size(), leaf.begin());
    from += std::ssize(leaf);
  }
}

}  // namespace detail

/// Gives every copy of an expert the sum of the gradients of all its copies, in the order of the ranks that hold them,
/// so that copies that were equal stay so; nothing to do without copies. Collective. Throws std::invalid_argument for
/// experts that are not of one size, and slices with parameters in common, see ShardedExperts::slices_are_apart().
template <class X, Communicator C>
void sum_copies(ShardedExperts<X, C>& gradient) {
  const Placement& placement = gradient.placement();
  if (!gradient.slices_are_apart())
    fail("moe::mpi::all_reduce_gradient: ", placement.slices(),
         " slices of experts that have parameters in common (output biases, gates), expected experts without, or whole "
         "ones to be trained");
  if constexpr (detail::IndexedSet<X>) {
    if (placement.copies() == 0) return;
    const auto held = [&](Index e) -> auto& { return gradient.held(e); };
    const auto& first = gradient.shard()[0];
    SparseExchange<C> exchange;
    sparse_reduce_scatter(gradient.ranks(), placement, reduced_bytes(first), held, held, exchange);
    sparse_all_gather(gradient.ranks(), placement, gathered_bytes(first), held, held, exchange);
  }
}

namespace detail {

struct SumCopies {
  static constexpr bool kSkipsShards = true;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf&) const {}
  template <class Set>
  void shards(Set& gradient) const {
    sum_copies(gradient);
  }
};

}  // namespace detail

/// What backward of a layer with sharded experts leaves to do before an optimiser may step: adds up over the ranks, in
/// their order, the gradient of all that every rank has (routers, gates, branches, layers around), and that of copies
/// of experts. Shards themselves are whole already. Collective. Losses are sums over all ranks then: where they are
/// means, over the tokens of all. Throws std::invalid_argument for slices of experts that have parameters in common.
template <Communicator C, class Gradient>
void all_reduce_gradient(const C& ranks, Gradient& gradient) {
  detail::all_reduce_leaves<float>(ranks, gradient);
  detail::all_reduce_leaves<double>(ranks, gradient);
  moe::visit(detail::SumCopies{}, gradient);
}

}  // namespace moe::inline MOE_ABI::mpi
