// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/expert/low_rank.hpp"
#include "moe/expert/pool.hpp"

namespace moe::inline MOE_ABI {

/// Updates of all experts of a pool that have one factor in common: by stage, A of all and a B of each, or B of all and
/// an A of each. A plain value. Visited are "down.lora_a" and "3.down.lora_b", or "down.lora_b" and "3.down.lora_a";
/// "down.lora_scale" is state.
template <class Codec>
struct BasicSharedAdapters {
  struct Stage {
    std::string name;
    PanelMatrix<Codec> common;            ///< A^T [inputs, rank] or B [outputs, rank]; empty for no update
    std::vector<PanelMatrix<Codec>> own;  ///< the other factor, by expert
    double scale = 1;
  };
  SharedFactor shared = SharedFactor::A;
  std::vector<Stage> stages;

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    (require_as(first, rest), ...);
    const bool is_a = first.shared == SharedFactor::A;
    for (std::size_t i = 0; i < first.stages.size(); ++i) {
      if (first.stages[i].common.empty()) continue;
      const std::string& name = first.stages[i].name;
      f(name + (is_a ? ".lora_a" : ".lora_b"), first.stages[i].common, rest.stages[i].common...);
      for (std::size_t e = 0; e < first.stages[i].own.size(); ++e)
        f(std::to_string(e) + "." + name + (is_a ? ".lora_b" : ".lora_a"), first.stages[i].own[e],
          rest.stages[i].own[e]...);
    }
  }
  template <class F, class First, class... Rest>
  static void state(F&& f, First& first, Rest&... rest) {
    (require_as(first, rest), ...);
    for (std::size_t i = 0; i < first.stages.size(); ++i)
      if (!first.stages[i].common.empty())
        f(first.stages[i].name + ".lora_scale", first.stages[i].scale, rest.stages[i].scale...);
  }

 private:
  static void require_as(const BasicSharedAdapters& first, const BasicSharedAdapters& other) {
    bool same = first.shared == other.shared && first.stages.size() == other.stages.size();
    for (std::size_t i = 0; same && i < first.stages.size(); ++i)
      same = first.stages[i].own.size() == other.stages[i].own.size() &&
             first.stages[i].common.empty() == other.stages[i].common.empty();
    if (!same)
      fail("moe::SharedAdapters::visit: the updates differ in the factor that is shared, in stages or experts, ",
           "expected the same");
  }
};
using SharedAdapters = BasicSharedAdapters<F32>;

namespace detail {

/// Expert e of a SharedLowRank while it runs: a few pointers. Of a set that is const it is const, too.
template <class E>
class SharedMember : public StagedExpert<SharedMember<E>, CodecOf<typename E::Scalar>> {
 public:
  using Scalar = typename E::Scalar;
  using Codec = CodecOf<Scalar>;
  using Tape = typename StagedExpert<SharedMember, Codec>::template Tape<SharedMember>;

  SharedMember(const E& base, const BasicSharedAdapters<Codec>& adapters, Index expert)
      : base_(&base), adapters_(const_cast<BasicSharedAdapters<Codec>*>(&adapters)), expert_(expert) {}

  Index input_dim() const { return base_->input_dim(); }
  Index output_dim() const { return base_->output_dim(); }

  template <class Self>
  static auto stages(Self& self) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      const auto base = E::stages(*self.base_);
      return std::tuple{adapt(std::get<I>(base), view<I>(self))...};
    }(std::make_index_sequence<static_cast<std::size_t>(kNumStages<E>)>{});
  }
  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // the set does

 private:
  template <std::size_t I, class Self>
  static auto view(Self& self) {
    using P = std::conditional_t<std::is_const_v<Self>, const PanelMatrix<Codec>, PanelMatrix<Codec>>;
    auto& adapters = *self.adapters_;
    auto& stage = adapters.stages[I];
    P &common = stage.common, &own = stage.own[static_cast<std::size_t>(self.expert_)];
    const bool is_a = adapters.shared == SharedFactor::A;
    return LowRankView<P>{is_a ? common : own, is_a ? own : common, stage.scale, adapters.shared};
  }

  const E* base_;
  BasicSharedAdapters<Codec>* adapters_;
  Index expert_;
};

}  // namespace detail

/// A frozen pool with updates of low rank that share a factor: the weights W_e of a stage become
/// W_e + alpha / rank * B_e A with one A for all experts (SharedFactor::A), or W_e + alpha / rank * B A_e. With E
/// experts it learns (inputs + E outputs) or (E inputs + outputs) times the rank, where ExpertPool<LowRank> learns E
/// (inputs + outputs).
///   moe::MoeLayer adapted = moe::with_shared_adapters(layer, moe::SharedFactor::A, {.rank = 8, .alpha = 16}, 1);
/// An ExpertSet on the path of a pool of LowRank, with the bits of one whose factors are the same. A starts as in
/// LowRank and B as zeros, so that a new one has the bits of its base for rows whose A x is finite. The gradient of the
/// factor in common is the sum over the rows of all experts in plan order: the same bits for any number of threads.
/// Immutable in forward, share freely. Tian et al., "HydraLoRA: an asymmetric LoRA architecture", NeurIPS 2024
/// (arXiv:2404.19245), share A.
template <PanelExpert E>
class SharedLowRank : public PooledExperts<SharedLowRank<E>, detail::SharedMember<E>> {
  using Member = detail::SharedMember<E>;

