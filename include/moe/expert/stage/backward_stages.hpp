// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/expert/stage/hidden_rows.hpp"
#include "moe/kernel/grouped_gradient.hpp"

namespace moe::inline MOE_ABI {

/// Whether backward computes the gradient of what the first stage reads.
enum class InputGradient { Skip, Compute };

namespace detail {

/// dpre = dout * Epilogue'(pre), row by row, for the rows of dout from `first` on; columns of `dout` beyond what a
/// narrower expert wrote must be finite.
template <class Epilogue, class S>
void backward_epilogue(const RowBuffer<S>& pre, const RowBuffer<S>& dout, Index first, RowBuffer<S>& dpre) {
  static_assert(std::is_empty_v<Epilogue>, "moe::backward_stages: the last epilogue must be the same for all experts");
  constexpr Index kWidth = kernel::kPanelWidth<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
  dpre.resize(pre.rows(), pre.cols());
  parallel_ranges(pre.rows(), kActivatedRows, [&](Index begin, Index end, Index) {
    for (Index r = begin; r < end; ++r)
      for (Index p = 0; p < pre.cols() / kWidth; ++p)
        Epilogue{}.backward(pre.row(r) + p * kWidth, dout.row(first + r) + p * kOut, dpre.row(r) + p * kWidth);
  });
}

/// Adds what the update of stage I gives to the gradients of some rows of its input, of which they are one panel.
template <int I, class S, class E>
void add_update_gradient(const E& expert, const RowBuffer<S>& dlow, Index row, int count, Index panel, S* sums) {
  if constexpr (kIsAdapted<E, I>) {
    const auto& update = stage_update<I>(expert);
    if (!update.empty())
      kernel::add_low_rank(dlow.row(row), dlow.stride(), count, update.a.panel(panel), update.rank(), sums);
  }
}

/// memory.dpre[I] from the gradient of what stage I + 1 computed: its input gradient goes through the derivative of
/// stage I's epilogue while it is in registers.
template <class E, int I, class ExpertOf>
void backward_into(const StagedRows<E, ExpertOf>& of, const kernel::RowSource<typename E::Scalar>& dpre_above,
                   const StageTapeOf<E>& tape, StageMemoryOf<E>& memory) {
  const kernel::RowGroups& groups = of.groups;
  const ExpertOf& expert_of = of.expert_of;
  using S = typename E::Scalar;
  using Epilogue = EpilogueOf<E, I>;
  constexpr Index kWidth = kernel::kPanelWidth<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
  const RowBuffer<S>& pre = tape.pre[I];
  RowBuffer<S>& dpre = memory.dpre[I];
  const Index first = groups.begin(0);
  dpre.resize(groups.num_rows(), of.widths.template pre<I>());
  kernel::grouped_input_gradient<S>(
      groups, dpre_above, [&](Index g) { return stage_weight<I + 1>(expert_of(g)).source(); }, memory.gradient,
      [&](Index g, Index row, int count, Index panel, S* dhidden) {
        const Index panels = stage_weight<I>(expert_of(g)).panels();
        [[maybe_unused]] const Epilogue epilogue = stage_epilogue<I>(expert_of(g));
        add_update_gradient<I + 1>(expert_of(g), memory.dlow, row - first, count, panel, dhidden);
        for (Index c = 0; c < kWidth; c += kOut) {
          const Index p = (panel * kWidth + c) / kOut;
          if (p >= panels) break;
          for (Index r = 0; r < count; ++r) {
            if constexpr (Epilogue::kIdentity)
              std::copy_n(dhidden + r * kWidth, kWidth, dpre.row(row - first + r) + p * kWidth);
            else
              epilogue.backward(pre.row(row - first + r) + p * kWidth, dhidden + r * kWidth + c,
                                dpre.row(row - first + r) + p * kWidth);
          }
        }
      });
}

/// memory.drows = the input gradient of stage 0.
template <class E, class ExpertOf>
void store_input_gradient(const StagedRows<E, ExpertOf>& of, const kernel::RowSource<typename E::Scalar>& dpre,
                          StageMemoryOf<E>& memory) {
  const kernel::RowGroups& groups = of.groups;
  const ExpertOf& expert_of = of.expert_of;
  using S = typename E::Scalar;
  constexpr Index kWidth = kernel::kPanelWidth<S>;
  const Index inputs = stage_weight<0>(expert_of(0)).inputs();
  const Index first = groups.begin(0);
  RowBuffer<S>& din = memory.drows;
  din.resize(groups.num_rows(), kernel::panels_of<S>(inputs) * kWidth);
  kernel::grouped_input_gradient<S>(
      groups, dpre, [&](Index g) { return stage_weight<0>(expert_of(g)).source(); }, memory.gradient,
      [&](Index g, Index row, int count, Index panel, S* sums) {
        add_update_gradient<0>(expert_of(g), memory.dlow, row - first, count, panel, sums);
        for (Index r = 0; r < count; ++r)
          std::copy_n(sums + r * kWidth, kWidth, din.row(row - first + r) + panel * kWidth);
      });
}

/// Throws std::invalid_argument unless stage I of every gradient that gets rows is shaped as that of its expert: the
/// kernels trust it. What has no gradient is not looked at.
template <class E, int I, class ExpertOf, class GradientOf>
void require_gradient_shapes(const kernel::RowGroups& groups, const ExpertOf& expert_of,
                             const GradientOf& gradient_of) {
  for (Index g = 0; g < groups.count; ++g) {
    if (groups.is_empty(g) || groups.size(g) == 0) continue;
    const auto &weight = stage_weight<I>(expert_of(g)), &dweight = stage_weight<I>(gradient_of(g));
    const auto &bias = stage_bias<I>(expert_of(g)), &dbias = stage_bias<I>(gradient_of(g));
    bool same = true;
    if constexpr (GradientStage<E, I>::kLearnsBias) same = dbias.is_shaped_as(bias);
    if constexpr (GradientStage<E, I>::kLearnsWeight) same = same && dweight.is_shaped_as(weight);
    if constexpr (kLearnsUpdate<E, I>)
      if (!stage_update<I>(gradient_of(g)).is_shaped_as(stage_update<I>(expert_of(g))))
        fail("moe::StagedExpert::backward: gradient of expert ", g, ", stage ", I, " has an update of rank ",
             stage_update<I>(gradient_of(g)).rank(), ", expected the shapes of one of rank ",
             stage_update<I>(expert_of(g)).rank());
    if (!same)
      fail("moe::StagedExpert::backward: gradient of expert ", g, ", stage ", I, " is [", dweight.outputs(), ", ",
           dweight.inputs(), "] with ", dbias.outputs(), " biases, expected [", weight.outputs(), ", ", weight.inputs(),
           "] with ", bias.outputs());
  }
}

/// Throws std::invalid_argument unless the tape holds a forward pass of so many rows through experts of these widths.
template <class E, int I>
void require_tape(Index num_rows, const StageWidths<E>& widths, const StageTapeOf<E>& tape) {
  const auto require = [&](const char* name, const auto& rows, Index width) {
    if (rows.rows() != num_rows || rows.cols() != width)
      fail("moe::StagedExpert::backward: ", name, " of stage ", I, " in the tape is [", rows.rows(), ", ", rows.cols(),
           "], expected [", num_rows, ", ", width, "] as in the forward pass of these experts");
  };
  if constexpr (kKeepsPre<E, I>) require("pre", tape.pre[I], widths.template pre<I>());
  if constexpr (kIsAdapted<E, I>) require("low", tape.low[I], widths.ranks[I]);
}

/// The gradients of stage I's weights and biases, of those that have one.
template <class E, int I, class GradientOf>
void add_stage_gradient(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                        const kernel::RowSource<typename E::Scalar>& dpre, const GradientOf& gradient_of,
                        kernel::GradientScratch<typename E::Scalar>& scratch) {
  using S = typename E::Scalar;
  if constexpr (!std::is_same_v<GradientOf, NoGradient>) {
    using Stage = GradientStage<E, I>;
    PanelMatrix<CodecOf<S>> none;
    const auto bias = [&](Index g) -> auto& {
      if constexpr (Stage::kLearnsBias)
        return stage_bias<I>(gradient_of(g));
      else
        return none;
    };
    if constexpr (Stage::kLearnsWeight)
      kernel::grouped_weight_gradient<S>(
          groups, in, dpre, [&](Index g) -> auto& { return stage_weight<I>(gradient_of(g)); }, bias, scratch);
    else if constexpr (Stage::kLearnsBias)
      kernel::grouped_bias_gradient<S>(groups, dpre, bias, scratch.tasks);
  }
}

/// memory.dlow = scale * B^T dpre of the update of stage I, and the gradients of A and B where they have one. The
/// padding of dpre counts: that of B is zero.
template <class E, int I, class ExpertOf, class GradientOf>
void backward_update(const StagedRows<E, ExpertOf>& of, const kernel::RowSource<typename E::Scalar>& in,
                     const kernel::RowSource<typename E::Scalar>& dpre, const GradientOf& gradient_of,
                     const StageTapeOf<E>& tape, StageMemoryOf<E>& memory) {
  using S = typename E::Scalar;
  if (of.widths.ranks[I] == 0) return;
  const auto update = [&](Index g) -> decltype(auto) { return stage_update<I>(of.expert_of(g)); };
  memory.dlow.resize(of.groups.num_rows(), of.widths.ranks[I]);
  kernel::project_rows<S>(
      of.groups, dpre, [&](Index g) -> auto& { return update(g).b; }, [&](Index g) { return update(g).b.width(); },
      [&](Index g) { return update(g).scale; }, memory.dlow);
  if constexpr (!std::is_same_v<GradientOf, NoGradient>) {
    if constexpr (kLearnsUpdate<E, I>) {
      // A factor of all experts has all rows for one group.
      const Index first = of.groups.begin(0), rows[] = {first, first + of.groups.num_rows()};
      const kernel::RowGroups all{rows, 1};
      const SharedFactor shared = update(0).shared_factor();
      kernel::grouped_low_rank_gradient<S>(
          shared == SharedFactor::B ? all : of.groups, dpre, tape.low[I],
          [&](Index g) -> auto& { return stage_update<I>(gradient_of(g)).b; },
          [&](Index g) { return update(g).b.width(); }, memory.gradient);
      kernel::grouped_low_rank_gradient<S>(
          shared == SharedFactor::A ? all : of.groups, in, memory.dlow,
          [&](Index g) -> auto& { return stage_update<I>(gradient_of(g)).a; },
          [&](Index g) { return update(g).a.outputs(); }, memory.gradient);
    }
  }
}

/// The first stage that has a gradient, or their number where none has.
template <class E, class GradientOf>
int lowest_learned_stage(const StageWidths<E>& widths) {
  int lowest = kNumStages<E>;
  if constexpr (!std::is_same_v<GradientOf, NoGradient>)
    simd::unroll<kNumStages<E>>([&](auto i) {
      using Stage = GradientStage<E, i>;
      if (Stage::kLearnsWeight || Stage::kLearnsBias || (kLearnsUpdate<E, i> && widths.ranks[i] > 0))
        lowest = std::min<int>(lowest, i);
    });
  return lowest;
}

/// Whether the rows that stage I has read are needed: for the gradient of its weight, or of an update.
template <class E, int I, class GradientOf>
inline constexpr bool kReadsInputs = GradientStage<E, I>::kLearnsWeight || kLearnsUpdate<E, I>;
template <class E, int I>
inline constexpr bool kReadsInputs<E, I, NoGradient> = false;

}  // namespace detail

/// What backward_stages() asks of its arguments, to be called before it. Throws std::invalid_argument if a gradient or
/// the tape has other shapes than the experts, whose `widths` require_stages() has found.
template <PanelExpert E, class ExpertOf, class GradientOf>
void require_backward_stages(const kernel::RowGroups& groups, const ExpertOf& expert_of,
                             const detail::StageWidths<E>& widths, const StageTapeOf<E>& tape,
                             const GradientOf& gradient_of) {
  simd::unroll<kNumStages<E>>([&](auto i) {
    detail::require_tape<E, i>(groups.num_rows(), widths, tape);
    if constexpr (!std::is_same_v<GradientOf, NoGradient>)
      detail::require_gradient_shapes<E, i>(groups, expert_of, gradient_of);
  });
}

/// Backward of forward_stages, in the same groups.
///   dout   [from row 0 to the last of the groups, at least row_width()], zero in columns from output_dim on
///   memory.drows    resized to [rows of the groups, at least input_dim], overwritten; or left with
///   InputGradient::Skip,
///                   which saves a third of the work of a GLU, a quarter of that of an MLP
///   gradient_of(g)  accumulated into; a NoGradient for none, which saves a third of the work
/// Sizes are those that require_backward_stages() asks for. 4 * num_rows * parameters operations, and an activation for
/// each hidden entry; no allocation when warm.
template <PanelExpert E, class ExpertOf, class GradientOf>
void backward_stages(const StagedRows<E, ExpertOf>& of, const StageTapeOf<E>& tape, StageMemoryOf<E>& memory,
                     const RowBuffer<typename E::Scalar>& dout, const GradientOf& gradient_of,
                     InputGradient inputs = InputGradient::Compute) {
  using S = typename E::Scalar;
  using Source = kernel::RowSource<S>;
  constexpr int kLast = kNumStages<E> - 1;
  using LastEpilogue = detail::EpilogueOf<E, kLast>;
  const Index first = of.groups.begin(0);
  const int lowest = detail::lowest_learned_stage<E, GradientOf>(of.widths);
  const bool skips = inputs == InputGradient::Skip;
  if (skips && lowest > kLast) return;
  if constexpr (!LastEpilogue::kIdentity)
    detail::backward_epilogue<LastEpilogue>(tape.pre[kLast], dout, first, memory.dpre[kLast]);
  simd::unroll<kLast + 1>([&](auto reversed) {
    constexpr int I = kLast - reversed;
    constexpr int kBefore = I > 0 ? I - 1 : 0;
    if (skips && I < lowest) return;  // nobody asks for what is left
    const Source dpre =
        I == kLast && LastEpilogue::kIdentity ? Source::from(dout) : Source::from(memory.dpre[I], first);
    Source in = of.in;
    if constexpr (I > 0 && detail::kReadsInputs<E, I, GradientOf>)
      in = detail::hidden_rows<E, kBefore>(of.groups, of.expert_of, tape, memory.hidden[kBefore]);
    detail::add_stage_gradient<E, I>(of.groups, in, dpre, gradient_of, memory.gradient);
    if constexpr (detail::kIsAdapted<E, I>) detail::backward_update<E, I>(of, in, dpre, gradient_of, tape, memory);
    if (skips && I <= lowest) return;
    if constexpr (I > 0)
      detail::backward_into<E, kBefore>(of, dpre, tape, memory);
    else
      detail::store_input_gradient<E>(of, dpre, memory);
  });
}

}  // namespace moe::inline MOE_ABI
