// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/gate/concept.hpp"

namespace moe::inline MOE_ABI {

/// Any gate whose choices weigh equally, and which learns as if they weighed what it says (the straight-through
/// estimator):
///   w = w_soft + stop_gradient(total / k - w_soft)     for each of a token's k choices
/// so that with k = 1 the expert's output is taken as it is, and with more their mean, or, with total = k, their sum:
/// of the parts of one expert (dense_to_mixture()) what the chosen ones are of the whole. k counts dropped choices,
/// which weigh 0. Hence backward is the gate's, for dL/dw at these weights, and is no derivative of route(): a check by
/// differences has to take the weights of `gate`.
///   moe::StraightThrough<moe::TopKGate> gate{.gate = moe::TopKGate::switch_transformer()};
/// Gates of constant weights have nothing to learn from here, too (see TopKGate::constant_weights). Its parameters,
/// their names, probabilities and errors are the gate's. Immutable, share freely; no allocation when warm.
/// Bengio, Leonard & Courville, "Estimating or propagating gradients through stochastic neurons" (arXiv:1308.3432).
template <class G>
struct StraightThrough {
  static_assert(StatesPerToken<G>,
                "moe::StraightThrough: a Gate needs `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");

  G gate = {};
  double total = 1;  ///< of the weights of a token's k choices; finite

  static constexpr bool kPerToken = G::kPerToken;

  void validate(Index num_experts) const {
    if (!std::isfinite(total)) fail("moe::StraightThrough: total is ", total, ", expected a finite number");
    if constexpr (requires { gate.validate(num_experts); }) gate.validate(num_experts);
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

  /// The gate's.
  StraightThrough take(std::span<const Index> ids, Index num_experts) const
    requires detail::TakesGate<G>
  {
    return {detail::take_gate(gate, ids, num_experts), total};
  }
  std::vector<Index> logits_of(std::span<const Index> ids, Index num_experts) const
    requires requires(const G& any) { any.logits_of(ids, num_experts); }
  {
    return gate.logits_of(ids, num_experts);
  }
  StraightThrough concatenate(const StraightThrough& other, Index num_experts, Index other_num_experts) const
    requires detail::ConcatenatesGate<G>
  {
    detail::require_equal_option("moe::StraightThrough::concatenate", "total", total, other.total);
    return {detail::concatenate_gates(gate, other.gate, num_experts, other_num_experts), total};
  }
  /// The gate's, of which each choice becomes one copy, or all copies, as with all shipped ones.
  StraightThrough duplicate(Index times, Index num_experts) const
    requires requires(const G& any) { any.duplicate(times, num_experts); }
  {
    return {gate.duplicate(times, num_experts), total};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    gate.route(logits, context, routing);
    weigh_equally(routing);
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& out) const {
    gate.probabilities(logits, context, out);
  }

  /// The gate's, which looks at the logits as route() does, and then the same equal weights.
  template <class S>
    requires DifferentiableGate<G, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    gate.replay(logits, context, routing);
    weigh_equally(routing);
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                StraightThrough& gradient) const {
    gate.backward(logits, context, routing, dweight, dprobability, dlogits, gradient.gate);
  }

 private:
  template <class S>
  void weigh_equally(Routing<S>& routing) const {
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      const auto weights = routing.weights(t);
      for (std::size_t s = 0; s < weights.size(); ++s)
        weights[s] = routing.dropped(t)[s] ? S{0} : static_cast<S>(total / static_cast<double>(weights.size()));
    }
  }
};

template <class G>
StraightThrough(G) -> StraightThrough<G>;
template <class G>
StraightThrough(G, double) -> StraightThrough<G>;

}  // namespace moe::inline MOE_ABI
