// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <tuple>

#include "moe/expert/concept.hpp"
#include "moe/expert/epilogue.hpp"
#include "moe/kernel/grouped_gradient.hpp"

namespace moe::inline MOE_ABI {

/// One stage of an expert: out = Epilogue(in x weight^T + bias). M is PanelMatrix<Codec>, const or not; an empty bias
/// means none.
template <class E, class M>
struct Stage {
  using Epilogue = E;
  M& weight;
  M& bias;
};

template <class Epilogue, class M>
Stage<Epilogue, M> make_stage(M& weight, M& bias) {
  return {weight, bias};
}

/// An expert that lists its stages: `stages(self)` returns a std::tuple of Stage. An ExpertPool then runs stage i of all
/// experts in one parallel loop and reads the routed rows in place.
template <class E>
concept PanelExpert = Expert<E> && requires(const E& expert) { std::get<0>(E::stages(expert)); };

template <PanelExpert E>
inline constexpr int kNumStages = std::tuple_size_v<decltype(E::stages(std::declval<const E&>()))>;

/// What backward needs of a run over the stages, and the working memory of both passes. A plain value; one per thread.
template <class S, int N>
struct StageTape {
  std::array<RowBuffer<S>, N> pre;     ///< per stage with an activation: pre-activations, in panel order
  std::array<RowBuffer<S>, N> hidden;  ///< output of every stage but the last; for inference, of one wave of rows
  std::array<RowBuffer<S>, N> dpre;
  kernel::TaskList tasks;
  kernel::GradientScratch<S> gradient;
};

template <PanelExpert E>
using StageTapeOf = StageTape<typename E::Scalar, kNumStages<E>>;

enum class Keep { Nothing, PreActivations };

namespace detail {

template <class E, int I>
using EpilogueOf = typename std::tuple_element_t<I, decltype(E::stages(std::declval<const E&>()))>::Epilogue;

template <int I, class E>
auto& stage_weight(E& expert) {
  return std::get<I>(std::remove_const_t<E>::stages(expert)).weight;
}
template <int I, class E>
auto& stage_bias(E& expert) {
  return std::get<I>(std::remove_const_t<E>::stages(expert)).bias;
}

/// Columns that stage I of any group writes: panels x registers of its epilogue.
template <class E, int I, class ExpertOf>
Index stage_width(const kernel::RowGroups& groups, const ExpertOf& expert_of) {
  Index panels = 0;
  for (Index g = 0; g < groups.count; ++g) panels = std::max(panels, stage_weight<I>(expert_of(g)).panels());
  return panels * EpilogueOf<E, I>::kRegisters * simd::kLanes<typename E::Scalar>;
}

/// Stage I for the rows of `groups`; `out` holds those rows, or all rows from 0 on in the last stage.
template <Keep keep, class E, int I, class ExpertOf>
void forward_stage(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                   const ExpertOf& expert_of, StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& out) {
  using S = typename E::Scalar;
  using Epilogue = EpilogueOf<E, I>;
  constexpr Index kWidth = kernel::kPanelWidth<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
  constexpr bool kKeepPre = keep == Keep::PreActivations && !Epilogue::kIdentity;
  const Index origin = I + 1 == kNumStages<E> ? 0 : groups.begin(0);
  RowBuffer<S>& pre = tape.pre[I];
  kernel::grouped_multiply<S>(
      groups, in, [&](Index g) -> const auto& { return stage_weight<I>(expert_of(g)); }, tape.tasks,
      [&](Index g, Index row, int count, Index panel, S* sums) {
        const auto& bias = stage_bias<I>(expert_of(g));
        if (!bias.empty()) kernel::add_to_rows(bias.panel(panel), count, sums);
        if constexpr (kKeepPre)
          for (Index r = 0; r < count; ++r) std::copy_n(sums + r * kWidth, kWidth, pre.row(row + r) + panel * kWidth);
        for (Index r = 0; r < count; ++r)
          Epilogue::forward(sums + r * kWidth, out.row(row - origin + r) + panel * kOut);
      });
}

/// All stages for the rows of `groups`, the hidden rows of which lie in the tape.
template <Keep keep, class E, class ExpertOf>
void forward_wave(const kernel::RowGroups& groups, kernel::RowSource<typename E::Scalar> in, const ExpertOf& expert_of,
                  StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& out) {
  constexpr int kLast = kNumStages<E> - 1;
  simd::unroll<kLast + 1>([&](auto i) {
    constexpr Index kOut = EpilogueOf<E, i>::kRegisters * simd::kLanes<typename E::Scalar>;
    const Index width = stage_width<E, i>(groups, expert_of);
    if constexpr (i < kLast) tape.hidden[i].resize(groups.num_rows(), width);
    if constexpr (keep == Keep::PreActivations && !EpilogueOf<E, i>::kIdentity)
      tape.pre[i].resize(groups.num_rows(), width / kOut * kernel::kPanelWidth<typename E::Scalar>);
    forward_stage<keep, E, i>(groups, in, expert_of, tape, i == kLast ? out : tape.hidden[i]);
    if constexpr (i < kLast) in = kernel::RowSource<typename E::Scalar>::from(tape.hidden[i], groups.begin(0));
  });
}

/// Bytes of hidden activations per worker and stage that inference works on at a time: L3 keeps them, and with them go
/// enough rows for the weights to be read few times.
inline constexpr Index kHiddenBytes = Index{2} << 20;

/// Most rows of a wave of inference.
template <class E, class ExpertOf>
Index wave_rows(const kernel::RowGroups& groups, const ExpertOf& expert_of) {
  Index width = 1;
  simd::unroll<kNumStages<E> - 1>([&](auto i) { width = std::max(width, stage_width<E, i>(groups, expert_of)); });
  const Index row_bytes = width * static_cast<Index>(sizeof(typename E::Scalar));
  return num_workers() * std::max(kernel::detail::kLeastRows, kHiddenBytes / row_bytes);
}

/// dpre = dout * Epilogue'(pre), row by row; columns of `dout` beyond what a narrower expert wrote must be finite.
template <class Epilogue, class S>
void backward_epilogue(const RowBuffer<S>& pre, const RowBuffer<S>& dout, RowBuffer<S>& dpre) {
  constexpr Index kWidth = 2 * simd::kLanes<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
  dpre.resize(pre.rows(), pre.cols());
  parallel_ranges(pre.rows(), 16, [&](Index begin, Index end, Index) {
    for (Index r = begin; r < end; ++r)
      for (Index p = 0; p < pre.cols() / kWidth; ++p)
        Epilogue::backward(pre.row(r) + p * kWidth, dout.row(r) + p * kOut, dpre.row(r) + p * kWidth);
  });
}

/// tape.dpre[I] from the gradient of what stage I + 1 computed: its input gradient goes through the derivative of stage
/// I's epilogue while it is in registers.
template <class E, int I, class ExpertOf>
void backward_into(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& dpre_above,
                   const ExpertOf& expert_of, StageTapeOf<E>& tape) {
  using S = typename E::Scalar;
  using Epilogue = EpilogueOf<E, I>;
  constexpr Index kWidth = kernel::kPanelWidth<S>, kOut = Epilogue::kRegisters * simd::kLanes<S>;
  const RowBuffer<S>& pre = tape.pre[I];
  RowBuffer<S>& dpre = tape.dpre[I];
  dpre.resize(groups.num_rows(), stage_width<E, I>(groups, expert_of) / kOut * kWidth);
  kernel::grouped_input_gradient<S>(
      groups, dpre_above, [&](Index g) -> const auto& { return stage_weight<I + 1>(expert_of(g)); }, tape.gradient,
      [&](Index g, Index row, int count, Index panel, const S* dhidden) {
        const Index panels = stage_weight<I>(expert_of(g)).panels();
        for (Index c = 0; c < kWidth; c += kOut) {
          const Index p = (panel * kWidth + c) / kOut;
          if (p >= panels) break;
          for (Index r = 0; r < count; ++r) {
            if constexpr (Epilogue::kIdentity)
              std::copy_n(dhidden + r * kWidth, kWidth, dpre.row(row + r) + p * kWidth);
            else
              Epilogue::backward(pre.row(row + r) + p * kWidth, dhidden + r * kWidth + c,
                                 dpre.row(row + r) + p * kWidth);
          }
        }
      });
}

/// din = the input gradient of stage 0.
template <class E, class ExpertOf>
void store_input_gradient(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& dpre,
                          const ExpertOf& expert_of, StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& din) {
  using S = typename E::Scalar;
  constexpr Index kWidth = kernel::kPanelWidth<S>;
  const Index inputs = stage_weight<0>(expert_of(0)).inputs();
  din.resize(groups.num_rows(), kernel::panels_of<S>(inputs) * kWidth);
  kernel::grouped_input_gradient<S>(
      groups, dpre, [&](Index g) -> const auto& { return stage_weight<0>(expert_of(g)); }, tape.gradient,
      [&](Index, Index row, int count, Index panel, const S* sums) {
        for (Index r = 0; r < count; ++r) std::copy_n(sums + r * kWidth, kWidth, din.row(row + r) + panel * kWidth);
      });
}

/// Throws std::invalid_argument unless stage I of every gradient is shaped as that of its expert: the kernels trust it.
template <class E, int I, class ExpertOf, class GradientOf>
void require_gradient_shapes(Index num_groups, const ExpertOf& expert_of, const GradientOf& gradient_of) {
  for (Index g = 0; g < num_groups; ++g) {
    const auto &weight = stage_weight<I>(expert_of(g)), &dweight = stage_weight<I>(gradient_of(g));
    const auto &bias = stage_bias<I>(expert_of(g)), &dbias = stage_bias<I>(gradient_of(g));
    if (!dweight.is_shaped_as(weight) || !dbias.is_shaped_as(bias))
      fail("moe::Expert::backward: gradient of expert ", g, ", stage ", I, " is [", dweight.outputs(), ", ",
           dweight.inputs(), "] with ", dbias.outputs(), " biases, expected [", weight.outputs(), ", ", weight.inputs(),
           "] with ", bias.outputs());
  }
}

}  // namespace detail

/// Runs all stages over groups of rows, group g through expert_of(g).
///   in   rows of input_dim scalars      out  resized to [num_rows, at least output_dim], in group order
/// Keep::PreActivations fills `tape` for backward_stages. Keep::Nothing goes over the rows in waves, so that the hidden
/// activations of a stage take at most max(2 MiB, 16 tiles of rows) per worker, whatever the number of rows.
template <Keep keep, PanelExpert E, class ExpertOf>
void forward_stages(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                    const ExpertOf& expert_of, StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& out) {
  constexpr int kLast = kNumStages<E> - 1;
  out.resize(groups.num_rows(), detail::stage_width<E, kLast>(groups, expert_of));
  if constexpr (keep == Keep::PreActivations || kLast == 0) {
    detail::forward_wave<keep, E>(groups, in, expert_of, tape, out);
  } else {
    const Index most = detail::wave_rows<E>(groups, expert_of);
    for (Index row = 0; row < groups.num_rows();) {
      const kernel::RowGroups wave = kernel::wave_from(groups, row, most);
      detail::forward_wave<keep, E>(wave, in, expert_of, tape, out);
      row = wave.last_row;
    }
  }
}

/// Columns that `dout` of backward_stages must have: the width of the last stage's product.
template <PanelExpert E, class ExpertOf>
Index backward_width(const kernel::RowGroups& groups, const ExpertOf& expert_of) {
  return detail::stage_width<E, kNumStages<E> - 1>(groups, expert_of);
}

/// Backward of forward_stages, in the same groups.
///   dout   [num_rows, backward_width], zero in columns from output_dim on
///   din    resized to [num_rows, at least input_dim], overwritten      gradient_of(g)  accumulated into
/// Throws std::invalid_argument, before it writes anything, if a gradient has other shapes than its expert.
template <PanelExpert E, class ExpertOf, class GradientOf>
void backward_stages(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                     const ExpertOf& expert_of, StageTapeOf<E>& tape, const RowBuffer<typename E::Scalar>& dout,
                     const GradientOf& gradient_of, RowBuffer<typename E::Scalar>& din) {
  using S = typename E::Scalar;
  using Source = kernel::RowSource<S>;
  constexpr int kLast = kNumStages<E> - 1;
  using LastEpilogue = detail::EpilogueOf<E, kLast>;
  simd::unroll<kLast + 1>(
      [&](auto i) { detail::require_gradient_shapes<E, i>(groups.count, expert_of, gradient_of); });
  if constexpr (!LastEpilogue::kIdentity)
    detail::backward_epilogue<LastEpilogue>(tape.pre[kLast], dout, tape.dpre[kLast]);
  simd::unroll<kLast + 1>([&](auto reversed) {
    constexpr int I = kLast - reversed;
    constexpr int kBefore = I > 0 ? I - 1 : 0;
    const Source dpre = Source::from(I == kLast && LastEpilogue::kIdentity ? dout : tape.dpre[I]);
    kernel::grouped_weight_gradient<S>(
        groups, I == 0 ? in : Source::from(tape.hidden[kBefore]), dpre,
        [&](Index g) -> auto& { return detail::stage_weight<I>(gradient_of(g)); },
        [&](Index g) -> auto& { return detail::stage_bias<I>(gradient_of(g)); }, tape.gradient);
    if constexpr (I == 0)
      detail::store_input_gradient<E>(groups, dpre, expert_of, tape, din);
    else
      detail::backward_into<E, kBefore>(groups, dpre, expert_of, tape);
  });
}

}  // namespace moe::inline MOE_ABI
