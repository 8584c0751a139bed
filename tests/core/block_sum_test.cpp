// SPDX-License-Identifier: MIT
#include "moe/core/block_sum.hpp"

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Index;
using moe::detail::SumBlocks;

namespace {

/// Numbers of many sizes, whose sum depends on the order in which it is taken.
double term(Index i) { return std::ldexp(1 + static_cast<double>(i % 7) / 3, static_cast<int>(i * 37 % 60)); }

/// Block by block, then over the blocks.
double in_blocks(Index count, Index size) {
  double total = 0;
  for (Index begin = 0; begin < count; begin += size) {
    double sum = 0;
    for (Index i = begin; i < std::min(count, begin + size); ++i) sum += term(i);
    total += sum;
  }
  return total;
}

}  // namespace

TEST_CASE("SumBlocks: at most so many, none smaller than asked for", "[core]") {
  for (const Index count : {0, 1, 31, 32, 33, 2047, 2048, 2049, 100'000}) {
    CAPTURE(count);
    const auto blocks = SumBlocks::at_most<64>(count, 32);
    CHECK(blocks.size >= 32);
    CHECK(blocks.count() <= 64);
    CHECK((count <= 2048) == (blocks.size == 32));
    if (count > 0) CHECK(blocks.of(count - 1) == blocks.count() - 1);
  }
}

TEST_CASE("add_blocks: each block from zero, then in order, whatever the threads", "[core][property]") {
  for (const Index count : {0, 1, 4, 5, 6, 1003})
    for (const Index workers : {1, 2, 5}) {
      CAPTURE(count, workers);
      test::ThreadExecutor executor(workers);
      const moe::UseExecutor use(executor);
      std::vector<double> total = {10, 20};
      std::vector<int> seen(static_cast<std::size_t>(count));
      moe::detail::add_blocks({count, 5}, total, [&](Index begin, Index end, double* sum, Index worker) {
        if (worker < 0 || worker >= workers) return;
        for (Index i = begin; i < end; ++i) sum[0] += term(i), sum[1] += 1, ++seen[static_cast<std::size_t>(i)];
      });
      std::vector<double> expected = {10, 20};
      for (Index begin = 0; begin < count; begin += 5) {
        double sum = 0;
        for (Index i = begin; i < std::min(count, begin + 5); ++i) sum += term(i);
        expected[0] += sum;
        expected[1] += static_cast<double>(std::min<Index>(5, count - begin));
      }
      CHECK(total == expected);
      CHECK(seen == std::vector<int>(seen.size(), 1));
    }
}

TEST_CASE("add_blocks: the size of blocks is seen in the bits", "[core]") {
  double total = 0;
  const auto add = [](Index begin, Index end, double* sum, Index) {
    for (Index i = begin; i < end; ++i) *sum += term(i);
  };
  moe::detail::add_blocks({1003, 7}, {&total, 1}, add);
  CHECK(total == in_blocks(1003, 7));
  CHECK(total != in_blocks(1003, 1003));
}

TEST_CASE("BlockSum: the bits of add_blocks, in somebody else's loop", "[core]") {
  for (const Index count : {1, 33, 5000}) {
    CAPTURE(count);
    const auto blocks = SumBlocks::at_most<64>(count, 32);
    moe::detail::BlockSum<64> sum(blocks);
    test::ThreadExecutor executor(3);
    const moe::UseExecutor use(executor);
    moe::parallel_ranges(count, blocks.size, [&](Index begin, Index end, Index) {
      for (Index i = begin; i < end; ++i) sum.of(i) += term(i);
    });
    CHECK(sum.total() == in_blocks(count, blocks.size));
  }
}
