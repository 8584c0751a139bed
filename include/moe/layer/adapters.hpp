// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/expert/low_rank.hpp"
#include "moe/expert/pool.hpp"
#include "moe/expert/shared_low_rank.hpp"
#include "moe/layer/structure.hpp"

// Layers whose experts are frozen and adapted (moe/expert/low_rank.hpp), and their adapters apart from them: to be
// saved, exchanged, and put onto the same experts again. compress/merge_adapters.hpp folds them into the weights.
namespace moe::inline MOE_ABI {

/// The updates of all experts of a pool, without the experts. Visited as a layer of LowRank names them
/// ("experts.3.down.lora_a"), so save_parameters() saves adapters alone, and optimisers or averages may work on them:
///   moe::save_parameters("adapters.safetensors", moe::adapters_of(layer));
/// A plain value. Visits throw std::invalid_argument unless every expert has an update, maybe an empty one, for each of
/// `stages`, and all that are visited together have the same.
template <class Codec>
struct BasicAdapters {
  std::vector<std::string> stages;                         ///< names
  std::vector<std::vector<LowRankUpdate<Codec>>> experts;  ///< [experts][stages], empty ones where there is no update

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    each(
        first,
        [&](std::size_t e, std::size_t i, const std::string& name) {
          f(name + ".lora_a", first.experts[e][i].a, rest.experts[e][i].a...);
          f(name + ".lora_b", first.experts[e][i].b, rest.experts[e][i].b...);
        },
        rest...);
  }
  template <class F, class First, class... Rest>
  static void state(F&& f, First& first, Rest&... rest) {
    each(
        first,
        [&](std::size_t e, std::size_t i, const std::string& name) {
          f(name + ".lora_scale", first.experts[e][i].scale, rest.experts[e][i].scale...);
        },
        rest...);
  }

 private:
  /// Throws unless `self` has as many experts, stages and updates as `first`.
  static void require_as(const BasicAdapters& first, const BasicAdapters& self) {
    constexpr const char* kFunction = "moe::Adapters::visit";
    if (self.experts.size() != first.experts.size())
      fail(kFunction, ": there are adapters of ", self.experts.size(), " experts, expected ", first.experts.size());
    for (std::size_t e = 0; e < self.experts.size(); ++e) {
      if (self.experts[e].size() != self.stages.size() || self.stages.size() != first.stages.size())
        fail(kFunction, ": expert ", e, " has ", self.experts[e].size(), " updates for ", self.stages.size(),
             " stages, expected ", first.stages.size());
      for (std::size_t i = 0; i < self.stages.size(); ++i)
        if (self.experts[e][i].empty() != first.experts[e][i].empty())
          fail(kFunction, ": update ", i, " of expert ", e, " has rank ", self.experts[e][i].rank(), ", expected ",
               first.experts[e][i].rank());
    }
  }

  template <class Body, class... Rest>
  static void each(const BasicAdapters& self, const Body& body, const Rest&... rest) {
    require_as(self, self);
    (require_as(self, rest), ...);
    for (std::size_t e = 0; e < self.experts.size(); ++e)
      for (std::size_t i = 0; i < self.experts[e].size(); ++i)
        if (!self.experts[e][i].empty()) body(e, i, "experts." + std::to_string(e) + "." + self.stages[i]);
  }
};
using Adapters = BasicAdapters<F32>;

