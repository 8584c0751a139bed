// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "moe/core/simd.hpp"
#include "moe/gate/concept.hpp"
#include "moe/gate/rule/weights.hpp"
#include "moe/routing/capacity/capacity.hpp"

namespace moe::inline MOE_ABI {

template <class G>
struct WithCapacity;

namespace detail {
template <class G>
inline constexpr bool kHasCapacity = false;
template <class G>
  requires requires(const G& any) { any.gate; }
inline constexpr bool kHasCapacity<G> = kHasCapacity<std::remove_cvref_t<decltype(G::gate)>>;
template <class G>
inline constexpr bool kHasCapacity<WithCapacity<G>> = true;

/// The gate inside of adaptors that can tell whether its tokens have one choice each; nullptr_t where none can.
template <class G>
auto choosing_gate_of(const G& gate) {
  if constexpr (requires { gate.makes_one_choice(), gate.constant_weights; })
    return &gate;
  else if constexpr (requires { gate.top_k; })
    return choosing_gate_of(gate.top_k);
  else if constexpr (requires { gate.gate; })
    return choosing_gate_of(gate.gate);
  else
    return nullptr;
}
}  // namespace detail

/// Any gate with a limit on how many choices an expert takes: route() is the gate's, then apply_capacity().
///   moe::WithCapacity<moe::TopKGate> gate{.gate = moe::TopKGate::switch_transformer(), .capacity = {.factor = 1.0}};
/// Trainable if the gate is. Its parameters and their names are the gate's. Immutable, share freely.
template <class G>
struct WithCapacity {
  static_assert(!detail::kHasCapacity<G>,
                "moe::WithCapacity: one limit is enough; the drops of two cannot be told apart");
  static_assert(!detail::StatesNumLogits<G>,
                "moe::WithCapacity: a gate with num_logits has other columns of logits than experts, of which a limit "
                "needs the number");

  G gate = {};
  CapacityOptions capacity = {};

  static constexpr bool kPerToken = false;

  void validate(Index num_experts) const {
    if constexpr (requires { gate.validate(num_experts); }) gate.validate(num_experts);
    capacity.validate();
  }

  /// Throws std::invalid_argument where the gate does, and where it is the capacity that divides the weight of the one
  /// choice of a token by itself; see TopKGate::constant_weights.
  void require_backward(Index num_experts) const {
    if constexpr (requires { gate.require_backward(num_experts); }) gate.require_backward(num_experts);
    if constexpr (!std::is_null_pointer_v<decltype(detail::choosing_gate_of(gate))>) {
      const auto* inner = detail::choosing_gate_of(gate);
      const bool normalises =  // the best of num_experts probabilities is not below that floor
          capacity.weights != KeptWeights::AsTheyAre && capacity.floor * static_cast<double>(num_experts) <= 1;
      if (num_experts > 1 && inner->makes_one_choice() && normalises &&
          inner->constant_weights == ConstantWeights::Refuse)
        fail("moe::WithCapacity::backward: each token has one choice and the capacity normalises weights, which makes ",
             "each of them the same and leaves the router without gradient, expected weights = KeptWeights::AsTheyAre, "
             "or the gate's ",
             "constant_weights = ConstantWeights::Accept where other losses alone train the router");
    }
  }

  /// The gate's, with the same limits: capacities that are a share of the load are one of the new number of experts.
  WithCapacity take(std::span<const Index> ids, Index num_experts) const
    requires detail::TakesGate<G>
  {
    return {detail::take_gate(gate, ids, num_experts), capacity};
  }
  /// The gate's. Throws std::invalid_argument unless the limits are equal, too.
  WithCapacity concatenate(const WithCapacity& other, Index num_experts, Index other_num_experts) const
    requires detail::ConcatenatesGate<G>
  {
    detail::require_equal_option("moe::WithCapacity::concatenate", "capacity", capacity, other.capacity);
    return {detail::concatenate_gates(gate, other.gate, num_experts, other_num_experts), capacity};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    gate.route(logits, context, routing);
    apply_capacity(capacity, logits.cols(), context.step, routing);
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
    const Routing<S>& chosen = before_capacity(logits, context, routing);
    std::copy(chosen.weights().begin(), chosen.weights().end(), routing.weights().begin());
    detail::weigh_before_drops(capacity, routing);
    for (std::size_t a = 0; a < chosen.weights().size(); ++a)
      if (routing.dropped()[a]) routing.weights()[a] = S{0};
    detail::weigh_after_drops(capacity, context.step.phase, routing);
  }

