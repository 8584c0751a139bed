// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/layer/concept.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// What an auxiliary loss reads of a forward pass, and where its gradient goes: the router's part of a tape, to which
/// it refers.
///   [](const moe::RoutedPass<float>& pass) {
///     return moe::importance_loss<float>(pass.probability, pass.step, /*weight=*/0.01, pass.losses);
///   }
template <class S>
struct RoutedPass {
  const Matrix<S>& logits;       ///< [num_tokens, num_experts]
  const Matrix<S>& probability;  ///< [num_tokens, num_experts], what the gate's probabilities() gives
  const Routing<S>& routing;
  const Step& step;
  RoutingGradient<S>& losses;  ///< added to
};

namespace detail {

/// What a tape says of the routing.
template <class S>
struct RoutingOfTape {
  const Matrix<S>& logits;
  const Routing<S>& routing;
};

/// MoeLayer and the like; layers that speak for a gate of some type, as MoeBlock; layers around one, as WithBranches.
template <class Layer, class Tape>
concept HasGate = requires(const Layer& layer, const Tape& tape) {
  layer.gate();
  tape.logits;
  tape.routing;
};
template <class Layer, class Tape>
concept SpeaksForGate =
    requires(const Layer& layer, const Tape& tape, const Step& step, Matrix<typename Layer::Scalar>& p) {
      layer.probabilities(tape.logits(), step, p);
      tape.routing();
    };
template <class Layer, class Tape>
concept WrapsLayer = requires(const Layer& layer, const Tape& tape) {
  layer.layer();
  tape.layer;
};

/// Calls f(gate, RoutingOfTape) with the gate of a layer, or of the layer that it wraps; of a hierarchy, the outermost.
template <class Layer, class Tape, class F>
void visit_gate(const Layer& layer, const Tape& tape, const F& f) {
  using Of = RoutingOfTape<typename Layer::Scalar>;
  if constexpr (HasGate<Layer, Tape>)
    f(layer.gate(), Of{tape.logits, tape.routing});
  else if constexpr (SpeaksForGate<Layer, Tape>)
    f(layer, Of{tape.logits(), tape.routing()});
  else
    visit_gate(layer.layer(), tape.layer, f);
}

/// Whether visit_gate() finds one.
template <class Layer, class Tape>
consteval bool finds_gate() {
  if constexpr (HasGate<Layer, Tape> || SpeaksForGate<Layer, Tape>)
    return true;
  else if constexpr (WrapsLayer<Layer, Tape>)
    return finds_gate<std::remove_cvref_t<decltype(std::declval<const Layer&>().layer())>, decltype(Tape::layer)>();
  else
    return false;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
