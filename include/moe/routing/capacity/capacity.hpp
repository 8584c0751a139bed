// SPDX-License-Identifier: MIT
#pragma once

#include "moe/routing/capacity/buffer_slots.hpp"
#include "moe/routing/padding.hpp"

namespace moe::inline MOE_ABI {

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
/// O(assignments), and a sort unless ByPosition or ByToken in Batch; serial, so independent of threads; warm calls do
/// not allocate (the working memory lives in the routing).
/// NLLB-MoE: GShard's order, Renormalised (or NormalisedFirst) with floor 1.19e-7, evaluation_scale 1 - token dropout.
/// GShard (arXiv:2006.16668), Switch (arXiv:2101.03961), NLLB (arXiv:2207.04672), V-MoE (arXiv:2106.05974), random
/// (arXiv:2109.10465).
template <class S>
void apply_capacity(const CapacityOptions& options, Index num_experts, const Step& step, Routing<S>& routing) {
  detail::require_experts("moe::apply_capacity", routing, num_experts);
  const CapacityDemand demand = {step.num_valid(routing.num_tokens()), drop_padding(step, routing)};
  Index capacity = expert_capacity(options, step.phase, demand, num_experts);
  const bool limits = options.scope == CapacityScope::Group || capacity < demand.num_choices;
  const Routing<S>& asked = routing;
  auto& service = routing.scratch().template get<detail::Service>();
  if (limits) detail::queue_for_service(options, step, asked, service.queue);  // by the weights of the gate
  detail::weigh_before_drops(options, routing);
  if (limits)
    detail::seat_choices(
        options, num_experts, step, asked, service,
        [&](const CapacityDemand& group) { capacity = expert_capacity(options, step.phase, group, num_experts); },
        [&](Index a, Index slot) {
          if (slot < capacity) return true;
          routing.drop(a, kDroppedByCapacity);
          return false;
        });
  detail::weigh_after_drops(options, step.phase, routing);
}

}  // namespace moe::inline MOE_ABI
