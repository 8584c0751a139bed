// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"
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

/// Sums over valid tokens: add(t, sum) adds the terms of token t to sum[0 .. width). Each block of tokens is summed by
/// one thread, then in block order, so any number of threads gives the same bits.
template <class Add>
std::vector<double> sum_over_tokens(Index num_tokens, Index width, const Step& step, Add&& add) {
  RowBuffer<double> partial;  // a row per block, in cache lines of its own
  partial.resize((num_tokens + kTokensPerBlock - 1) / kTokensPerBlock, width);
  parallel_ranges(num_tokens, kTokensPerBlock, [&](Index begin, Index end, Index) {
    double* sum = partial.row(begin / kTokensPerBlock);
    std::fill_n(sum, width, 0.0);
    for (Index t = begin; t < end; ++t)
      if (step.is_valid(t)) add(t, sum);
  });
  std::vector<double> total(static_cast<std::size_t>(width));
  for (Index block = 0; block < partial.rows(); ++block)
    for (Index i = 0; i < width; ++i) total[static_cast<std::size_t>(i)] += partial.row(block)[i];
  return total;
}

}  // namespace moe::inline MOE_ABI::detail