/// The experts of a pool or layer, frozen, with new adapters: those of expert e are drawn with a seed of its own. What
/// it computes has the bits of what it was before, for rows whose A x is finite. Router, gate and branches stay, and
/// learn; see Frozen for a router that does not. Weights may be floats or in few bits:
///   auto small = moe::with_adapters(moe::quantise(layer, moe::WeightFormat::int4()), {.rank = 8, .alpha = 16}, 1);
///   moe::Trainer trainer(small, moe::AdamW{});
/// One A or B for all experts: with_shared_adapters(). Throws std::invalid_argument as LowRank does.
template <detail::AdaptableExpert E>
ExpertPool<LowRank<E>> with_adapters(const ExpertPool<E>& pool, const LowRankOptions& options, std::uint64_t seed) {
  std::vector<LowRank<E>> experts;
  experts.reserve(static_cast<std::size_t>(pool.size()));
  const RandomField seeds(Purpose::Initialise, seed);
  for (Index e = 0; e < pool.size(); ++e) experts.emplace_back(pool[e], options, seeds.bits(e));
  return ExpertPool<LowRank<E>>(std::move(experts));
}
template <detail::HasExperts L>
auto with_adapters(const L& layer, const LowRankOptions& options, std::uint64_t seed) {
  return transform_experts(layer, [&](const auto& experts) { return with_adapters(experts, options, seed); });
}
/// The same with one A, or one B, for all experts; see SharedLowRank. Throws std::invalid_argument as that does.
template <detail::AdaptableExpert E>
SharedLowRank<E> with_shared_adapters(const ExpertPool<E>& pool, SharedFactor shared, const LowRankOptions& options,
                                      std::uint64_t seed) {
  return SharedLowRank<E>(pool, shared, options, seed);
}
template <detail::HasExperts L>
auto with_shared_adapters(const L& layer, SharedFactor shared, const LowRankOptions& options, std::uint64_t seed) {
  return transform_experts(layer,
                           [&](const auto& experts) { return with_shared_adapters(experts, shared, options, seed); });
}

/// What cannot be adapted, in a sentence.
template <class T>
void with_adapters(const T&, const LowRankOptions&, std::uint64_t) {
  static_assert(!std::is_same_v<T, T>,
                "moe::with_adapters: a pool or layer of experts that list their stages, as Linear, Mlp and Glu do, can "
                "be adapted, once (merge_adapters() before the next time)");
}

/// The pool or layer that with_adapters() has been given: the experts without their adapters.
template <class E>
ExpertPool<E> without_adapters(const ExpertPool<LowRank<E>>& pool) {
  std::vector<E> experts;
  experts.reserve(static_cast<std::size_t>(pool.size()));
  for (Index e = 0; e < pool.size(); ++e) experts.push_back(pool[e].base());
  return ExpertPool<E>(std::move(experts));
}
template <class E>
ExpertPool<E> without_adapters(const SharedLowRank<E>& set) {
  return set.base();
}
template <detail::HasExperts L>
auto without_adapters(const L& layer) {
  return transform_experts(layer, [](const auto& experts) { return without_adapters(experts); });
}

/// A copy of the adapters of a pool or layer.
template <class E>
BasicAdapters<typename LowRank<E>::Codec> adapters_of(const ExpertPool<LowRank<E>>& pool) {
  BasicAdapters<typename LowRank<E>::Codec> adapters;
  for (int i = 0; i < LowRank<E>::kStages; ++i) adapters.stages.push_back(LowRank<E>::name(i));
  for (Index e = 0; e < pool.size(); ++e)
    adapters.experts.emplace_back(pool[e].updates().begin(), pool[e].updates().end());
  return adapters;
}
/// Of updates that share a factor, each with a copy of it: what files of PEFT have. SharedLowRank::adapters() is what
/// save_parameters() writes once.
template <class E>
BasicAdapters<typename SharedLowRank<E>::Codec> adapters_of(const SharedLowRank<E>& set) {
  BasicAdapters<typename SharedLowRank<E>::Codec> adapters;
  adapters.experts.resize(static_cast<std::size_t>(set.size()));
  for (const auto& stage : set.adapters().stages) {
    const bool is_a = set.adapters().shared == SharedFactor::A;
    adapters.stages.push_back(stage.name);
    for (std::size_t e = 0; e < adapters.experts.size(); ++e)
      adapters.experts[e].push_back(
          {.a = is_a ? stage.common : stage.own[e], .b = is_a ? stage.own[e] : stage.common, .scale = stage.scale});
  }
  return adapters;
}
template <detail::HasExperts L>
auto adapters_of(const L& layer) {
  return adapters_of(experts_of(layer));
}

