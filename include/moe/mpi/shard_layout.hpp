// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "moe/mpi/collectives.hpp"
#include "moe/serve/balance_experts.hpp"

namespace moe::inline MOE_ABI::mpi {

/// Which ranks hold which experts. An expert is held by one rank, by several that have copies of it, or by as many
/// consecutive ranks as it has slices, of which each has a part of the hidden units. A plain value.
class ShardLayout {
 public:
  /// Consecutive experts in the order of ranks, as even as can be: rank r has [r E / p, (r + 1) E / p). With slices,
  /// groups of so many ranks take the place of ranks. Throws std::invalid_argument where a rank would have no expert,
  /// and for slices that do not divide the ranks.
  static ShardLayout contiguous(Index num_experts, Index num_ranks, Index slices = 1) {
    constexpr const char* kName = "moe::mpi::ShardLayout::contiguous";
    moe::detail::checked_size(kName, "num_experts", num_experts, 1);
    moe::detail::checked_size(kName, "num_ranks", num_ranks, 1);
    if (slices < 1 || num_ranks % slices != 0)
      fail(kName, ": ", slices, " slices on ", num_ranks, " ranks, expected a number that divides them");
    const Index groups = num_ranks / slices;
    if (num_experts < groups)
      fail(kName, ": ", num_experts, " experts over ", num_ranks, " ranks in ", slices,
           " slices each, expected at least one expert for every ", slices,
           " ranks: more slices, which cut the hidden units, or fewer ranks");
    ShardLayout layout(num_experts, num_ranks, slices);
    for (Index g = 0; g < groups; ++g)
      for (Index e = g * num_experts / groups; e < (g + 1) * num_experts / groups; ++e)
        for (Index s = 0; s < slices; ++s) layout.add(e, g * slices + s);
    layout.is_contiguous_ = true;
    return layout;
  }

  /// Experts and copies where a placement has them, see balance_experts(). Two copies of an expert on one rank are
  /// held once and share as two. Throws std::invalid_argument where ranks do not divide the places, and for an expert
  /// without a place.
  static ShardLayout placed(const BalancedPlacement& placement, Index num_ranks) {
    constexpr const char* kName = "moe::mpi::ShardLayout::placed";
    const Index places = std::ssize(placement.expert_of_place), experts = std::ssize(placement.places_of_expert);
    if (num_ranks < 1 || places < 1 || places % num_ranks != 0)
      fail(kName, ": ", places, " places on ", num_ranks, " ranks, expected equally many on each, at least one");
    ShardLayout layout(experts, num_ranks, 1);
    for (Index p = 0; p < places; ++p) {
      const Index e = placement.expert_of_place[static_cast<std::size_t>(p)];
      if (e < 0 || e >= experts) fail(kName, ": place ", p, " has expert ", e, ", expected one of ", experts);
      layout.add(e, p / (places / num_ranks));
    }
    for (Index e = 0; e < experts; ++e)
      if (layout.holders(e).empty()) fail(kName, ": expert ", e, " has no place, expected at least one");
    return layout;
  }

  Index num_experts() const { return std::ssize(holders_); }
  Index num_ranks() const { return std::ssize(experts_); }
  Index slices() const { return slices_; }
  /// Whether experts are cut into consecutive shards, without copies.
  bool is_contiguous() const { return is_contiguous_; }

  /// A rank that holds an expert, or a slice of it, and its number among those of the rank.
  struct Holder {
    Index rank, local;
  };
  /// Those of expert e: its slices in order, or its copies, by rank; one of two shares is there twice.
  std::span<const Holder> holders(Index e) const { return holders_[static_cast<std::size_t>(e)]; }
  /// What a rank holds, by local number.
  std::span<const Index> experts_of(Index rank) const { return experts_[static_cast<std::size_t>(rank)]; }
  /// The slice of its experts that a rank has.
  Index slice_of(Index rank) const { return rank % slices_; }
  Index most_local() const {
    Index most = 0;
    for (const auto& of_rank : experts_) most = std::max(most, std::ssize(of_rank));
    return most;
  }

  /// Of the copies of expert e the one that row `number` of it goes to from rank `from`: those on the rank itself if
  /// there are some, else those on its node, else all; one after the other, so that they share evenly.
  Holder copy_for(Index e, Index from, Index ranks_per_node, Index number) const {
    const auto nearness = [&](const Holder& h) {
      return h.rank == from ? 2 : h.rank / ranks_per_node == from / ranks_per_node ? 1 : 0;
    };
    const std::span<const Holder> all = holders(e);
    int best = 0;
    for (const Holder& h : all) best = std::max(best, nearness(h));
    const auto is_best = [&](const Holder& h) { return nearness(h) == best; };
    Index turn = (number + from) % static_cast<Index>(std::ranges::count_if(all, is_best));
    for (const Holder& h : all)
      if (is_best(h) && turn-- == 0) return h;
    return all.front();
  }

  /// A number that two layouts share only if they are the same, but for chance.
  std::int64_t fingerprint() const {
    std::uint64_t hash = 14695981039346656037u;  // FNV-1a
    const auto add = [&](Index value) { hash = (hash ^ static_cast<std::uint64_t>(value)) * 1099511628211u; };
    add(slices_);
    for (const auto& of_rank : experts_) {
      add(-1);
      for (const Index e : of_rank) add(e);
    }
    for (const auto& of_expert : holders_)
      for (const Holder& h : of_expert) add(h.rank);
    return static_cast<std::int64_t>(hash);
  }

 private:
  ShardLayout(Index num_experts, Index num_ranks, Index slices)
      : holders_(static_cast<std::size_t>(num_experts)),
        experts_(static_cast<std::size_t>(num_ranks)),
        slices_(slices) {}

  void add(Index e, Index rank) {
    std::vector<Index>& of_rank = experts_[static_cast<std::size_t>(rank)];
    const auto found = std::ranges::find(of_rank, e);
    const Index local = found - of_rank.begin();
    if (found == of_rank.end()) of_rank.push_back(e);
    holders_[static_cast<std::size_t>(e)].push_back({rank, local});
  }

  std::vector<std::vector<Holder>> holders_;
  std::vector<std::vector<Index>> experts_;
  Index slices_;
  bool is_contiguous_ = false;
};

}  // namespace moe::inline MOE_ABI::mpi
