// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::mpi {

/// Which ranks hold which experts of a layer: each has one owner, which keeps its parameters and optimiser state, and
/// maybe holders beside it for a while. A rank may own none. A plain value.
class Placement {
 public:
  Placement() = default;
  /// Expert e is on rank owner[e] alone. Throws std::invalid_argument for owners that are not in [0, ranks).
  Placement(std::vector<Index> owner, Index ranks) : owner_(std::move(owner)), ranks_(ranks) {
    constexpr const char* kFunction = "moe::mpi::Placement";
    if (ranks < 1) fail(kFunction, ": ranks = ", ranks, ", expected at least 1");
    for (const Index rank : owner_) require_rank(kFunction, rank);
    for (const Index rank : owner_) holders_.push_back({rank});
  }
  /// Rank r owns experts [r E / D, (r + 1) E / D), rounded down: consecutive ones, as many as the other ranks or one
  /// more. Throws std::invalid_argument for a negative number of experts, and less than one rank.
  static Placement contiguous(Index experts, Index ranks) {
    if (experts < 0) fail("moe::mpi::Placement::contiguous: experts = ", experts, ", expected at least 0");
    std::vector<Index> owner;
    for (Index r = 0; r < ranks; ++r)
      owner.insert(owner.end(), static_cast<std::size_t>((r + 1) * experts / ranks - r * experts / ranks), r);
    return Placement(std::move(owner), ranks);
  }

  Index experts() const { return std::ssize(owner_); }
  Index ranks() const { return ranks_; }
  Index owner(Index expert) const { return owner_[static_cast<std::size_t>(expert)]; }
  /// Ascending, the owner among them.
  std::span<const Index> holders(Index expert) const { return holders_[static_cast<std::size_t>(expert)]; }
  bool holds(Index rank, Index expert) const { return std::ranges::binary_search(holders(expert), rank); }

  /// Lets a rank hold an expert, too, if it does not. Throws std::invalid_argument for a rank or expert out of range.
  void add(Index expert, Index rank) {
    constexpr const char* kFunction = "moe::mpi::Placement::add";
    require_rank(kFunction, rank);
    if (expert < 0 || expert >= experts())
      fail(kFunction, ": expert ", expert, ", expected 0 <= expert < experts = ", experts());
    auto& of = holders_[static_cast<std::size_t>(expert)];
    const auto at = std::ranges::lower_bound(of, rank);
    if (at == of.end() || *at != rank) of.insert(at, rank);
  }

  /// Experts that a rank owns, and those that it holds, ascending.
  std::vector<Index> owned_by(Index rank) const {
    return such_that([&](Index e) { return owner(e) == rank; });
  }
  std::vector<Index> held_by(Index rank) const {
    return such_that([&](Index e) { return holds(rank, e); });
  }
  /// Pairs of an expert and a rank that holds it without owning it.
  Index copies() const {
    Index count = 0;
    for (const auto& of : holders_) count += std::ssize(of) - 1;
    return count;
  }
  /// The same experts with their owners alone.
  Placement shards() const { return Placement(owner_, ranks_); }

  /// Equal on ranks that agree, and hardly else: for them to compare.
  std::uint64_t hash() const {
    std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a of the numbers
    const auto add = [&](Index number) { hash = (hash ^ static_cast<std::uint64_t>(number)) * 0x100000001b3u; };
    add(ranks_);
    for (Index e = 0; e < experts(); ++e) {
      add(-1 - owner(e));
      for (const Index rank : holders(e)) add(rank);
    }
    return hash;
  }

  bool operator==(const Placement&) const = default;

 private:
  void require_rank(const char* function, Index rank) const {
    if (rank < 0 || rank >= ranks_) fail(function, ": rank ", rank, ", expected 0 <= rank < ranks = ", ranks_);
  }
  template <class Is>
  std::vector<Index> such_that(const Is& is) const {
    std::vector<Index> ids;
    for (Index e = 0; e < experts(); ++e)
      if (is(e)) ids.push_back(e);
    return ids;
  }

  std::vector<Index> owner_;
  std::vector<std::vector<Index>> holders_;
  Index ranks_ = 1;
};

}  // namespace moe::inline MOE_ABI::mpi