namespace detail {

/// Throws unless there are updates for so many experts, base_of(e), with stages of the same names and sizes.
template <class E, class BaseOf>
void require_adapters(const BasicAdapters<CodecOf<typename E::Scalar>>& adapters, Index num_experts,
                      const BaseOf& base_of) {
  constexpr const char* kFunction = "moe::set_adapters";
  if (std::ssize(adapters.experts) != num_experts)
    fail(kFunction, ": there are adapters of ", adapters.experts.size(), " experts, expected ", num_experts);
  if (std::ssize(adapters.stages) != kNumStages<E>)
    fail(kFunction, ": the adapters are of ", adapters.stages.size(), " stages, expected ", kNumStages<E>);
  for (int i = 0; i < kNumStages<E>; ++i)
    if (adapters.stages[static_cast<std::size_t>(i)] != stage_name<E>(static_cast<std::size_t>(i)))
      fail(kFunction, ": stage ", i, " of the adapters is '", adapters.stages[static_cast<std::size_t>(i)],
           "', expected '", stage_name<E>(static_cast<std::size_t>(i)), "'");
  for (Index e = 0; e < num_experts; ++e) {
    const auto& updates = adapters.experts[static_cast<std::size_t>(e)];
    if (std::ssize(updates) != kNumStages<E>)
      fail(kFunction, ": expert ", e, " has ", updates.size(), " updates, expected ", kNumStages<E>);
    simd::unroll<kNumStages<E>>([&](auto i) {
      const auto& weight = stage_weight<i>(base_of(e));
      const auto& update = updates[static_cast<std::size_t>(i)];
      if (!update.is_update_of(weight))
        fail(kFunction, ": '", stage_name<E>(static_cast<std::size_t>(i)), "' of expert ", e, " has A [", update.rank(),
             ", ", update.a.outputs(), "] and B [", update.b.outputs(), ", ", update.b.inputs(),
             "], expected those of a matrix [", weight.outputs(), ", ", weight.inputs(), "] in its order");
      using S = typename E::Scalar;
      if (!update.empty() && !is_scale<S>(update.scale))
        fail(kFunction, ": '", stage_name<E>(static_cast<std::size_t>(i)), "' of expert ", e, " has scale ",
             update.scale, ", expected a number of at most ", std::numeric_limits<S>::max());
    });
  }
}

}  // namespace detail

/// Puts adapters, of any rank, in the place of those of a pool or layer. Throws std::invalid_argument, and changes
/// nothing, unless there are as many experts with stages of the same names and sizes, and scales are finite in their
/// scalar.
template <class E>
void set_adapters(ExpertPool<LowRank<E>>& pool, const BasicAdapters<typename LowRank<E>::Codec>& adapters) {
  detail::require_adapters<E>(adapters, pool.size(), [&](Index e) -> const E& { return pool[e].base(); });
  for (Index e = 0; e < pool.size(); ++e)
    std::copy_n(adapters.experts[static_cast<std::size_t>(e)].begin(), LowRank<E>::kStages, pool[e].updates().begin());
}
/// The same, and throws unless all experts have the same numbers in the factor that is shared, and the same scale.
template <class E>
void set_adapters(SharedLowRank<E>& set, const BasicAdapters<typename SharedLowRank<E>::Codec>& adapters) {
  detail::require_adapters<E>(adapters, set.size(), [&](Index e) -> const E& { return set.base()[e]; });
  const bool is_a = set.adapters().shared == SharedFactor::A;
  auto stages = set.adapters().stages;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    stages[i].own.clear();
    for (std::size_t e = 0; e < adapters.experts.size(); ++e) {
      const auto &update = adapters.experts[e][i], &first = adapters.experts[0][i];
      const auto &common = is_a ? update.a : update.b, &expected = is_a ? first.a : first.b;
      const bool same = e == 0 || (update.scale == first.scale && common.is_shaped_as(expected) &&
                                   common.matrix() == expected.matrix());
      if (!same)
        fail("moe::set_adapters: '", stages[i].name, "' of expert ", e, " has ", is_a ? "an A" : "a B",
             " or a scale of its own, expected those of expert 0");
      stages[i].own.push_back(is_a ? update.b : update.a);
    }
    stages[i].common = is_a ? adapters.experts[0][i].a : adapters.experts[0][i].b;
    stages[i].scale = adapters.experts[0][i].scale;
  }
  set.adapters().stages = std::move(stages);
}
template <detail::HasExperts L, class Codec>
void set_adapters(L& layer, const BasicAdapters<Codec>& adapters) {
  set_adapters(experts_of(layer), adapters);
}

}  // namespace moe::inline MOE_ABI
