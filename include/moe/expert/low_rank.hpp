// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/expert/frozen.hpp"
#include "moe/expert/linear.hpp"

namespace moe::inline MOE_ABI {

/// Which matrices of an expert are adapted, and by what.
struct LowRankOptions {
  Index rank = 8;     ///< >= 1, of every update; may be above the sizes of a matrix
  double alpha = 16;  ///< the update is alpha / rank * B A, where alpha / rank is a finite scalar of the expert
  /// Of the stages, by name: "gate_up" and "down" of Glu, "up" and "down" of Mlp, "weight" of Linear, "0", "1", ... of
  /// experts without kStageNames. None means all.
  std::vector<std::string> targets = {};

  /// Throws std::invalid_argument unless the numbers are in range.
  void validate() const {
    if (rank < 1) fail("moe::LowRankOptions: rank is ", rank, ", expected at least 1");
    if (!std::isfinite(alpha)) fail("moe::LowRankOptions: alpha is ", alpha, ", expected a finite number");
  }
};

template <class E>
class LowRank;

namespace detail {

template <class E>
inline constexpr bool kIsLowRank = false;
template <class E>
inline constexpr bool kIsLowRank<LowRank<E>> = true;

/// Whether an update may be scaled so, in S. False for a NaN.
template <class S>
bool is_scale(double scale) {
  return std::abs(scale) <= static_cast<double>(std::numeric_limits<S>::max());
}

/// What is asked of an expert that gets an update; in two steps, as the stages of LowRank are no longer its base's.
template <class E>
concept AdaptableExpert = PanelExpert<E> && !kIsLowRank<E>;

/// Name of stage i.
template <class E>
std::string stage_name(std::size_t i) {
  if constexpr (requires { E::kStageNames; })
    return std::string(E::kStageNames[i]);
  else
    return std::to_string(i);
}

}  // namespace detail

/// An expert E that is frozen, with updates of low rank that learn: every weight W of its stages, or of some of them,
/// becomes W + alpha / rank * B A, A [rank, inputs] and B [outputs, rank]. A starts as U(-1/sqrt(inputs),
/// 1/sqrt(inputs)), B as zeros, so that a new one has the bits of E for rows whose A x is finite. Of Linear, Mlp, Glu
/// and panel experts of your own, with float weights or in few bits. The gate and the up projection of a Glu are one
/// weight here, so they share an A: rank * inputs numbers less, one product instead of two, and the layout of fused
/// checkpoints; a pair of A's is one of twice the rank whose B is half zeros, which is how load_peft_adapters() reads
/// it.
///   moe::LowRank expert(moe::Glu::random(64, 256, /*seed=*/1), {.rank = 8, .alpha = 16}, /*seed=*/2);
/// y = E(x) with x W^T + alpha / rank * (x A^T) B^T for x W^T: the first product is that of E, codes and all, the
/// others run in its loops (AdaptedStage), and W + B A is never formed (merge_adapters() forms it). An expert set as
/// fast as others (PanelExpert): in pools, Frozen, OneOf. The bits of a row are those it has alone, for any number of
/// threads. 2 * rank * (inputs + outputs) operations per row and weight more than E; backward skips the gradients of W
/// and of the biases. Visited are "down.lora_a" ([inputs, rank]: A transposed) and "down.lora_b" ([outputs, rank]);
/// "down.lora_scale" and the numbers of E, under their names, are state. Copies, gradients and moments share E, as
/// Frozen has it. Immutable in forward, share freely.
/// Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022 (arXiv:2106.09685).
template <class E>
class LowRank : public StagedExpert<LowRank<E>, CodecOf<typename E::Scalar>> {
  static_assert(PanelExpert<E>,
                "moe::LowRank: an expert that is adapted lists its stages: `template <class Self> static auto "
                "stages(Self&)` (see PanelExpert in moe/expert/stage/stages.hpp)");
  static_assert(!detail::kIsLowRank<E>,
                "moe::LowRank: the expert has updates of low rank already, expected one without: merge_adapters() "
                "makes it");
  using Staged = StagedExpert<LowRank, CodecOf<typename E::Scalar>>;

