// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/expert/stage/stages.hpp"

namespace moe::inline MOE_ABI {

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

/// Stands for a tape at inference, which is compiled by itself: to ask each tile whether to keep it takes 2% of the
/// time of a small layer (Zen 5, 2026-12-02).
struct NoTape {};

/// Where a pass over the stages works, and what it keeps: a StageTapeOf<E> or NoTape.
template <class E, class Tape>
struct StagePass {
  static constexpr bool kKeeps = !std::is_same_v<Tape, NoTape>;
  StageMemoryOf<E>& memory;
  Tape& tape;

  template <int I>
  RowBuffer<typename E::Scalar>& low() const {
    if constexpr (kKeeps)
      return tape.low[I];
    else
      return memory.low[I];
  }
};

/// Stage I for the rows of `groups`. Tape and memory hold those rows, as `out` does, but in the last stage, where it
/// holds all rows from 0 on.
template <int I, class E, class Tape, class ExpertOf>
void forward_stage(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                   const ExpertOf& expert_of, const StagePass<E, Tape>& pass, RowBuffer<typename E::Scalar>& out) {
  using S = typename E::Scalar;
  using Epilogue = EpilogueOf<E, I>;
  constexpr Index kWidth = kernel::kPanelWidth<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
  const Index first = groups.begin(0), origin = I + 1 == kNumStages<E> ? 0 : first;
  if constexpr (kIsAdapted<E, I>) project_inputs<E, I>(groups, in, expert_of, pass.template low<I>());
  kernel::grouped_multiply<S>(
      groups, in, [&](Index g) { return stage_weight<I>(expert_of(g)).source(); }, pass.memory.tasks,
      [&](Index g, Index row, int count, Index panel, S* sums) {
        const auto& bias = stage_bias<I>(expert_of(g));
        const Epilogue epilogue = stage_epilogue<I>(expert_of(g));
        if (!bias.empty()) kernel::add_to_rows(bias.panel(panel), count, sums);
        if constexpr (kIsAdapted<E, I>) {
          const auto& update = stage_update<I>(expert_of(g));
          const RowBuffer<S>& low = pass.template low<I>();
          if (!update.empty())
            kernel::add_low_rank(low.row(row - first), low.stride(), count, update.b.panel(panel), update.rank(), sums);
        }
        if constexpr (StagePass<E, Tape>::kKeeps && kKeepsPre<E, I>)
          for (Index r = 0; r < count; ++r)
            std::copy_n(sums + r * kWidth, kWidth, pass.tape.pre[I].row(row - first + r) + panel * kWidth);
        for (Index r = 0; r < count; ++r) epilogue.forward(sums + r * kWidth, out.row(row - origin + r) + panel * kOut);
      });
}

/// Makes room for the hidden rows, and in the tape for the pre-activations, of `rows` rows.
template <class E, class Tape>
void resize_pass(Index rows, const StageWidths<E>& widths, const StagePass<E, Tape>& pass) {
  constexpr int kLast = kNumStages<E> - 1;
  pass.memory.tasks.conversion().expect_rows(rows);
  simd::unroll<kLast + 1>([&](auto i) {
    if constexpr (i < kLast) pass.memory.hidden[i].resize(rows, widths.template out<i>());
    if constexpr (kIsAdapted<E, i>) pass.template low<i>().resize(rows, widths.ranks[i]);
    if constexpr (StagePass<E, Tape>::kKeeps)  // apart, as it does not depend on i
      if constexpr (kKeepsPre<E, i>) pass.tape.pre[i].resize(rows, widths.template pre<i>());
  });
}

/// All stages for the rows of `groups`.
template <class E, class Tape, class ExpertOf>
void forward_wave(const kernel::RowGroups& groups, kernel::RowSource<typename E::Scalar> in, const ExpertOf& expert_of,
                  const StagePass<E, Tape>& pass, RowBuffer<typename E::Scalar>& out) {
  constexpr int kLast = kNumStages<E> - 1;
  simd::unroll<kLast + 1>([&](auto i) {
    forward_stage<i>(groups, in, expert_of, pass, i == kLast ? out : pass.memory.hidden[i]);
    if constexpr (i < kLast) in = kernel::RowSource<typename E::Scalar>::from(pass.memory.hidden[i], groups.begin(0));
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

/// Runs all stages over groups of rows, in waves, so that the hidden activations of a stage take at most max(2 MiB, 16
/// tiles of rows) per worker, whatever the number of rows and however they fall on groups.
///   out  [from row 0 to the last of the groups, at least row_width()]; the rows of the groups are overwritten
/// 2 * num_rows * parameters operations; no allocation when warm, whatever the formats and ranks of experts, but where
/// hidden widths differ and wider ones get rows for the first time.
template <PanelExpert E, class ExpertOf>
void forward_stages(const StagedRows<E, ExpertOf>& of, StageMemoryOf<E>& memory, RowBuffer<typename E::Scalar>& out) {
  const auto& [groups, in, expert_of, widths] = of;
  detail::NoTape none;
  const detail::StagePass<E, detail::NoTape> pass{memory, none};
  const Index rows = groups.num_rows(), most = kNumStages<E> == 1 ? rows : detail::wave_rows(widths);
  detail::resize_pass(std::min(rows, most), widths, pass);
  if (rows <= most) return detail::forward_wave(groups, in, expert_of, pass, out);
  for (Index row = groups.begin(0), last = row + rows; row < last;) {
    const kernel::RowGroups wave = kernel::wave_from(groups, row, most);
    detail::forward_wave(wave, in, expert_of, pass, out);
    row = wave.last_row;
  }
}

/// The same for all rows at once, with what backward_stages needs kept in `tape`.
template <PanelExpert E, class ExpertOf>
void forward_stages(const StagedRows<E, ExpertOf>& of, StageMemoryOf<E>& memory, RowBuffer<typename E::Scalar>& out,
                    StageTapeOf<E>& tape) {
  const detail::StagePass<E, StageTapeOf<E>> pass{memory, tape};
  detail::resize_pass(of.groups.num_rows(), of.widths, pass);
  detail::forward_wave(of.groups, of.in, of.expert_of, pass, out);
}

}  // namespace moe::inline MOE_ABI
