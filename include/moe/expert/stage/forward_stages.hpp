// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/expert/stage/stages.hpp"

namespace moe::inline MOE_ABI {

enum class Keep { Nothing, PreActivations };

namespace detail {

/// low = scale * A x for the rows of `groups` that meet an update.
template <class E, int I, class ExpertOf>
void project_inputs(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                    const ExpertOf& expert_of, RowBuffer<typename E::Scalar>& low) {
  if (low.cols() == 0) return;
  const auto update = [&](Index g) -> decltype(auto) { return stage_update<I>(expert_of(g)); };
  kernel::project_rows<typename E::Scalar>(
      groups, in, [&](Index g) -> auto& { return update(g).a; }, [&](Index g) { return update(g).a.outputs(); },
      [&](Index g) { return update(g).scale; }, low);
}

/// Stage I for the rows of `groups`. The tape holds those rows, as `out` does, but in the last stage, where it holds
/// all rows from 0 on.
template <Keep keep, class E, int I, class ExpertOf>
void forward_stage(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                   const ExpertOf& expert_of, StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& out) {
  using S = typename E::Scalar;
  using Epilogue = EpilogueOf<E, I>;
  constexpr Index kWidth = kernel::kPanelWidth<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
  constexpr bool kKeepPre = keep == Keep::PreActivations && !Epilogue::kIdentity;
  const Index first = groups.begin(0), origin = I + 1 == kNumStages<E> ? 0 : first;
  RowBuffer<S>& pre = tape.pre[I];
  if constexpr (kIsAdapted<E, I>) project_inputs<E, I>(groups, in, expert_of, tape.low[I]);
  kernel::grouped_multiply<S>(
      groups, in, [&](Index g) { return stage_weight<I>(expert_of(g)).source(); }, tape.tasks,
      [&](Index g, Index row, int count, Index panel, S* sums) {
        const auto& bias = stage_bias<I>(expert_of(g));
        const Epilogue epilogue = stage_epilogue<I>(expert_of(g));
        if (!bias.empty()) kernel::add_to_rows(bias.panel(panel), count, sums);
        if constexpr (kIsAdapted<E, I>) {
          const auto& update = stage_update<I>(expert_of(g));
          const RowBuffer<S>& low = tape.low[I];
          if (!update.empty())
            kernel::add_low_rank(low.row(row - first), low.stride(), count, update.b.panel(panel), update.rank(), sums);
        }
        if constexpr (kKeepPre)
          for (Index r = 0; r < count; ++r)
            std::copy_n(sums + r * kWidth, kWidth, pre.row(row - first + r) + panel * kWidth);
        for (Index r = 0; r < count; ++r) epilogue.forward(sums + r * kWidth, out.row(row - origin + r) + panel * kOut);
      });
}

/// Makes room in the tape for the hidden rows, and the pre-activations, of `rows` rows.
template <Keep keep, class E>
void resize_tape(Index rows, const StageWidths<E>& widths, StageTapeOf<E>& tape) {
  constexpr int kLast = kNumStages<E> - 1;
  tape.tasks.conversion().expect_rows(rows);
  simd::unroll<kLast + 1>([&](auto i) {
    if constexpr (i < kLast) tape.hidden[i].resize(rows, widths.template out<i>());
    if constexpr (keep == Keep::PreActivations && !EpilogueOf<E, i>::kIdentity)
      tape.pre[i].resize(rows, widths.template pre<i>());
    if constexpr (kIsAdapted<E, i>) tape.low[i].resize(rows, widths.ranks[i]);
  });
}

/// All stages for the rows of `groups`, the hidden rows of which lie in the tape.
template <Keep keep, class E, class ExpertOf>
void forward_wave(const kernel::RowGroups& groups, kernel::RowSource<typename E::Scalar> in, const ExpertOf& expert_of,
                  StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& out) {
  constexpr int kLast = kNumStages<E> - 1;
  simd::unroll<kLast + 1>([&](auto i) {
    forward_stage<keep, E, i>(groups, in, expert_of, tape, i == kLast ? out : tape.hidden[i]);
    if constexpr (i < kLast) in = kernel::RowSource<typename E::Scalar>::from(tape.hidden[i], groups.begin(0));
  });
}

/// Bytes of hidden activations per worker and stage that inference works on at a time: what the next stage reads is
/// still in the worker's share of L3 (of which 4 MiB a core are the least that servers have).
inline constexpr Index kHiddenBytes = Index{2} << 20;

/// Most rows of a wave of inference.
template <class E>
Index wave_rows(const StageWidths<E>& widths) {
  using S = typename E::Scalar;
  Index stride = 1;
  simd::unroll<kNumStages<E> - 1>(
      [&](auto i) { stride = std::max(stride, RowBuffer<S>::stride_of(widths.template out<i>())); });
  const Index rows = kHiddenBytes / (stride * static_cast<Index>(sizeof(S)));
  return num_workers() * std::max(kernel::kLeastRows, rows);
}

}  // namespace detail

/// Runs all stages over groups of rows.
///   out  [from row 0 to the last of the groups, at least row_width()]; the rows of the groups are overwritten
/// Keep::PreActivations fills `tape` for backward_stages. Keep::Nothing goes over the rows in waves, so that the hidden
/// activations of a stage take at most max(2 MiB, 16 tiles of rows) per worker, whatever the number of rows and however
/// they fall on groups. 2 * num_rows * parameters operations; no allocation when warm, whatever the formats and ranks
/// of experts, but where hidden widths differ and wider ones get rows for the first time.
template <Keep keep, PanelExpert E, class ExpertOf>
void forward_stages(const StagedRows<E, ExpertOf>& of, StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& out) {
  const auto& [groups, in, expert_of, widths] = of;
  constexpr int kLast = kNumStages<E> - 1;
  const Index rows = groups.num_rows();
  if constexpr (keep == Keep::PreActivations || kLast == 0) {
    detail::resize_tape<keep>(rows, widths, tape);
    detail::forward_wave<keep, E>(groups, in, expert_of, tape, out);
  } else {
    const Index most = detail::wave_rows(widths);
    detail::resize_tape<keep>(std::min(rows, most), widths, tape);
    if (rows <= most) return detail::forward_wave<keep, E>(groups, in, expert_of, tape, out);
    for (Index row = groups.begin(0), last = row + rows; row < last;) {
      const kernel::RowGroups wave = kernel::wave_from(groups, row, most);
      detail::forward_wave<keep, E>(wave, in, expert_of, tape, out);
      row = wave.last_row;
    }
  }
}

}  // namespace moe::inline MOE_ABI
