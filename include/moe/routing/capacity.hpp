// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "moe/routing/padding.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// A capacity factor that never drops.
inline constexpr double kUnlimited = std::numeric_limits<double>::infinity();

/// Who is served first. In all of them the first choices of all tokens come before any second choice.
enum class ServiceOrder {
  ByPosition,  ///< earlier tokens first (GShard, Switch)
  ByScore,     ///< tokens with the larger largest weight first (batch-prioritised, V-MoE); ties by position
  Random,      ///< tokens by a random number keyed by token id (random token selection, DeepSpeed)
};

/// What happens to the weights of a token once drops are decided.
enum class KeptWeights {
  AsTheyAre,
  Renormalised,     ///< divided by the sum over kept choices, dropped ones or not, in every phase (GShard)
  NormalisedFirst,  ///< divided by the sum over all choices, before drops: what a drop takes away is lost (Tutel)
};

/// Which tokens compete for the places of an expert.
enum class CapacityScope {
  Batch,  ///< all
  Group,  ///< those with the same step.group_id; capacities are of that group's choices (Switch: a sequence)
};

/// How many choices an expert takes and which are dropped. A capacity that is a constant, in both phases:
///   {.factor = 0, .evaluation_factor = 0, .min_capacity = 64}
struct CapacityOptions {
  double factor = 1.25;                   ///< in training, times the balanced load; 0: min_capacity alone decides
  double evaluation_factor = kUnlimited;  ///< in inference: nothing is dropped
  Index min_capacity = 4;
  Index evaluation_min_capacity = -1;  ///< the same in inference; negative: min_capacity there, too
  Index multiple = 1;                  ///< shares are rounded up to a multiple of this; >= 1
  Index evaluation_multiple = 0;       ///< the same in inference; 0: multiple there, too
  ServiceOrder order = ServiceOrder::ByPosition;
  KeptWeights weights = KeptWeights::AsTheyAre;
  CapacityScope scope = CapacityScope::Batch;
  double floor = 0;             ///< least sum that weights are divided by; >= 0
  double evaluation_scale = 1;  ///< of the final weights in inference: 1 - (dropout of expert outputs in training)

  Index least(Phase phase) const {
    return phase == Phase::Inference && evaluation_min_capacity >= 0 ? evaluation_min_capacity : min_capacity;
  }

  /// Throws std::invalid_argument unless factors, min_capacity and floor are at least 0, multiple at least 1 and
  /// evaluation_scale is finite.
  void validate() const {
    if (!(factor >= 0)) fail("moe::CapacityOptions: factor is ", factor, ", expected at least 0");
    if (!(evaluation_factor >= 0))
      fail("moe::CapacityOptions: evaluation_factor is ", evaluation_factor, ", expected at least 0");
    if (min_capacity < 0) fail("moe::CapacityOptions: min_capacity is ", min_capacity, ", expected at least 0");
    if (multiple < 1) fail("moe::CapacityOptions: multiple is ", multiple, ", expected at least 1");
    if (evaluation_multiple < 0)
      fail("moe::CapacityOptions: evaluation_multiple is ", evaluation_multiple, ", expected at least 0");
    if (!(floor >= 0)) fail("moe::CapacityOptions: floor is ", floor, ", expected at least 0");
    if (!std::isfinite(evaluation_scale))
      fail("moe::CapacityOptions: evaluation_scale is ", evaluation_scale, ", expected a finite number");
  }
};

/// Choices that each expert takes: max(the minimum of the phase, factor * num_choices / num_experts rounded up to a
/// multiple of that of the phase), with the factor of the phase. num_choices are those of valid tokens (num_tokens * k
/// where k is fixed), dropped or not. So {.factor = 1, .multiple = 2} with k = 2 is 2 * ceil(num_tokens / num_experts).
inline Index expert_capacity(const CapacityOptions& options, Phase phase, Index num_choices, Index num_experts) {
  const double factor = phase == Phase::Training ? options.factor : options.evaluation_factor;
  if (num_choices == 0 || num_experts == 0) return options.least(phase);
  // The slack of 4 ulp undoes the rounding of the factor: 1.1 * 100 / 10 is 11, where ceil of the doubles says 12.
  constexpr double kSlack = 1 - 4 * std::numeric_limits<double>::epsilon();
  const bool evaluates = phase == Phase::Inference && options.evaluation_multiple != 0;
  const auto multiple = static_cast<double>(evaluates ? options.evaluation_multiple : options.multiple);
  const double share = factor * static_cast<double>(num_choices) / static_cast<double>(num_experts);
  const double exact = std::ceil(share / multiple * kSlack) * multiple;
  // More than all choices is never needed, and infinity is no integer.
  const Index needed = exact < static_cast<double>(num_choices) ? static_cast<Index>(exact) : num_choices;
  return std::max(options.least(phase), needed);
}

/// Divides the weights of each token by their sum, or by `floor` where that is more; dropped ones are 0. A token whose
/// sum is not positive (all choices dropped) is left alone. Weights must not be negative. O(assignments), no
/// allocation.
template <class S>
void renormalise_weights(Routing<S>& routing, double floor = 0) {
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    S sum = 0;
    for (const S w : routing.weights(t)) sum += w;
    if (!(sum > 0)) continue;
    for (S& w : routing.weights(t)) w /= std::max(sum, static_cast<S>(floor));
  }
}

