// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI {

/// What changes the parameters of a layer by a gradient, as Sgd and AdamW do: `template <class Layer> struct State`,
/// made from a layer, and `bool step(Layer&, const Layer& gradient, State<Layer>&, double learning_rate) const`, which
/// says whether the step was taken. Optional: a member `NonFinite non_finite`; a Trainer, which has looked at the norm,
/// then calls a copy that says Apply, and for a gradient that Skip refuses none.
template <class O, class Layer>
concept OptimiserOf = std::constructible_from<typename O::template State<Layer>, const Layer&> &&
                      requires(const O& optimiser, Layer& layer, const Layer& gradient,
                               typename O::template State<Layer>& state, double learning_rate) {
                        { optimiser.step(layer, gradient, state, learning_rate) } -> std::convertible_to<bool>;
                      };

}  // namespace moe::inline MOE_ABI
