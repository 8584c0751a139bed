// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <tuple>

#include "moe/expert/concept.hpp"
#include "moe/expert/epilogue.hpp"
#include "moe/kernel/grouped_gemm.hpp"

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

/// What backward needs of a run over the stages, and its working memory. A plain value; one per thread.
template <class S, int N>
struct StageTape {
  std::array<RowBuffer<S>, N> pre;     ///< per stage with an activation: pre-activations, in panel order
  std::array<RowBuffer<S>, N> hidden;  ///< output of every stage but the last
  std::array<RowBuffer<S>, N> dpre, dhidden;
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
  using S = typename E::Scalar;
  return kernel::detail::most(groups, [&](Index g) { return stage_weight<I>(expert_of(g)).panels(); }) *
         EpilogueOf<E, I>::kRegisters * simd::kLanes<S>;
}

template <Keep keep, class E, int I, class ExpertOf>
void forward_stage(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                   const ExpertOf& expert_of, RowBuffer<typename E::Scalar>& pre,
                   RowBuffer<typename E::Scalar>& out) {
  using S = typename E::Scalar;
  using Epilogue = EpilogueOf<E, I>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = 2 * kLanes, kOut = Epilogue::kRegisters * kLanes;
  constexpr bool kKeepPre = keep == Keep::PreActivations && !Epilogue::kIdentity;
  out.resize(groups.num_rows(), stage_width<E, I>(groups, expert_of));
  if constexpr (kKeepPre) pre.resize(groups.num_rows(), out.cols() / kOut * kWidth);
  kernel::grouped_multiply<S>(
      groups, in, [&](Index g) -> const auto& { return stage_weight<I>(expert_of(g)); },
      [&](Index g, Index row, Index panel, S* sums) {
        const auto& bias = stage_bias<I>(expert_of(g));
        if (!bias.empty())
          for (Index c = 0; c < kWidth; c += kLanes)
            simd::store(sums + c, simd::load(sums + c) + simd::load(bias.panel(panel) + c));
        if constexpr (kKeepPre) std::copy_n(sums, kWidth, pre.row(row) + panel * kWidth);
        Epilogue::forward(sums, out.row(row) + panel * kOut);
      });
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
/// Keep::PreActivations fills `tape` for backward_stages; Keep::Nothing uses only its hidden buffers.
template <Keep keep, PanelExpert E, class ExpertOf>
void forward_stages(const kernel::RowGroups& groups, kernel::RowSource<typename E::Scalar> in,
                    const ExpertOf& expert_of, StageTapeOf<E>& tape, RowBuffer<typename E::Scalar>& out) {
  constexpr int kLast = kNumStages<E> - 1;
  kernel::unroll<kLast + 1>([&](auto i) {
    RowBuffer<typename E::Scalar>& result = i == kLast ? out : tape.hidden[i];
    detail::forward_stage<keep, E, i>(groups, in, expert_of, tape.pre[i], result);
    in = kernel::RowSource<typename E::Scalar>::from(result);
  });
}

/// Columns that `dout` of backward_stages must have: the width of the last stage's product.
template <PanelExpert E, class ExpertOf>
Index backward_width(const kernel::RowGroups& groups, const ExpertOf& expert_of) {
  return detail::stage_width<E, kNumStages<E> - 1>(groups, expert_of);
}

/// Backward of forward_stages, in the same groups.
///   dout   [num_rows, backward_width], zero in columns from output_dim on
///   din    resized to [num_rows, input_dim], overwritten      gradient_of(g)  accumulated into
/// Throws std::invalid_argument, before it writes anything, if a gradient has other shapes than its expert.
template <PanelExpert E, class ExpertOf, class GradientOf>
void backward_stages(const kernel::RowGroups& groups, const kernel::RowSource<typename E::Scalar>& in,
                     const ExpertOf& expert_of, StageTapeOf<E>& tape, const RowBuffer<typename E::Scalar>& dout,
                     const GradientOf& gradient_of, RowBuffer<typename E::Scalar>& din) {
  using S = typename E::Scalar;
  using Source = kernel::RowSource<S>;
  constexpr int kLast = kNumStages<E> - 1;
  kernel::unroll<kLast + 1>(
      [&](auto i) { detail::require_gradient_shapes<E, i>(groups.count, expert_of, gradient_of); });
  kernel::unroll<kLast + 1>([&](auto reversed) {
    constexpr int I = kLast - reversed;
    constexpr int kBefore = I > 0 ? I - 1 : 0;
    using Epilogue = detail::EpilogueOf<E, I>;
    const RowBuffer<S>& dresult = I == kLast ? dout : tape.dhidden[I];
    if constexpr (!Epilogue::kIdentity) detail::backward_epilogue<Epilogue>(tape.pre[I], dresult, tape.dpre[I]);
    const Source dpre = Source::from(Epilogue::kIdentity ? dresult : tape.dpre[I]);

    kernel::grouped_weight_gradient<S>(
        groups, I == 0 ? in : Source::from(tape.hidden[kBefore]), dpre,
        [&](Index g) -> auto& { return detail::stage_weight<I>(gradient_of(g)); },
        [&](Index g) -> auto& { return detail::stage_bias<I>(gradient_of(g)); });

    RowBuffer<S>& dinput = I == 0 ? din : tape.dhidden[kBefore];
    const Index inputs =
        kernel::detail::most(groups, [&](Index g) { return detail::stage_weight<I>(expert_of(g)).inputs(); });
    dinput.resize(groups.num_rows(), I == 0 ? inputs : tape.hidden[kBefore].cols());
    kernel::clear_columns(dinput, groups, [&](Index g) { return detail::stage_weight<I>(expert_of(g)).inputs(); });
    kernel::grouped_input_gradient<S>(
        groups, dpre, [&](Index g) -> const auto& { return detail::stage_weight<I>(expert_of(g)); },
        [&](Index row, Index input, S value) { dinput.row(row)[input] = value; });
  });
}

}  // namespace moe::inline MOE_ABI