  /// The gate's backward for dL/d(weights before the limit): of a dropped choice 0, whatever `dweight` says there, but
  /// for its part in the sum of NormalisedFirst; else that of w / sum if normalised. Replays the gate.
  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                WithCapacity& gradient) const {
    require_backward(logits.cols());
    if (dweight.size() != routing.weights().size())
      fail("moe::WithCapacity::backward: dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    const Routing<S>& chosen = before_capacity(logits, context, routing);
    std::vector<S>& dchosen = context.scratch.get<BeforeCapacity<S>>().dweight;
    chosen_gradient<S>(chosen, routing, context.step.phase, dweight, dchosen);
    gate.backward(logits, context, chosen, std::span<const S>(dchosen), dprobability, dlogits, gradient.gate);
  }

 private:
  template <class S>
  struct BeforeCapacity {
    Routing<S> routing;
    std::vector<S> dweight;
  };

  /// The gate's own routing: what the limit dropped is back, with the weight that it had.
  template <class S>
  const Routing<S>& before_capacity(const Logits<S>& logits, const Context& context, const Routing<S>& routing) const {
    Routing<S>& chosen = context.scratch.get<BeforeCapacity<S>>().routing;
    chosen = routing;
    for (std::uint8_t& dropped : chosen.dropped())
      if (dropped == kDroppedByCapacity) dropped = 0;
    gate.replay(logits, context, chosen);
    return chosen;
  }

  /// dL/dw from dL/dw', where w'_i = c w_i / s for kept choices and 0 for dropped ones, c being the scale of the phase
  /// and s = 1, or max(sum of w, floor) over the choices that count: kept ones, or all with NormalisedFirst. Hence
  ///   dL/dw_i = ([i kept] c dL/dw'_i - [i counts, no floor] sum_j dL/dw'_j w'_j) / s
  /// Zero where the sum is not positive: no weight reached an expert.
  template <class S>
  void chosen_gradient(const Routing<S>& chosen, const Routing<S>& routing, Phase phase, std::span<const S> dweight,
                       std::vector<S>& result) const {
    const auto dropped = routing.dropped();
    const auto weights = chosen.weights();
    const auto counts = [&](std::size_t a) {
      return !dropped[a] || (capacity.weights == KeptWeights::NormalisedFirst && !chosen.dropped()[a]);
    };
    const S scale = phase == Phase::Training ? S{1} : static_cast<S>(capacity.evaluation_scale);
    result.assign(dweight.size(), S{0});
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      const auto first = static_cast<std::size_t>(routing.begin(t)), last = static_cast<std::size_t>(routing.end(t));
      S divisor = 1, mean = 0;
      if (capacity.weights != KeptWeights::AsTheyAre) {
        S sum = 0;
        for (std::size_t a = first; a < last; ++a) sum += counts(a) ? weights[a] : S{0};
        if (!(sum > 0)) continue;
        divisor = std::max(sum, static_cast<S>(capacity.floor));
        for (std::size_t a = first; a < last && divisor == sum; ++a)
          if (!dropped[a]) mean = simd::fma(dweight[a], weights[a] / sum, mean);
      }
      for (std::size_t a = first; a < last; ++a)
        if (counts(a)) result[a] = scale * ((dropped[a] ? S{0} : dweight[a]) - mean) / divisor;
    }
  }
};

template <class G>
WithCapacity(G, CapacityOptions) -> WithCapacity<G>;

}  // namespace moe::inline MOE_ABI
