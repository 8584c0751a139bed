// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::detail {

/// What a team of OpenMP costs the calling thread, learned from the loops that were shared: threads that wait awake
/// come within 1 microsecond and are left within 2, those that sleep (OMP_WAIT_POLICY=passive, or long pauses between
/// loops) take 7 and 7 (libgomp, 2 threads of a Zen 5 guest), and a virtual machine may take far longer.
class TeamCost {
 public:
  static TeamCost& of_this_thread() {
    thread_local TeamCost cost;
    return cost;
  }

  /// Work of one thread, in nanoseconds, from which a team pays.
  Index least_shared() const { return least_shared_; }

  /// Whether it pays for this much. What was learned in a bad moment is forgotten a step at a time while loops stay
  /// alone, else none that is shared would ever tell better; where nothing has changed, one loop in kForget pays for
  /// that with the cost of a team.
  bool pays(Index nanoseconds) {
    if (nanoseconds >= least_shared_) return true;
    if (nanoseconds >= kLeast && ++alone_ % kForget == 0) least_shared_ = std::max(kLeast, least_shared_ - step());
    return false;
  }

  /// A loop whose last worker came after `arrival` nanoseconds, and which was left `join` after the last one was done.
  /// One step towards what it says, so that one thread that has been suspended means little: the median, in the end.
  void learn(Index arrival, Index join) {
    const Index pays = kTimesTheCost * (arrival + join);
    least_shared_ = std::clamp(pays > least_shared_ ? least_shared_ + step() : least_shared_ - step(), kLeast, kMost);
  }

  /// The least is what threads that are awake take, with a margin; most, what no thread takes that is only to be woken.
  static constexpr Index kLeast = 8000, kMost = 1000000;
  static constexpr Index kForget = 64;  ///< of loops above kLeast that stay alone

 private:
  /// Two threads save half of the work, which then is to be more than the cost: twice would be even.
  static constexpr Index kTimesTheCost = 3;

  /// A dozen loops double or halve it.
  Index step() const { return least_shared_ / 16; }

  Index least_shared_ = 16000;  // until something is known: between threads that wait awake and those that sleep
  Index alone_ = 0;
};

/// The times of one loop, for TeamCost.
class TeamTimes {
 public:
  void arrived() { raise(arrival_); }
  void left() { raise(leave_); }
  void teach(TeamCost& cost) const { cost.learn(arrival_.load(), since_start() - leave_.load()); }

 private:
  Index since_start() const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count();
  }
  void raise(std::atomic<Index>& most) const {
    const Index now = since_start();
    for (Index seen = most.load(std::memory_order_relaxed); seen < now && !most.compare_exchange_weak(seen, now);) {
    }
  }

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::atomic<Index> arrival_{0}, leave_{0};
};

}  // namespace moe::inline MOE_ABI::detail
