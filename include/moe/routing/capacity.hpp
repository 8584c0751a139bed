// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

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
  Renormalised,  ///< divided by the sum over kept choices, dropped ones or not, in every phase (GShard)
};

/// How many choices an expert takes and which are dropped.
struct CapacityOptions {
  double factor = 1.25;                   ///< in training, times the balanced load; 0: min_capacity alone decides
  double evaluation_factor = kUnlimited;  ///< in inference: nothing is dropped
  Index min_capacity = 4;
  ServiceOrder order = ServiceOrder::ByPosition;
  KeptWeights weights = KeptWeights::AsTheyAre;

  /// Throws std::invalid_argument unless factors and min_capacity are at least 0.
  void validate() const {
    if (!(factor >= 0)) fail("moe::CapacityOptions: factor is ", factor, ", expected at least 0");
    if (!(evaluation_factor >= 0))
      fail("moe::CapacityOptions: evaluation_factor is ", evaluation_factor, ", expected at least 0");
    if (min_capacity < 0) fail("moe::CapacityOptions: min_capacity is ", min_capacity, ", expected at least 0");
  }
};

/// Choices that each expert takes: max(min_capacity, ceil(factor * num_choices / num_experts)), with the factor of the
/// phase. num_choices are those of valid tokens (num_tokens * k where k is fixed), dropped or not.
inline Index expert_capacity(const CapacityOptions& options, Phase phase, Index num_choices, Index num_experts) {
  const double factor = phase == Phase::Training ? options.factor : options.evaluation_factor;
  if (num_choices == 0 || num_experts == 0) return options.min_capacity;
  // The slack of 4 ulp undoes the rounding of the factor: 1.1 * 100 / 10 is 11, where ceil of the doubles says 12.
  constexpr double kSlack = 1 - 4 * std::numeric_limits<double>::epsilon();
  const double exact = std::ceil(factor * static_cast<double>(num_choices) / static_cast<double>(num_experts) * kSlack);
  // More than all choices is never needed, and infinity is no integer.
  const Index share = exact < static_cast<double>(num_choices) ? static_cast<Index>(exact) : num_choices;
  return std::max(options.min_capacity, share);
}

/// Divides the weights of each token by their sum; dropped ones are 0. A token whose sum is not positive (all choices
/// dropped) is left alone. Weights must not be negative. O(assignments), no allocation.
template <class S>
void renormalise_weights(Routing<S>& routing) {
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    S sum = 0;
    for (const S w : routing.weights(t)) sum += w;
    if (!(sum > 0)) continue;
    for (S& w : routing.weights(t)) w /= sum;
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

/// Serves slot after slot, each in queue order; whoever finds an expert full is dropped.
template <class S>
void drop_overflow(Index capacity, Index num_experts, Routing<S>& routing) {
  auto& [served, queue] = routing.scratch();
  served.assign(static_cast<std::size_t>(num_experts), 0);
  const auto choices = [&](Index t) { return routing.end(t) - routing.begin(t); };
  for (Index slot = 0; !queue.empty(); ++slot) {
    for (const auto& [key, t] : queue) {
      const Index a = routing.begin(t) + slot;
      if (routing.dropped()[static_cast<std::size_t>(a)]) continue;
      Index& rows = served[static_cast<std::size_t>(routing.experts()[static_cast<std::size_t>(a)])];
      if (rows == capacity)
        routing.drop(a, kDroppedByCapacity);
      else
        ++rows;
    }
    std::erase_if(queue, [&](const auto& entry) { return choices(entry.second) <= slot + 1; });
  }
}

}  // namespace detail

/// Limits every expert to its capacity: choices are served in options.order, the rest is dropped (weight 0, marked
/// kDroppedByCapacity), and weights are renormalised if asked for. Padding is dropped too and takes no place. A choice
/// that the gate itself dropped takes no place either, but counts in the capacity.
/// Throws std::invalid_argument if the routing names an expert outside [0, num_experts).
/// O(assignments), and a sort of the tokens unless ByPosition; serial, so independent of threads; warm calls do not
/// allocate (the working memory lives in the routing).
/// GShard (arXiv:2006.16668), Switch (arXiv:2101.03961), V-MoE (arXiv:2106.05974), random (arXiv:2109.10465).
template <class S>
void apply_capacity(const CapacityOptions& options, Index num_experts, const Step& step, Routing<S>& routing) {
  detail::require_experts("moe::apply_capacity", routing, num_experts);
  const Index num_choices = drop_padding(step, routing);
  const Index capacity = expert_capacity(options, step.phase, num_choices, num_experts);
  if (capacity < num_choices) {
    detail::queue_tokens(options.order, step, routing);
    detail::drop_overflow(capacity, num_experts, routing);
  }
  if (options.weights == KeptWeights::Renormalised) renormalise_weights(routing);
}

}  // namespace moe::inline MOE_ABI
