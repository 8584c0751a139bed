// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// What prefetching has brought and cost so far, and may cost: what keeps ExpertCache from being slower with it. It
/// follows what the same cache without prefetches would hold, by asking the policy for its victims as well, and keeps
///   account = loads of steps - 257/256 (loads of steps without prefetching) + (guesses that nobody has used yet) / 2
/// in bytes, as a step begins not below -8 prefetch_bytes, so that merits are forgotten. A guess is loaded, and experts
/// that would be there without prefetching leave, only while
///   account + (experts that would be there, and are not) <= 3/2 prefetch_bytes
/// A step never raises the left side: for each expert that it loads, either the other cache loads it as well, or one
/// that should be there is there again. Hence for guesses of any kind
///   loads + wasted / 2 <= 257/256 loads without prefetching + 3/2 prefetch_bytes
/// where the experts of a step fit and steps come one after the other, and one expert more where a guess may be on its
/// way as a step begins. The share of 1/256 lets guesses prove themselves again that were wrong before.
class PrefetchAccount {
 public:
  static constexpr double kShare = 1.0 / 256, kGuess = 0.5, kMerits = 8, kStake = 1.5;

  /// Does nothing, and allows all, for prefetch_bytes = 0.
  PrefetchAccount(std::size_t num_experts, std::size_t budget, std::size_t prefetch_bytes)
      : budget_(budget), stake_(static_cast<double>(prefetch_bytes)), holds_(prefetch_bytes > 0 ? num_experts : 0) {}

  bool follows() const { return !holds_.empty(); }
  /// Whether the cache without prefetches has the expert.
  bool has(Index e) const { return holds_[static_cast<std::size_t>(e)]; }

  /// A step has asked for experts, which the policy knows already.
  template <class P>
  void add_step(std::span<const std::size_t> bytes, std::span<const Index> experts, std::int64_t step, P& policy) {
    if (!follows()) return;
    account_ = std::max(account_, -kMerits * stake_);  // between steps: the loads of one come in two parts
    pending_.clear();
    for (const Index e : experts)
      if (!has(e)) pending_.push_back(e);
    while (!pending_.empty()) {  // waves, as of the cache
      wave_.clear();
      for (const Index e : pending_) {
        if (!make_room(bytes, bytes[static_cast<std::size_t>(e)], step, policy)) break;
        holds_[static_cast<std::size_t>(e)] = true;
        used_ += bytes[static_cast<std::size_t>(e)];
        wave_.push_back(e);
        add(-(1 + kShare) * static_cast<double>(bytes[static_cast<std::size_t>(e)]));
      }
      pending_.erase(pending_.begin(), pending_.begin() + std::ssize(wave_));
    }
  }
  /// A step loads an expert; with negative bytes, it could not.
  void add_load(double bytes) { add(bytes); }
  /// A guess is loaded; with negative bytes, a step has used it, or it could not be loaded.
  void add_guess(double bytes) { add(kGuess * bytes); }

  /// Whether a guess of so many bytes may be loaded, none for a step, where experts of `absent` bytes are not there
  /// that would be.
  bool allows(double absent, double guess) const { return account_ + kGuess * guess + absent <= kStake * stake_; }

 private:
  void add(double bytes) {
    if (follows()) account_ += bytes;
  }

  template <class P>
  bool make_room(std::span<const std::size_t> bytes, std::size_t needed, std::int64_t step, P& policy) {
    while (needed > budget_ - used_) {
      candidates_.clear();
      std::size_t room = budget_ - used_;
      for (Index e = 0; e < std::ssize(bytes); ++e) {
        if (!has(e) || std::ranges::binary_search(wave_, e)) continue;
        candidates_.push_back(e);
        room += bytes[static_cast<std::size_t>(e)];
      }
      if (needed > room) return false;
      const Index victim = policy.victim(std::span<const Index>(candidates_), step);
      if (!std::ranges::binary_search(candidates_, victim))
        fail("moe::ExpertCache: the policy evicts expert ", victim, ", expected one of its candidates");
      holds_[static_cast<std::size_t>(victim)] = false;
      used_ -= bytes[static_cast<std::size_t>(victim)];
    }
    return true;
  }

  std::size_t budget_, used_ = 0;
  double stake_, account_ = 0;
  std::vector<bool> holds_;
  std::vector<Index> pending_, wave_, candidates_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
