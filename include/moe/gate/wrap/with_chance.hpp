// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/gate/concept.hpp"

namespace moe::inline MOE_ABI {

/// Drops every choice but a token's first unless uniform(t, slot) < weight / threshold: heavy ones stay for certain,
/// light ones by chance, in proportion to their weight. A threshold of 0 keeps all, one of infinity the first. Weights
/// stay as they are; dropped ones are 0, marked kDroppedByChance. Choices that were dropped before stay as they are.
///   uniform  double(Index token, Index slot): a number in [0, 1), asked for slot >= 1 only
/// Throws std::invalid_argument unless the threshold is at least 0. O(assignments), serial, no allocation.
template <class S, class Uniform>
  requires std::invocable<Uniform&, Index, Index>
void drop_by_chance(double threshold, Uniform&& uniform, Routing<S>& routing) {
  if (!(threshold >= 0)) fail("moe::drop_by_chance: threshold is ", threshold, ", expected at least 0");
  if (threshold == 0) return;
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (Index a = routing.begin(t) + 1; a < routing.end(t); ++a) {
      const auto at = static_cast<std::size_t>(a);
      if (routing.dropped()[at]) continue;
      const auto weight = static_cast<double>(routing.weights()[at]);
      if (!(uniform(t, a - routing.begin(t)) < weight / threshold)) routing.drop(a, kDroppedByChance);
    }
}

template <class G>
struct WithChance;

namespace detail {
template <class G>
inline constexpr bool kHasChance = false;
template <class G>
  requires requires(const G& any) { any.gate; }
inline constexpr bool kHasChance<G> = kHasChance<std::remove_cvref_t<decltype(G::gate)>>;
template <class G>
inline constexpr bool kHasChance<WithChance<G>> = true;
}  // namespace detail

/// Any gate whose choices after the first are kept by chance: choice s > 0 of a token with probability
/// min(1, weight / threshold), by random numbers that follow the token's id. It saves the work of experts that would
/// hardly count. GShard's random routing: top 2 with threshold 0.5; tensor2tensor and ST-MoE: 0.2. What is left may be
/// limited further: WithCapacity<WithChance<TopKGate>>.
/// Trainable if the gate is, the drops frozen. Its parameters and their names are the gate's. Immutable, share freely;
/// cost and errors are the gate's, and backward runs its replay once more.
/// Lepikhin et al., GShard, section 2.2 (arXiv:2006.16668); Zoph et al., ST-MoE (arXiv:2202.08906).
template <class G>
struct WithChance {
  static_assert(StatesPerToken<G>,
                "moe::WithChance: a Gate needs `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");
  static_assert(!detail::kHasChance<G>, "moe::WithChance: one chance is enough; the drops of two cannot be told apart");

  G gate = {};
  double threshold = 0.5;           ///< in training; >= 0, 0: all are kept
  double evaluation_threshold = 0;  ///< in inference

  static constexpr bool kPerToken = G::kPerToken;

  void validate(Index num_experts) const {
    if constexpr (requires { gate.validate(num_experts); }) gate.validate(num_experts);
    if (!(threshold >= 0)) fail("moe::WithChance: threshold is ", threshold, ", expected at least 0");
    if (!(evaluation_threshold >= 0))
      fail("moe::WithChance: evaluation_threshold is ", evaluation_threshold, ", expected at least 0");
  }

  /// As many as the gate wants.
  Index num_logits(Index num_experts) const
    requires detail::StatesNumLogits<G>
  {
    return gate.num_logits(num_experts);
  }

  /// Throws std::invalid_argument where the gate does; see TopKGate::constant_weights.
  void require_backward(Index num_experts) const {
    if constexpr (requires { gate.require_backward(num_experts); }) gate.require_backward(num_experts);
  }

  /// The gate's, with the same chances.
  WithChance take(std::span<const Index> ids, Index num_experts) const
    requires detail::TakesGate<G>
  {
    return {detail::take_gate(gate, ids, num_experts), threshold, evaluation_threshold};
  }
  std::vector<Index> logits_of(std::span<const Index> ids, Index num_experts) const
    requires requires(const G& any) { any.logits_of(ids, num_experts); }
  {
    return gate.logits_of(ids, num_experts);
  }
  /// The gate's. Throws std::invalid_argument unless the chances are equal, too.
  WithChance concatenate(const WithChance& other, Index num_experts, Index other_num_experts) const
    requires detail::ConcatenatesGate<G>
  {
    constexpr const char* kFunction = "moe::WithChance::concatenate";
    detail::require_equal_option(kFunction, "threshold", threshold, other.threshold);
    detail::require_equal_option(kFunction, "evaluation_threshold", evaluation_threshold, other.evaluation_threshold);
    return {detail::concatenate_gates(gate, other.gate, num_experts, other_num_experts), threshold,
            evaluation_threshold};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    gate.route(logits, context, routing);
    const Step& step = context.step;
    const RandomField random = step.random(Purpose::Dropout);
    drop_by_chance(
        step.training() ? threshold : evaluation_threshold,
        [&](Index t, Index slot) { return random.uniform(step.id(t), slot); }, routing);
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& out) const {
    gate.probabilities(logits, context, out);
  }

  /// Weights anew for the same choices with the same drops.
  template <class S>
    requires DifferentiableGate<G, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    const Routing<S>& chosen = before_chance(logits, context, routing);
    for (std::size_t a = 0; a < chosen.weights().size(); ++a)
      routing.weights()[a] = routing.dropped()[a] ? S{0} : chosen.weights()[a];
  }

  /// The gate's backward for dL/d(weights before the drops), which is 0 for dropped choices; replays the gate.
  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                WithChance& gradient) const {
    if (dweight.size() != routing.weights().size())
      fail("moe::WithChance::backward: dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    const Routing<S>& chosen = before_chance(logits, context, routing);
    std::vector<S>& dchosen = context.scratch.get<BeforeChance<S>>().dweight;
    dchosen.resize(dweight.size());
    for (std::size_t a = 0; a < dweight.size(); ++a) dchosen[a] = routing.dropped()[a] ? S{0} : dweight[a];
    gate.backward(logits, context, chosen, std::span<const S>(dchosen), dprobability, dlogits, gradient.gate);
  }

 private:
  template <class S>
  struct BeforeChance {
    Routing<S> routing;
    std::vector<S> dweight;
  };

  /// The gate's own routing: what was dropped by chance is back, with the weight that it had.
  template <class S>
  const Routing<S>& before_chance(const Logits<S>& logits, const Context& context, const Routing<S>& routing) const {
    Routing<S>& chosen = context.scratch.get<BeforeChance<S>>().routing;
    chosen = routing;
    for (std::uint8_t& dropped : chosen.dropped())
      if (dropped == kDroppedByChance) dropped = 0;
    gate.replay(logits, context, chosen);
    return chosen;
  }
};

template <class G>
WithChance(G) -> WithChance<G>;
template <class G>
WithChance(G, double) -> WithChance<G>;
template <class G>
WithChance(G, double, double) -> WithChance<G>;

}  // namespace moe::inline MOE_ABI