namespace detail {

/// Fills the queue with the tokens that have choices, in order of service.
template <class S>
void queue_tokens(ServiceOrder order, const Step& step, Routing<S>& routing) {
  const RandomField random = step.random(Purpose::Capacity);
  const auto key = [&](Index t) -> double {
    if (order == ServiceOrder::Random) return random.uniform(step.id(t));
    S best = -std::numeric_limits<S>::infinity();
    if (order == ServiceOrder::ByScore)
      for (const S w : routing.weights(t)) best = w > best ? w : best;  // never NaN, which sort could not order
    return -static_cast<double>(best);
  };
  auto& queue = routing.scratch().queue;
  queue.clear();
  for (Index t = 0; t < routing.num_tokens(); ++t)
    if (step.is_valid(t) && routing.begin(t) < routing.end(t)) queue.emplace_back(key(t), t);
  if (order != ServiceOrder::ByPosition) std::sort(queue.begin(), queue.end());  // equal keys: by token
}

/// Serves slot after slot, each in queue order; whoever finds an expert full is dropped. Of the queue, the tokens from
/// `first` to `last` compete.
template <class S>
void drop_overflow(Index capacity, Index num_experts, std::size_t first, std::size_t last, Routing<S>& routing) {
  auto& [served, queue] = routing.scratch();
  served.assign(static_cast<std::size_t>(num_experts), 0);
  const auto choices = [&](Index t) { return routing.end(t) - routing.begin(t); };
  const auto begin = queue.begin() + static_cast<std::ptrdiff_t>(first);
  auto end = queue.begin() + static_cast<std::ptrdiff_t>(last);
  for (Index slot = 0; begin != end; ++slot) {
    for (auto entry = begin; entry != end; ++entry) {
      const Index a = routing.begin(entry->second) + slot;
      if (routing.dropped()[static_cast<std::size_t>(a)]) continue;
      Index& rows = served[static_cast<std::size_t>(routing.experts()[static_cast<std::size_t>(a)])];
      if (rows == capacity)
        routing.drop(a, kDroppedByCapacity);
      else
        ++rows;
    }
    end = std::remove_if(begin, end, [&](const auto& entry) { return choices(entry.second) <= slot + 1; });
  }
}

/// The same, group by group.
template <class S>
void drop_overflow_of_groups(const CapacityOptions& options, Index num_experts, const Step& step, Routing<S>& routing) {
  auto& queue = routing.scratch().queue;
  const auto group = [&](const auto& entry) { return step.group(entry.second); };
  const auto place = [&](const auto& entry) {
    return std::tuple(group(entry), options.order == ServiceOrder::ByPosition ? 0 : entry.first, entry.second);
  };
  std::sort(queue.begin(), queue.end(), [&](const auto& a, const auto& b) { return place(a) < place(b); });
  for (std::size_t first = 0, last = 0; first < queue.size(); first = last) {
    Index num_choices = 0;
    for (; last < queue.size() && group(queue[last]) == group(queue[first]); ++last)
      num_choices += routing.end(queue[last].second) - routing.begin(queue[last].second);
    const Index capacity = expert_capacity(options, step.phase, num_choices, num_experts);
    if (capacity < num_choices) drop_overflow(capacity, num_experts, first, last, routing);
  }
}

/// What becomes of the weights that the gate gave, before and after choices are dropped.
template <class S>
void weigh_before_drops(const CapacityOptions& options, Routing<S>& routing) {
  if (options.weights == KeptWeights::NormalisedFirst) renormalise_weights(routing, options.floor);
}
template <class S>
void weigh_after_drops(const CapacityOptions& options, Phase phase, Routing<S>& routing) {
  if (options.weights == KeptWeights::Renormalised) renormalise_weights(routing, options.floor);
  if (phase == Phase::Training || options.evaluation_scale == 1) return;
  for (S& weight : routing.weights()) weight *= static_cast<S>(options.evaluation_scale);
}

}  // namespace detail

/// Limits every expert to its capacity: choices are served in options.order, the rest is dropped (weight 0, marked
/// kDroppedByCapacity), and weights are normalised if asked for. Padding is dropped too and takes no place. A choice
/// that the gate itself dropped takes no place either, but counts in the capacity.
/// Throws std::invalid_argument if the routing names an expert outside [0, num_experts).
/// O(assignments), and a sort of the tokens unless ByPosition; serial, so independent of threads; warm calls do not
/// allocate (the working memory lives in the routing).
/// NLLB-MoE: GShard's order, Renormalised (or NormalisedFirst) with floor 1.19e-7, evaluation_scale 1 - token dropout.
/// GShard (arXiv:2006.16668), Switch (arXiv:2101.03961), NLLB (arXiv:2207.04672), V-MoE (arXiv:2106.05974), random
/// (arXiv:2109.10465).
template <class S>
void apply_capacity(const CapacityOptions& options, Index num_experts, const Step& step, Routing<S>& routing) {
  detail::require_experts("moe::apply_capacity", routing, num_experts);
  const Index num_choices = drop_padding(step, routing);
  const bool grouped = options.scope == CapacityScope::Group;
  const Index capacity = expert_capacity(options, step.phase, num_choices, num_experts);
  const bool limits = grouped || capacity < num_choices;
  if (limits) detail::queue_tokens(options.order, step, routing);  // by the weights that the gate gave
  detail::weigh_before_drops(options, routing);
  if (grouped)
    detail::drop_overflow_of_groups(options, num_experts, step, routing);
  else if (limits)
    detail::drop_overflow(capacity, num_experts, 0, routing.scratch().queue.size(), routing);
  detail::weigh_after_drops(options, step.phase, routing);
}

}  // namespace moe::inline MOE_ABI
