// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"
#include "moe/mpi/number_hash.hpp"
#include "moe/serve/balance_experts.hpp"

namespace moe::inline MOE_ABI::mpi {

/// Which ranks hold which experts of a layer. Each has one owner, which where experts are fully sharded keeps its
/// parameters and optimiser state, and maybe holders beside it, with copies; or it is cut into slices, each with a part
/// of the hidden units, on as many consecutive ranks. A rank may own none. A plain value.
class Placement {
 public:
  Placement() = default;
  /// Expert e is on rank owner[e] alone. Throws std::invalid_argument for owners that are not in [0, ranks).
  Placement(std::vector<Index> owner, Index ranks) : owner_(std::move(owner)), ranks_(ranks) {
    constexpr const char* kFunction = "moe::mpi::Placement";
    if (ranks < 1) fail(kFunction, ": ranks = ", ranks, ", expected at least 1");
    for (const Index rank : owner_) require_rank(kFunction, rank);
    for (const Index rank : owner_) holders_.push_back({rank});
    shares_ = holders_;
  }
  /// Rank r owns experts [r E / D, (r + 1) E / D), rounded down: consecutive ones, as many as the other ranks or one
  /// more. With slices, groups of so many ranks take the place of ranks. Throws std::invalid_argument for a negative
  /// number of experts, less than one rank, and slices that do not divide the ranks.
  static Placement contiguous(Index experts, Index ranks, Index slices = 1) {
    constexpr const char* kFunction = "moe::mpi::Placement::contiguous";
    if (experts < 0) fail(kFunction, ": experts = ", experts, ", expected at least 0");
    if (slices < 1 || ranks % slices != 0)
      fail(kFunction, ": ", slices, " slices on ", ranks, " ranks, expected a number that divides them");
    const Index groups = ranks / slices;
    std::vector<Index> owner;
    for (Index g = 0; g < groups; ++g)
      owner.insert(owner.end(), static_cast<std::size_t>((g + 1) * experts / groups - g * experts / groups),
                   g * slices);
    Placement placement(std::move(owner), ranks);
    for (Index e = 0; e < experts; ++e)
      for (Index s = 1; s < slices; ++s) placement.add(e, placement.owner(e) + s);
    placement.slices_ = slices;
    return placement;
  }
  /// Experts and copies where balance_experts() has them, the owner of each is the first rank. Two copies of an expert
  /// on one rank are held once and have two shares. Throws std::invalid_argument where ranks do not divide the places,
  /// and for an expert without a place.
  static Placement placed(const BalancedPlacement& balanced, Index ranks) {
    constexpr const char* kFunction = "moe::mpi::Placement::placed";
    const Index places = std::ssize(balanced.expert_of_place), experts = std::ssize(balanced.places_of_expert);
    if (ranks < 1 || places < 1 || places % ranks != 0)
      fail(kFunction, ": ", places, " places on ", ranks, " ranks, expected equally many on each, at least one");
    std::vector<std::vector<Index>> shares(static_cast<std::size_t>(experts));
    for (Index p = 0; p < places; ++p) {
      const Index e = balanced.expert_of_place[static_cast<std::size_t>(p)];
      if (e < 0 || e >= experts) fail(kFunction, ": place ", p, " has expert ", e, ", expected one of ", experts);
      shares[static_cast<std::size_t>(e)].push_back(p / (places / ranks));
    }
    std::vector<Index> owner;
    for (std::size_t e = 0; e < shares.size(); ++e) {
      if (shares[e].empty()) fail(kFunction, ": expert ", e, " has no place, expected at least one");
      owner.push_back(shares[e].front());
    }
    Placement placement(std::move(owner), ranks);
    for (Index e = 0; e < experts; ++e)
      for (const Index rank : shares[static_cast<std::size_t>(e)]) placement.add(e, rank);
    placement.shares_ = std::move(shares);
    return placement;
  }

  Index experts() const { return std::ssize(owner_); }
  Index ranks() const { return ranks_; }
  Index owner(Index expert) const { return owner_[static_cast<std::size_t>(expert)]; }
  /// Ascending, the owner among them.
  std::span<const Index> holders(Index expert) const { return holders_[static_cast<std::size_t>(expert)]; }
  /// The same, one that has two shares of the rows twice.
  std::span<const Index> shares(Index expert) const { return shares_[static_cast<std::size_t>(expert)]; }
  bool holds(Index rank, Index expert) const { return std::ranges::binary_search(holders(expert), rank); }
  /// Ranks that have an expert together, each a part of it; holders are copies where it is 1.
  Index slices() const { return slices_; }
  Index slice_of(Index rank) const { return rank % slices_; }

  /// Lets a rank hold an expert, too, if it does not. Throws std::invalid_argument for a rank or expert out of range,
  /// and where experts are in slices.
  void add(Index expert, Index rank) {
    constexpr const char* kFunction = "moe::mpi::Placement::add";
    require_rank(kFunction, rank);
    if (expert < 0 || expert >= experts())
      fail(kFunction, ": expert ", expert, ", expected 0 <= expert < experts = ", experts());
    if (slices_ != 1) fail(kFunction, ": experts are in ", slices_, " slices, expected whole ones");
    auto& of = holders_[static_cast<std::size_t>(expert)];
    const auto at = std::ranges::lower_bound(of, rank);
    if (at != of.end() && *at == rank) return;
    of.insert(at, rank);
    auto& shares = shares_[static_cast<std::size_t>(expert)];
    shares.insert(std::ranges::lower_bound(shares, rank), rank);
  }

  /// Experts that a rank owns, and those that it holds, ascending.
  std::vector<Index> owned_by(Index rank) const {
    return such_that([&](Index e) { return owner(e) == rank; });
  }
  std::vector<Index> held_by(Index rank) const {
    return such_that([&](Index e) { return holds(rank, e); });
  }
  /// Pairs of an expert and a rank that holds it without owning it; of slices none is a copy.
  Index copies() const {
    Index count = 0;
    if (slices_ == 1)
      for (const auto& of : holders_) count += std::ssize(of) - 1;
    return count;
  }
  /// The same experts with their owners alone.
  Placement shards() const { return Placement(owner_, ranks_); }

  /// Equal on ranks that agree, and hardly else: for them to compare.
  std::int64_t hash() const {
    detail::NumberHash hash;
    hash.add(ranks_);
    hash.add(slices_);
    for (Index e = 0; e < experts(); ++e) {
      hash.add(-1 - owner(e));
      for (const Index rank : shares(e)) hash.add(rank);
    }
    return hash.value();
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
  std::vector<std::vector<Index>> holders_, shares_;
  Index ranks_ = 1, slices_ = 1;
};

}  // namespace moe::inline MOE_ABI::mpi
