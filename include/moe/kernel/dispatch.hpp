// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/overlap.hpp"
#include "moe/kernel/gather.hpp"
#include "moe/kernel/stream.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI::kernel {

namespace detail {

/// In the order of the assignments, not of the rows: a token is read from memory once, and from the first-level cache
/// for its other choices.
template <bool kStream, class S>
void dispatch(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, RowBuffer<S>& rows) {
  const auto row_of = plan.row_of_assignment();
  const auto token_of = plan.token_of_row();
  parallel_ranges(static_cast<Index>(row_of.size()), kRowsPerTask, [&](Index begin, Index end, Index) {
    for (Index a = begin; a < end; ++a) {
      const Index row = row_of[static_cast<std::size_t>(a)];
      if (row < 0) continue;
      const Index token = token_of[static_cast<std::size_t>(row)];
      copy_row<kStream>(tokens.data() + token * tokens.outerStride(), tokens.cols(), rows.row(row));
    }
    if constexpr (kStream) simd::finish_streaming();
  });
}

}  // namespace detail

/// Gather: rows[r] = tokens[token_of_row[r]], for experts that want their rows contiguous. Resizes rows to
/// [plan.num_rows(), cols]. Memory-bound. Throws std::invalid_argument if the tokens lie in `rows`.
template <class S>
void dispatch(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, RowBuffer<S>& rows) {
  moe::detail::require_apart("moe::kernel::dispatch", "rows", rows.matrix(), "tokens", tokens);
  rows.resize(plan.num_rows(), tokens.cols());
  if (worth_streaming<S>(plan.num_rows(), tokens.cols()))
    detail::dispatch<true>(tokens, plan, rows);
  else
    detail::dispatch<false>(tokens, plan, rows);
}

}  // namespace moe::inline MOE_ABI::kernel
