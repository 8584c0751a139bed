// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/expert/stage/stages.hpp"

namespace moe::inline MOE_ABI::detail {

/// Least rows that a worker takes of a pass over activations: some microseconds of work.
inline constexpr Index kActivatedRows = 16;

/// What stage I + 1 has read in the pass that `tape` holds, from the pre-activations of stage I: the bits of that pass,
/// as an epilogue is a function of them alone. `hidden` holds it unless stage I has no activation; rows from
/// groups.begin(0) on. O(num_rows * width), rows in parallel; a hidden row costs an activation per entry, where to keep
/// it would cost memory for as long as the tape lives.
template <class E, int I, class ExpertOf>
kernel::RowSource<typename E::Scalar> hidden_rows(const kernel::RowGroups& groups, const ExpertOf& expert_of,
                                                  const StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& hidden) {
  using S = typename E::Scalar;
  using Epilogue = EpilogueOf<E, I>;
  const RowBuffer<S>& pre = tape.pre[I];
  const Index first = groups.begin(0);
  if constexpr (Epilogue::kIdentity) {
    return kernel::RowSource<S>::from(pre, first);
  } else {
    constexpr Index kWidth = kernel::kPanelWidth<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
    hidden.resize(pre.rows(), pre.cols() / kWidth * kOut);
    parallel_ranges(groups.num_rows(), kActivatedRows, [&](Index begin, Index end, Index) {
      const Index* const offsets = groups.offset;
      Index r = begin, g = std::upper_bound(offsets, offsets + groups.count + 1, first + begin) - offsets - 1;
      for (; r < end; ++g) {
        const Index last = std::min(groups.end(g) - first, end);
        if (r >= last) continue;
        const Epilogue epilogue = stage_epilogue<I>(expert_of(g));
        const Index panels = stage_weight<I>(expert_of(g)).panels();
        for (; r < last; ++r)
          for (Index p = 0; p < panels; ++p) epilogue.forward(pre.row(r) + p * kWidth, hidden.row(r) + p * kOut);
      }
    });
    return kernel::RowSource<S>::from(hidden, first);
  }
}

}  // namespace moe::inline MOE_ABI::detail
