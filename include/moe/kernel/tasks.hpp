// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <vector>

#include "moe/kernel/row_conversion.hpp"

namespace moe::inline MOE_ABI::kernel {

/// The shares of one grouped product: each is some consecutive panels of one group, with all rows of the group, so that
/// every panel is read by one thread only and all groups together have one barrier. A share costs a fixed part of what
/// is left to do, so an expert with half of the tokens is spread over all threads, the first shares are large and the
/// last ones, for which somebody may have to wait, small. Reused call after call it allocates only for more groups or
/// workers.
class TaskList {
 public:
  /// Calls body(group, first, last, worker) in parallel, covering [0, panels(g)) of every non-empty group g. `depth(g)`
  /// is the number of steps of a product of group g.
  template <class Panels, class Depth, class Body>
  void run(const RowGroups& groups, const Panels& panels, const Depth& depth, const Body& body) {
    const Cost cost = take_whole_groups(groups, panels, depth);
    share_out(groups, depth, cost.work);
    call(std::numeric_limits<Index>::max(), body);
  }

  /// The same for a product of rows and panels, which takes no team where it is not worth one.
  template <class Panels, class Depth, class Body>
  void run_product(const RowGroups& groups, const Panels& panels, const Depth& depth, const Body& body) {
    const Cost cost = take_whole_groups(groups, panels, depth);
    if (moe::detail::pays_for_team(cost.nanoseconds)) share_out(groups, depth, cost.work);
    call(cost.nanoseconds, body);
  }

  /// Rows of the product in another form, where weights ask for it.
  RowConversion& conversion() { return conversion_; }

 private:
  template <class Body>
  void call(Index nanoseconds, const Body& body) {
    parallel_in_order(static_cast<Index>(tasks_.size()), nanoseconds, [&](Index t, Index worker) {
      const Task& task = tasks_[static_cast<std::size_t>(t)];
      body(task.group, task.first, task.last, worker);
    });
  }

  struct Task {
    Index group, first, last;
  };

  /// Reading a panel costs as much time as multiplying it with about this many rows: 132 GFLOP/s over 40 GB/s are 13
  /// operations per 4 bytes, two for each row (AVX2, Zen 5, one core).
  static constexpr Index kRowsOfReading = 8;
  /// A share is the part 1 / (4 workers) of what is left: a thread that others slow down is waited for only little.
  /// Equal shares, 32 per worker, lost 5% of two threads' time at 128 rows per expert.
  static constexpr Index kParts = 4;
  /// Smallest share, in steps times rows: 128 KiB of AVX2 panels, some microseconds.
  static constexpr Index kLeastCost = 2048 * kRowsOfReading;
  /// How long a product takes whose weights are in caches, where reading a panel costs less: three steps in a
  /// nanosecond within a third, for 1 to 64 tokens of 8 experts of 32 x 64 to 128 x 256 (Zen 5, AVX-512).
  static constexpr Index kRowsOfCachedReading = 2, kCostPerNanosecond = 3;

  /// Of all groups; zero where there is but one worker, as one token of many experts is not to pay for a sum.
  struct Cost {
    Index work = 0;         ///< steps times rows
    Index nanoseconds = 0;  ///< of one thread, from below
  };

  template <class Depth>
  static Index cost_of_panel(const RowGroups& groups, const Depth& depth, Index g) {
    return (groups.size(g) + kRowsOfReading) * std::max<Index>(1, depth(g));
  }

  template <class Panels, class Depth>
  Cost take_whole_groups(const RowGroups& groups, const Panels& panels, const Depth& depth) {
    const Index workers = num_workers();
    tasks_.clear();
    // A share that does not end its group takes more than half of a part, so there are at most 8 ln(2^63 / kLeastCost)
    // of them per worker: memory does not depend on how rows fall on groups.
    tasks_.reserve(static_cast<std::size_t>(2 * groups.count + 300 * workers));
    Cost cost;
    Index cached = 0;
    for (Index g = 0; g < groups.count; ++g) {
      if (groups.is_empty(g) || groups.size(g) == 0 || panels(g) == 0) continue;
      tasks_.push_back({g, 0, panels(g)});
      if (workers == 1) continue;
      cost.work += panels(g) * cost_of_panel(groups, depth, g);
      cached += panels(g) * (groups.size(g) + kRowsOfCachedReading) * std::max<Index>(1, depth(g));
    }
    cost.nanoseconds = cached / kCostPerNanosecond;
    return cost;
  }

  /// Cuts the groups into shares, if there are workers to share them.
  template <class Depth>
  void share_out(const RowGroups& groups, const Depth& depth, Index left) {
    const Index workers = num_workers();
    if (workers == 1) return;
    const auto whole = std::ssize(tasks_);
    for (Index i = 0; i < whole; ++i) {
      const Task all = tasks_[static_cast<std::size_t>(i)];
      const Index each = cost_of_panel(groups, depth, all.group);
      for (Index p = 0; p < all.last; p = tasks_.back().last) {
        const Index share = std::max(kLeastCost, left / (workers * kParts));
        const Index count = std::clamp<Index>(share / each, 1, all.last - p);
        tasks_.push_back({all.group, p, p + count});
        left -= count * each;
      }
    }
    tasks_.erase(tasks_.begin(), tasks_.begin() + whole);
  }

  std::vector<Task> tasks_;
  RowConversion conversion_;
};

}  // namespace moe::inline MOE_ABI::kernel
