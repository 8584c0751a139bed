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

template <class Layer, class Tape>
concept HasGate = requires(const Layer& layer, const Tape& tape) {
  layer.gate();
  tape.logits;
  tape.routing;
};
template <class Layer, class Tape>
concept WrapsLayer = requires(const Layer& layer, const Tape& tape) {
  layer.layer();
  tape.layer;
};

/// Calls f(gate, tape) with the gate of a layer and the tape that holds its routing: those of the layer itself, or of
/// the one that it wraps; of a hierarchy, the outermost.
template <class Layer, class Tape, class F>
void visit_gate(const Layer& layer, const Tape& tape, const F& f) {
  if constexpr (HasGate<Layer, Tape>)
    f(layer.gate(), tape);
  else
    visit_gate(layer.layer(), tape.layer, f);
}

/// Whether visit_gate() finds one.
template <class Layer, class Tape>
consteval bool finds_gate() {
  if constexpr (HasGate<Layer, Tape>)
    return true;
  else if constexpr (WrapsLayer<Layer, Tape>)
    return finds_gate<std::remove_cvref_t<decltype(std::declval<const Layer&>().layer())>, decltype(Tape::layer)>();
  else
    return false;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
