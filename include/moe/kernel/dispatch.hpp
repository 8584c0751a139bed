// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/simd.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI::kernel {

/// Rows per task of the memory-bound loops: some hundred kilobytes at common widths, far above the cost of a hand-out.
inline constexpr Index kRowsPerTask = 64;

/// Gather: rows[r] = tokens[token_of_row[r]], for experts that want their rows contiguous. Resizes rows to
/// [plan.num_rows(), cols]. Memory-bound.
template <class S>
void dispatch(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, RowBuffer<S>& rows) {
  rows.resize(plan.num_rows(), tokens.cols());
  const auto token = plan.token_of_row();
  parallel_ranges(plan.num_rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
    for (Index r = begin; r < end; ++r) {
      const S* from = tokens.data() + token[static_cast<std::size_t>(r)] * tokens.outerStride();
      std::copy_n(from, tokens.cols(), rows.row(r));
    }
  });
}

}  // namespace moe::inline MOE_ABI::kernel