 public:
  using Scalar = typename E::Scalar;
  using Codec = CodecOf<Scalar>;
  using Tape = typename PooledExperts<SharedLowRank, Member>::Tape;
  static constexpr bool kPerToken = kIsPerToken<E>;
  static constexpr int kStages = kNumStages<E>;

  /// Throws std::invalid_argument for numbers out of range, targets that the experts do not have,
  /// SharedFactor::Neither, and experts whose hidden widths differ, as one factor then fits no two.
  SharedLowRank(ExpertPool<E> pool, SharedFactor shared, const LowRankOptions& options, std::uint64_t seed)
      : base_(std::move(pool)) {
    constexpr const char* kFunction = "moe::SharedLowRank";
    if (shared == SharedFactor::Neither) fail(kFunction, ": shared is Neither, expected A or B");
    if (base_->size() == 0) fail(kFunction, ": there are no experts: they have been moved from");
    require_equal_widths(kFunction);
    const LowRank<E> example((*base_)[0], options, seed);  // checks the options
    const RandomField seeds(Purpose::Initialise, seed);
    adapters_.shared = shared;
    simd::unroll<kStages>([&](auto i) {
      const LowRankUpdate<Codec>& update = example.updates()[i];
      typename BasicSharedAdapters<Codec>::Stage stage{LowRank<E>::name(i), {}, {}, update.scale};
      stage.common = shared == SharedFactor::A ? update.a : update.b;
      stage.own.assign(static_cast<std::size_t>(base_->size()), shared == SharedFactor::A ? update.b : update.a);
      if (shared == SharedFactor::B && !update.empty())
        for (Index e = 0; e < base_->size(); ++e)
          stage.own[static_cast<std::size_t>(e)].randomise(RandomField(Purpose::Initialise, seeds.bits(e), i),
                                                           detail::initial_bound(update.a.outputs()));
      adapters_.stages.push_back(std::move(stage));
    });
  }

  Index size() const { return adapters_.stages.empty() ? 0 : base_->size(); }  // 0 when it has been moved from
  Index input_dim() const { return size() == 0 ? 0 : base_->input_dim(); }
  Index output_dim() const { return size() == 0 ? 0 : base_->output_dim(); }
  const ExpertPool<E>& base() const { return *base_; }
  /// Numbers may be changed, sizes not: forward then throws std::invalid_argument.
  BasicSharedAdapters<Codec>& adapters() { return adapters_; }
  const BasicSharedAdapters<Codec>& adapters() const { return adapters_; }
  /// Throws std::invalid_argument, in the name of a function, unless there is an update for every stage and expert:
  /// they may have been replaced.
  void require_updates(const char* function) const {
    if (adapters_.shared == SharedFactor::Neither) fail(function, ": adapters().shared is Neither, expected A or B");
    if (std::ssize(adapters_.stages) != kStages)
      fail(function, ": adapters() has ", adapters_.stages.size(), " stages, expected ", kStages);
    for (const auto& stage : adapters_.stages)
      if (std::ssize(stage.own) != base_->size())
        fail(function, ": adapters() has '", stage.name, "' of ", stage.own.size(), " experts, expected ",
             base_->size());
  }
  /// Throws std::invalid_argument unless a gradient shares the same factor.
  void require_like(const char* function, const SharedLowRank& gradient) const {
    if (gradient.adapters_.shared != adapters_.shared)
      fail(function, ": the gradient shares the other factor, expected the same");
  }
  /// What stands for an expert in forward and backward; valid as long as the set is.
  Member operator[](Index e) { return {(*base_)[e], adapters_, e}; }
  const Member operator[](Index e) const { return {(*base_)[e], adapters_, e}; }

  /// Copies of the given experts, in that order, with the factor in common.
  SharedLowRank take(std::span<const Index> ids) const {
    SharedLowRank result = *this;
    result.base_ = Frozen(base_->take(ids));
    for (std::size_t i = 0; i < adapters_.stages.size(); ++i) {
      auto& own = result.adapters_.stages[i].own;
      own.clear();
      for (const Index e : ids) own.push_back(adapters_.stages[i].own[static_cast<std::size_t>(e)]);
    }
    return result;
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    moe::visit(f, first.adapters_, rest.adapters_...);
    moe::visit(f, first.base_, rest.base_...);  // state alone
  }

 private:
  void require_equal_widths(const char* function) const {
    simd::unroll<kStages>([&](auto i) {
      const auto& first = detail::stage_weight<i>((*base_)[0]);
      for (Index e = 1; e < base_->size(); ++e) {
        const auto& weight = detail::stage_weight<i>((*base_)[e]);
        if (weight.inputs() != first.inputs() || weight.outputs() != first.outputs())
          fail(function, ": '", detail::stage_name<E>(i), "' of expert ", e, " is [", weight.outputs(), ", ",
               weight.inputs(), "], expected [", first.outputs(), ", ", first.inputs(), "] as that of expert 0");
      }
    });
  }

  Frozen<ExpertPool<E>> base_;
  BasicSharedAdapters<Codec> adapters_;
};

template <class E>
SharedLowRank(ExpertPool<E>, SharedFactor, const LowRankOptions&, std::uint64_t) -> SharedLowRank<E>;

}  // namespace moe::inline MOE_ABI
