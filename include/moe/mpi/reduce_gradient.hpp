// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/visit.hpp"
#include "moe/mpi/sharded_experts.hpp"

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

/// The bytes of all parameters of an expert, one after the other.
struct AppendBytes {
  std::vector<std::byte>& bytes;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, const Leaf& leaf) const {
    const auto of_leaf = std::as_bytes(parameter_span(leaf));
    bytes.insert(bytes.end(), of_leaf.begin(), of_leaf.end());
  }
};

/// Sets an expert to such bytes, or adds them.
struct TakeBytes {
  std::span<const std::byte>& bytes;
  bool is_first;

  void prefix(std::string_view) const {}
  template <class Leaf>
  void operator()(std::string_view, Leaf& leaf) const {
    for (auto& value : parameter_span(leaf)) {
      std::remove_cvref_t<decltype(value)> other;
      std::memcpy(&other, bytes.data(), sizeof(other));
      bytes = bytes.subspan(sizeof(other));
      value = is_first ? other : value + other;
    }
  }
};

/// The ranks that hold an expert, each once, ascending.
inline std::vector<Index> ranks_of(const ShardLayout& layout, Index e) {
  std::vector<Index> ranks;
  for (const ShardLayout::Holder& h : layout.holders(e)) ranks.push_back(h.rank);
  std::ranges::sort(ranks);
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

}  // namespace detail

/// Gives every copy of an expert the sum of the gradients of all its copies, in the order of the ranks that hold them,
/// so that copies that were equal stay so; nothing to do without copies. Collective. Throws std::invalid_argument for
/// slices with parameters in common, see ShardedExperts::slices_are_apart().
template <class X, Communicator C>
void sum_copies(ShardedExperts<X, C>& gradient) {
  const ShardLayout& layout = gradient.layout();
  if (!gradient.slices_are_apart())
    fail("moe::mpi::all_reduce_gradient: ", layout.slices(),
         " slices of experts that have parameters in common (output biases, gates), expected experts without, or whole "
         "ones to be trained");
  if (layout.is_contiguous()) return;
  if constexpr (detail::IndexedSet<X>) {
    const Index rank = gradient.ranks().rank(), size = gradient.ranks().size();
    const auto own = layout.experts_of(rank);
    std::vector<std::vector<std::byte>> bytes(own.size());  // of each expert that this rank shares with others
    std::vector<std::vector<Index>> sharers(own.size());
    for (std::size_t l = 0; l < own.size(); ++l) {
      sharers[l] = detail::ranks_of(layout, own[l]);
      if (sharers[l].size() > 1) moe::visit(detail::AppendBytes{bytes[l]}, gradient.shard()[static_cast<Index>(l)]);
    }
    // By expert on both sides, as ranks hold them in orders of their own.
    std::vector<std::size_t> by_expert(own.size());
    for (std::size_t l = 0; l < own.size(); ++l) by_expert[l] = l;
    std::ranges::sort(by_expert, {}, [&](std::size_t l) { return own[l]; });
    std::vector<std::byte> send;
    std::vector<Index> counts(static_cast<std::size_t>(size));
    for (Index r = 0; r < size; ++r)
      for (const std::size_t l : by_expert)
        if (r != rank && std::ranges::binary_search(sharers[l], r)) {
          send.insert(send.end(), bytes[l].begin(), bytes[l].end());
          counts[static_cast<std::size_t>(r)] += std::ssize(bytes[l]);
        }
    std::vector<std::byte> received(send.size());
    all_to_all(gradient.ranks(), send, counts, received, counts);
    std::vector<std::size_t> next(counts.size());  // of each rank, the first byte that is not taken
    for (std::size_t r = 1; r < next.size(); ++r) next[r] = next[r - 1] + static_cast<std::size_t>(counts[r - 1]);
    for (const std::size_t l : by_expert) {
      if (sharers[l].size() < 2) continue;
      for (const Index r : sharers[l]) {
        std::span<const std::byte> from = bytes[l];
        if (r != rank) {
          from = std::span(received).subspan(next[static_cast<std::size_t>(r)], bytes[l].size());
          next[static_cast<std::size_t>(r)] += bytes[l].size();
        }
        moe::visit(detail::TakeBytes{from, r == sharers[l].front()}, gradient.shard()[static_cast<Index>(l)]);
      }
    }
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
