// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"

// Sums over many items with the same bits for any number of threads: items are cut into blocks by their number alone,
// one thread adds up a block, and the blocks are added in order. The size of blocks decides bits; it is the caller's.
namespace moe::inline MOE_ABI::detail {

/// Blocks of `size` consecutive items; the last one may be shorter.
struct SumBlocks {
  Index num_items, size;

  /// At most kMost blocks, of at least `smallest` items.
  template <Index kMost>
  static SumBlocks at_most(Index num_items, Index smallest) {
    return {num_items, std::max(smallest, (num_items + kMost - 1) / kMost)};
  }

  Index count() const { return (num_items + size - 1) / size; }
  Index of(Index item) const { return item / size; }
};

/// total [width] += the sums over all items, where add(begin, end, sum, worker) adds the terms of the items from
/// `begin` to `end`, a block, to sum [width]. `partial` is working memory: a row per block, in cache lines of its own.
template <class Add>
void add_blocks(const SumBlocks& blocks, std::span<double> total, RowBuffer<double>& partial, Add&& add) {
  partial.resize(blocks.count(), std::ssize(total));
  parallel_ranges(blocks.num_items, blocks.size, [&](Index begin, Index end, Index worker) {
    double* sum = partial.row(blocks.of(begin));
    std::fill_n(sum, partial.cols(), 0.0);
    add(begin, end, sum, worker);
  });
  for (Index block = 0; block < partial.rows(); ++block)
    for (std::size_t i = 0; i < total.size(); ++i) total[i] += partial.row(block)[i];
}
/// The same with memory of its own: allocates a few cache lines per block.
template <class Add>
void add_blocks(const SumBlocks& blocks, std::span<double> total, Add&& add) {
  RowBuffer<double> partial;
  add_blocks(blocks, total, partial, add);
}

/// A single sum over at most kMost blocks, for a loop that is somebody else's and hands out whole blocks. No
/// allocation.
template <Index kMost>
class BlockSum {
 public:
  explicit BlockSum(const SumBlocks& blocks) : blocks_(blocks) { MOE_ASSERT(blocks.count() <= kMost); }

  /// Where the terms of an item are added.
  double& of(Index item) { return partial_[static_cast<std::size_t>(blocks_.of(item))]; }

  double total() const {
    double sum = 0;
    for (const double value : partial_) sum += value;
    return sum;
  }

 private:
  SumBlocks blocks_;
  std::array<double, static_cast<std::size_t>(kMost)> partial_ = {};
};

}  // namespace moe::inline MOE_ABI::detail
