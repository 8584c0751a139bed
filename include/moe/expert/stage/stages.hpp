// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <tuple>

#include "moe/expert/concept.hpp"
#include "moe/expert/stage/epilogue.hpp"
#include "moe/kernel/grouped_gradient.hpp"
#include "moe/kernel/low_rank.hpp"
#include "moe/kernel/panel_matrix.hpp"

namespace moe::inline MOE_ABI {

/// One stage of an expert: out = epilogue(in x weight^T + bias). W is a PanelWeight, B a PanelMatrix of its scalar; an
/// empty bias means none. Codes have no gradient, nor have weights and biases that are const though the expert is not.
/// The epilogue is a value, as it may hold numbers.
template <class E, class W, class B>
struct Stage {
  static constexpr bool kIsWeight = PanelWeight<std::remove_const_t<W>>;  // named: compilers explain concepts at length
  static_assert(kIsWeight,
                "moe::Stage: weights are a moe::PanelMatrix or have `Scalar`, `outputs()`, `inputs()`, `panels()`, "
                "`order()` and `source()` (see PanelWeight in moe/kernel/panel_matrix.hpp)");
  static_assert(LearnedWeight<std::remove_const_t<B>> && std::is_same_v<typename B::Scalar, typename W::Scalar>,
                "moe::Stage: biases are a moe::PanelMatrix of the scalar that the weights are computed with");
  using Epilogue = E;
  static constexpr bool kLearnsWeight = !std::is_const_v<W> && LearnedWeight<W>;
  static constexpr bool kLearnsBias = !std::is_const_v<B>;
  W& weight;
  B& bias;
  [[no_unique_address]] E epilogue = {};
};

template <class Epilogue, class W, class B>
Stage<Epilogue, W, B> make_stage(W& weight, B& bias, const Epilogue& epilogue = {}) {
  return {weight, bias, epilogue};
}

/// A stage whose weight is W + scale * B A, of which A and B learn, unless they are const: the product with W has the
/// bits of the stage without it, and W + scale * B A is never formed. U is a LowRankUpdate& or a LowRankView.
template <class E, class W, class B, class U>
struct AdaptedStage : Stage<E, W, B> {
  static constexpr bool kLearnsUpdate = !std::is_const_v<std::remove_reference_t<decltype((std::declval<U>().a))>>;
  using Update = U;
  U update;
};

template <class E, class W, class B, class Codec>
AdaptedStage<E, W, B, LowRankUpdate<Codec>&> adapt(const Stage<E, W, B>& stage, LowRankUpdate<Codec>& update) {
  return {stage, update};
}
template <class E, class W, class B, class Codec>
AdaptedStage<E, W, B, const LowRankUpdate<Codec>&> adapt(const Stage<E, W, B>& stage,
                                                         const LowRankUpdate<Codec>& update) {
  return {stage, update};
}
template <class E, class W, class B, class P>
AdaptedStage<E, W, B, LowRankView<P>> adapt(const Stage<E, W, B>& stage, const LowRankView<P>& update) {
  return {stage, update};
}

/// An expert that lists its stages: `stages(self)` returns a std::tuple of Stage. An ExpertPool then runs stage i of
/// all experts in one parallel loop and reads the routed rows in place.
template <class E>
concept PanelExpert = Expert<E> && requires(const E& expert) { std::get<0>(E::stages(expert)); };

template <PanelExpert E>
inline constexpr int kNumStages = std::tuple_size_v<decltype(E::stages(std::declval<const E&>()))>;

/// Columns of the rows that the last stage writes, and of the gradients that backward reads: output_dim in whole
/// registers of its epilogue, the same for all experts of equal output_dim.
template <PanelExpert E>
Index row_width(const E& expert) {
  using Last = std::tuple_element_t<kNumStages<E> - 1, decltype(E::stages(expert))>;
  return std::get<kNumStages<E> - 1>(E::stages(expert)).weight.panels() * Last::Epilogue::kRegisters *
         simd::kLanes<typename E::Scalar>;
}

/// What backward needs of a run over the stages; one per pass. A hidden row is not in it: backward computes it anew.
template <class S, int N>
struct StageTape {
  std::array<RowBuffer<S>, N> pre;  ///< per stage, but a last one without activation: pre-activations, in panel order
  std::array<RowBuffer<S>, N> low;  ///< per adapted stage: scale * A x
};

/// Working memory of runs over the stages, forward and backward; one per thread, shared by all tapes.
template <class S, int N>
struct StageMemory {
  std::array<RowBuffer<S>, N> hidden;  ///< output of every stage but the last; for inference, of one wave of rows
  std::array<RowBuffer<S>, N> dpre;
  std::array<RowBuffer<S>, N> low;  ///< of a wave of inference: scale * A x
  RowBuffer<S> dlow;                ///< scale * B^T dpre, of one stage
  RowBuffer<S> drows;               ///< gradients of the rows that the experts read
  kernel::TaskList tasks;
  kernel::GradientScratch<S> gradient;
};

template <PanelExpert E>
using StageTapeOf = StageTape<typename E::Scalar, kNumStages<E>>;
template <PanelExpert E>
using StageMemoryOf = StageMemory<typename E::Scalar, kNumStages<E>>;

namespace detail {

template <class E, int I>
using StageOf = std::tuple_element_t<I, decltype(E::stages(std::declval<const E&>()))>;
template <class E, int I>
using EpilogueOf = typename StageOf<E, I>::Epilogue;

/// Whether stage I has an update of its weight.
template <class E, int I>
inline constexpr bool kIsAdapted = requires { StageOf<E, I>::kLearnsUpdate; };

/// Stage I of a gradient.
template <class E, int I>
using GradientStage = std::tuple_element_t<I, decltype(E::stages(std::declval<E&>()))>;
template <class E, int I>
inline constexpr bool kLearnsUpdate = false;
template <class E, int I>
  requires kIsAdapted<E, I>
inline constexpr bool kLearnsUpdate<E, I> = GradientStage<E, I>::kLearnsUpdate;

/// Whether a tape keeps the pre-activations of stage I: backward needs their derivative, or what the next stage read.
template <class E, int I>
inline constexpr bool kKeepsPre = I + 1 < kNumStages<E> || !EpilogueOf<E, I>::kIdentity;

/// Parts of stage I of an expert, or of what stands for one while it is asked.
template <int I, class E>
auto& stage_weight(E&& expert) {
  return std::get<I>(std::remove_cvref_t<E>::stages(expert)).weight;
}
template <int I, class E>
auto& stage_bias(E&& expert) {
  return std::get<I>(std::remove_cvref_t<E>::stages(expert)).bias;
}
template <int I, class E>
auto stage_update(E&& expert) ->
    typename std::tuple_element_t<I, decltype(std::remove_cvref_t<E>::stages(expert))>::Update {
  return std::get<I>(std::remove_cvref_t<E>::stages(expert)).update;
}
template <int I, class E>
auto stage_epilogue(E&& expert) {
  return std::get<I>(std::remove_cvref_t<E>::stages(expert)).epilogue;
}

/// How wide the stages of the widest expert that has rows are; expert 0 counts always, and all do for ranks.
template <PanelExpert E>
struct StageWidths {
  std::array<Index, kNumStages<E>> panels = {};
  std::array<Index, kNumStages<E>> ranks = {};  // of updates; of experts without rows, too, as those get some later

