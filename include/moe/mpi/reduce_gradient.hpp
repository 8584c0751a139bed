// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
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

namespace detail {

/// What every slice of an expert has of a gradient.
struct CollectAlike {
  const SliceMap& map;
  std::vector<double>& values;

  template <class Leaf>
  void operator()(const std::string& name, const Leaf& leaf) const {
    if (map.kind(name) != SliceKind::Alike) return;
    const auto own = parameter_span(leaf);
    values.insert(values.end(), own.begin(), own.end());
  }
};
/// The sums of it; and nothing of what the first slice has alone.
struct PutAlike {
  const SliceMap& map;
  std::vector<double>::const_iterator& from;

  template <class Leaf>
  void operator()(const std::string& name, Leaf& leaf) const {
    const SliceKind kind = map.kind(name);
    for (auto& value : parameter_span(leaf)) {
      using S = std::remove_cvref_t<decltype(value)>;
      if (kind == SliceKind::Alike) value = static_cast<S>(*from++);
      if (kind == SliceKind::OnFirst && map.slice() != 0) value = S{0};
    }
  }
};

}  // namespace detail

/// Gives every copy of an expert the sum of the gradients of all its copies, in the order of the ranks that hold them,
/// so that copies that were equal stay so, and likewise every slice that of what all slices have. Nothing to do for
/// experts that are whole and on one rank each. Collective. Throws std::invalid_argument for copies that are not of one
/// size, and slices that ShardedExperts::of() has not cut.
template <class X, Communicator C>
void sum_shards(ShardedExperts<X, C>& gradient) {
  const Placement& placement = gradient.placement();
  if constexpr (detail::IndexedSet<X>) {
    if (placement.slices() > 1) {
      if (gradient.slice_map() == nullptr)
        fail("moe::mpi::all_reduce_gradient: ", placement.slices(),
             " slices that ShardedExperts::of() has not cut, expected those of of()");
      std::vector<double> values;
      for (const Index e : gradient.held())
        moe::visit(detail::CollectAlike{*gradient.slice_map(), values}, std::as_const(gradient).held(e));
      all_reduce<double>(*gradient.slice_ranks(), values);
      auto from = values.cbegin();
      for (const Index e : gradient.held()) moe::visit(detail::PutAlike{*gradient.slice_map(), from}, gradient.held(e));
    }
    if (placement.copies() == 0) return;
    const auto held = [&](Index e) -> auto& { return gradient.held(e); };
    const auto& first = gradient.shard()[0];
    SparseExchange<C> exchange;
    sparse_reduce_scatter(gradient.ranks(), placement, reduced_bytes(first), held, held, exchange);
    sparse_all_gather(gradient.ranks(), placement, gathered_bytes(first), held, held, exchange);
  }
}

namespace detail {

struct SumShards {
  static constexpr bool kSkipsShards = true;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf&) const {}
  template <class Set>
  void shards(Set& gradient) const {
    sum_shards(gradient);
  }
};

}  // namespace detail

/// What backward of a layer with sharded experts leaves to do before an optimiser may step: adds up over the ranks, in
/// their order, the gradient of all that every rank has (routers, gates, branches, layers around), that of copies of
/// experts, and of what slices have in common. Shards themselves are whole already. Collective. Losses are sums over
/// all ranks then: where they are means, over the tokens of all.
template <Communicator C, class Gradient>
void all_reduce_gradient(const C& ranks, Gradient& gradient) {
  detail::all_reduce_leaves<float>(ranks, gradient);
  detail::all_reduce_leaves<double>(ranks, gradient);
  moe::visit(detail::SumShards{}, gradient);
}

}  // namespace moe::inline MOE_ABI::mpi
