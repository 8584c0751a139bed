// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/core/block_sum.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI::detail {

/// Tokens per task of the loops below, and per partial sum. A constant, because it decides bits; 64 experts make a task
/// of some 16 thousand terms, which hides the hand-out.
inline constexpr Index kTokensPerBlock = 256;

/// Calls f(t) for every valid token, in parallel.
template <class F>
void for_each_valid(Index num_tokens, const Step& step, F&& f) {
  parallel_ranges(num_tokens, kTokensPerBlock, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t)
      if (step.is_valid(t)) f(t);
  });
}

/// total [width] += sums over valid tokens: add(t, sum) adds the terms of token t to sum [width]. The same bits for any
/// number of threads. `partial` is working memory.
template <class Add>
void add_over_tokens(Index num_tokens, const Step& step, std::span<double> total, RowBuffer<double>& partial,
                     Add&& add) {
  add_blocks({num_tokens, kTokensPerBlock}, total, partial, [&](Index begin, Index end, double* sum, Index) {
    for (Index t = begin; t < end; ++t)
      if (step.is_valid(t)) add(t, sum);
  });
}

/// Sums over valid tokens [width], with memory of their own.
template <class Add>
std::vector<double> sum_over_tokens(Index num_tokens, Index width, const Step& step, Add&& add) {
  std::vector<double> total(static_cast<std::size_t>(width));
  RowBuffer<double> partial;
  add_over_tokens(num_tokens, step, total, partial, add);
  return total;
}

}  // namespace moe::inline MOE_ABI::detail
