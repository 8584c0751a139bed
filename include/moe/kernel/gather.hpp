// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"

namespace moe::inline MOE_ABI::kernel {

/// Rows per task of the memory-bound loops: some hundred kilobytes at common widths, far above the cost of a hand-out.
inline constexpr Index kRowsPerTask = 64;

/// rows[r] = from[source(r)] for r in [0, count), zero from its last column to `width`, which is at least that wide.
/// Resizes rows to [count, width]; `from` must lie elsewhere. Memory-bound, in parallel, no allocation when warm.
///   source   Index(Index r)
///   copy     void(Index r, const S* from, Index cols, S* to): another than a plain copy
template <class S, class Source, class Copy>
void gather(const ConstMatrixRef<S>& from, Index count, Index width, const Source& source, RowBuffer<S>& rows,
            const Copy& copy) {
  rows.resize(count, width);
  parallel_ranges(count, kRowsPerTask, [&](Index begin, Index end, Index) {
    for (Index r = begin; r < end; ++r) {
      copy(r, from.data() + source(r) * from.outerStride(), from.cols(), rows.row(r));
      std::fill(rows.row(r) + from.cols(), rows.row(r) + width, S{0});
    }
  });
}
template <class S, class Source>
void gather(const ConstMatrixRef<S>& from, Index count, Index width, const Source& source, RowBuffer<S>& rows) {
  gather<S>(from, count, width, source, rows,
            [](Index, const S* row, Index cols, S* to) { std::copy_n(row, cols, to); });
}

}  // namespace moe::inline MOE_ABI::kernel