  bool operator==(const StageWidths&) const = default;

  /// Columns that stage I writes: panels x registers of its epilogue.
  template <int I>
  Index out() const {
    return panels[I] * EpilogueOf<E, I>::kRegisters * simd::kLanes<typename E::Scalar>;
  }
  /// Columns of its pre-activations: two registers per panel.
  template <int I>
  Index pre() const {
    return panels[I] * kernel::kPanelWidth<typename E::Scalar>;
  }
};

/// A PanelMatrix has panels of its sizes; what a user writes may not.
template <class W>
inline constexpr bool kHasConsistentPanels = false;
template <class Codec>
inline constexpr bool kHasConsistentPanels<PanelMatrix<Codec>> = true;

/// Throws std::invalid_argument unless the panels of a weight are as many as its outputs take, and what it hands to the
/// kernels is of its sizes. What is so anyway is not asked for its source, which compiles the products of all codes.
template <class W>
void require_consistent_panels([[maybe_unused]] const W& weight, [[maybe_unused]] Index stage,
                               [[maybe_unused]] Index expert) {
  if constexpr (!kHasConsistentPanels<W>) {
    const Index units = weight.order() == PanelOrder::Paired ? weight.outputs() / 2 : weight.outputs();
    const Index width = kernel::kPanelWidth<typename W::Scalar> / (weight.order() == PanelOrder::Paired ? 2 : 1);
    const auto source = weight.source();
    if (weight.panels() != (units + width - 1) / width || source.panels != weight.panels() ||
        source.inputs != weight.inputs())
      fail("moe::PanelExpert: stage ", stage, " of expert ", expert, " has ", weight.panels(),
           " panels, and a source of ", source.panels, " with ", source.inputs, " inputs, expected those of a matrix [",
           weight.outputs(), ", ", weight.inputs(), "]");
  }
}

/// Widths of the stages. Throws std::invalid_argument unless every expert that has rows maps `inputs` columns to
/// `outputs`, each stage reading what the stage before has written, with biases of its size: parts may be replaced
/// through references, and the kernels trust sizes. Of others the ranks of updates are read at most: to touch them is
/// what costs for one token of many small experts.
template <class E, class ExpertOf>
StageWidths<E> require_stages(const kernel::RowGroups& groups, Index inputs, Index outputs, const ExpertOf& expert_of) {
  StageWidths<E> widths;
  for (Index g = 0; g < groups.count; ++g) {
    if (g > 0 && (groups.is_empty(g) || groups.size(g) == 0)) continue;
    Index width = inputs;
    simd::unroll<kNumStages<E>>([&](auto i) {
      using Epilogue = EpilogueOf<E, i>;
      const auto& weight = stage_weight<i>(expert_of(g));
      const auto& bias = stage_bias<i>(expert_of(g));
      if (weight.inputs() != width || weight.order() != Epilogue::kOrder || !bias.is_bias_of(weight))
        fail("moe::PanelExpert: stage ", i + 0, " of expert ", g, " is [", weight.outputs(), ", ", weight.inputs(),
             "] with ", bias.outputs(), " biases, expected [.., ", width,
             "] with none or as many, in the order of its epilogue");
      require_consistent_panels(weight, i, g);
      if constexpr (kIsAdapted<E, i>) {
        const auto& update = stage_update<i>(expert_of(g));
        if (!update.is_update_of(weight))
          fail("moe::PanelExpert: stage ", i + 0, " of expert ", g, " has an update of B [", update.b.outputs(), ", ",
               update.b.inputs(), "] and A [", update.a.inputs(), ", ", update.a.outputs(),
               "], expected one of a matrix [", weight.outputs(), ", ", weight.inputs(), "] in its order");
      }
      width = Epilogue::kOrder == PanelOrder::Paired ? weight.outputs() / 2 : weight.outputs();
      widths.panels[i] = std::max(widths.panels[i], weight.panels());
    });
    if (width != outputs)
      fail("moe::PanelExpert: expert ", g, " has ", width, " outputs, expected ", outputs, " as expert 0");
  }
  simd::unroll<kNumStages<E>>([&](auto i) {
    if constexpr (kIsAdapted<E, i>)
      for (Index g = 0; g < groups.count; ++g)
        widths.ranks[i] = std::max(widths.ranks[i], stage_update<i>(expert_of(g)).rank());
  });
  return widths;
}

}  // namespace detail

/// Which rows go through which experts: group g of `in`, rows of input_dim scalars, through expert_of(g). `widths` are
/// what require_stages() has found of these experts.
template <PanelExpert E, class ExpertOf>
struct StagedRows {
  kernel::RowGroups groups;
  kernel::RowSource<typename E::Scalar> in;
  ExpertOf expert_of;
  detail::StageWidths<E> widths;
};

}  // namespace moe::inline MOE_ABI