 public:
  using Scalar = typename E::Scalar;
  using Codec = CodecOf<Scalar>;
  using Tape = typename Staged::template Tape<LowRank>;
  static constexpr int kStages = kNumStages<E>;
  using Updates = std::array<LowRankUpdate<Codec>, static_cast<std::size_t>(kStages)>;

  /// Without updates: set some in updates().
  explicit LowRank(Frozen<E> base) : base_(std::move(base)) {}
  explicit LowRank(E base) : LowRank(Frozen<E>(std::move(base))) {}
  /// Throws std::invalid_argument for numbers out of range and targets that the expert does not have.
  LowRank(E base, const LowRankOptions& options, std::uint64_t seed) : LowRank(std::move(base)) {
    options.validate();
    const double scale = options.alpha / static_cast<double>(options.rank);
    if (!detail::is_scale<Scalar>(scale))
      fail("moe::LowRank: alpha / rank is ", scale, ", expected at most ", std::numeric_limits<Scalar>::max(),
           ", as it is used as a scalar of the expert");
    for (const std::string& target : options.targets) stage_of("moe::LowRank", target);
    simd::unroll<kStages>([&](auto i) {
      const auto& wanted = options.targets;
      if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name(i)) == wanted.end()) return;
      const auto& weight = detail::stage_weight<i>(*base_);
      LowRankUpdate<Codec>& update = updates_[i];
      update.a = PanelMatrix<Codec>(weight.inputs(), options.rank);
      update.b = PanelMatrix<Codec>(weight.outputs(), options.rank, weight.order());
      update.scale = scale;
      update.a.randomise(RandomField(Purpose::Initialise, seed, i), detail::initial_bound(weight.inputs()));
    });
  }

  Index input_dim() const { return base_->input_dim(); }
  Index output_dim() const { return base_->output_dim(); }
  const E& base() const { return *base_; }
  /// By stage: of Glu the first is that of gate and up, the second that of down. Empty ones are no update.
  Updates& updates() { return updates_; }
  const Updates& updates() const { return updates_; }
  /// The same by the name of the stage. Throws std::invalid_argument for a name that is none.
  LowRankUpdate<Codec>& update(std::string_view stage) { return updates_[stage_of("moe::LowRank::update", stage)]; }
  const LowRankUpdate<Codec>& update(std::string_view stage) const {
    return updates_[stage_of("moe::LowRank::update", stage)];
  }
  /// Name of stage i < kStages.
  static std::string name(int i) { return detail::stage_name<E>(static_cast<std::size_t>(i)); }

  template <class Self>
  static auto stages(Self& self) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      const auto base = E::stages(*self.base_);  // const, whatever Self is
      return std::tuple{adapt(std::get<I>(base), self.updates_[I])...};
    }(std::make_index_sequence<static_cast<std::size_t>(kStages)>{});
  }
  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    for (std::size_t i = 0; i < first.updates_.size(); ++i) {
      if (first.updates_[i].empty()) continue;
      const std::string stage = detail::stage_name<E>(i);
      f(stage + ".lora_a", first.updates_[i].a, rest.updates_[i].a...);
      f(stage + ".lora_b", first.updates_[i].b, rest.updates_[i].b...);
    }
    moe::visit(f, first.base_, rest.base_...);  // state alone
  }
  template <class F, class First, class... Rest>
  static void state(F&& f, First& first, Rest&... rest) {
    for (std::size_t i = 0; i < first.updates_.size(); ++i)
      if (!first.updates_[i].empty())
        f(detail::stage_name<E>(i) + ".lora_scale", first.updates_[i].scale, rest.updates_[i].scale...);
  }

 private:
  static std::size_t stage_of(const char* function, std::string_view stage) {
    std::string known;
    for (int i = 0; i < kStages; ++i) {
      if (name(i) == stage) return static_cast<std::size_t>(i);
      known += (i > 0 ? ", '" : "'") + name(i) + "'";
    }
    fail(function, ": the expert has no stage '", stage, "', expected one of ", known);
  }

  Frozen<E> base_;
  Updates updates_;
};

template <class E>
LowRank(E) -> LowRank<E>;
template <class E>
LowRank(E, const LowRankOptions&, std::uint64_t) -> LowRank<E>;

}  // namespace moe::inline MOE_ABI
