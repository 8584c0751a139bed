// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/take.hpp"

namespace moe::inline MOE_ABI {

/// Which experts each of several gates may choose: a matrix [num_gates, num_experts] of yes and no, which allows
/// nothing at first. Experts shared by two gates, and two of each gate's own:
///   moe::ExpertMask mask(2, 6);
///   mask.allow(0, 0, 2).allow(1, 0, 2);  // experts 0 and 1
///   mask.allow(0, 2, 2).allow(1, 4, 2);
/// A plain value.
class ExpertMask {
 public:
  /// Throws std::invalid_argument for fewer than one gate or expert.
  ExpertMask(Index num_gates, Index num_experts)
      : num_experts_(detail::checked_size("moe::ExpertMask", "num_experts", num_experts, 1)),
        allowed_(static_cast<std::size_t>(detail::checked_size("moe::ExpertMask", "num_gates", num_gates, 1))) {}

  /// Every gate may choose every expert.
  static ExpertMask all(Index num_gates, Index num_experts) {
    ExpertMask mask(num_gates, num_experts);
    for (Index g = 0; g < num_gates; ++g) mask.allow(g, 0, num_experts);
    return mask;
  }

  /// Allows experts [first, first + count) to a gate. Throws std::invalid_argument for a gate or experts that there are
  /// not.
  ExpertMask& allow(Index gate, Index first, Index count = 1) {
    constexpr const char* kFunction = "moe::ExpertMask::allow";
    if (gate < 0 || gate >= num_gates()) fail(kFunction, ": gate is ", gate, ", expected 0 <= gate < ", num_gates());
    if (first < 0 || count < 0 || first > num_experts_ - count)
      fail(kFunction, ": experts [", first, ", ", first, " + ", count, "), expected them in [0, ", num_experts_, ")");
    std::vector<Index>& own = allowed_[static_cast<std::size_t>(gate)];
    for (Index e = first; e < first + count; ++e)
      if (const auto at = std::ranges::lower_bound(own, e); at == own.end() || *at != e) own.insert(at, e);
    return *this;
  }

  Index num_gates() const { return std::ssize(allowed_); }
  Index num_experts() const { return num_experts_; }
  /// The experts that a gate may choose, ascending.
  std::span<const Index> experts(Index gate) const { return allowed_[static_cast<std::size_t>(gate)]; }
  bool operator()(Index gate, Index expert) const { return std::ranges::binary_search(experts(gate), expert); }

  /// The mask of the experts `ids`: gate g may choose expert i where it might choose ids[i]. Throws
  /// std::invalid_argument as TakesExperts says.
  ExpertMask take(std::span<const Index> ids) const {
    detail::require_ids("moe::ExpertMask::take", ids, num_experts_);
    ExpertMask taken(num_gates(), std::ssize(ids));
    for (Index g = 0; g < num_gates(); ++g)
      for (std::size_t i = 0; i < ids.size(); ++i)
        if ((*this)(g, ids[i])) taken.allow(g, static_cast<Index>(i));
    return taken;
  }
  /// The experts of this mask, then those of `other`. Throws std::invalid_argument unless both have as many gates.
  ExpertMask concatenate(const ExpertMask& other) const {
    if (other.num_gates() != num_gates())
      fail("moe::ExpertMask::concatenate: other has ", other.num_gates(), " gates, expected ", num_gates());
    ExpertMask all(num_gates(), num_experts_ + other.num_experts_);
    for (Index g = 0; g < num_gates(); ++g) {
      for (const Index e : experts(g)) all.allow(g, e);
      for (const Index e : other.experts(g)) all.allow(g, num_experts_ + e);
    }
    return all;
  }

  friend bool operator==(const ExpertMask&, const ExpertMask&) = default;

 private:
  Index num_experts_;
  std::vector<std::vector<Index>> allowed_;
};

}  // namespace moe::inline MOE_ABI
