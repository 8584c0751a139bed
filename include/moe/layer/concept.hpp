// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>

#include "moe/core/visit.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// A layer that branches go beside and that can be an expert of another, as MoeLayer and WithBranches: `Scalar`,
/// `static constexpr bool kPerToken`, which says whether a token's output depends on the token alone, and
///   moe::Index input_dim() const, output_dim() const;
///   void forward(tokens, const moe::Step& step, out, moe::BasicWorkspace<Scalar>& ws) const;
template <class L>
concept InferenceLayer = requires(const L& layer, const ConstMatrixRef<typename L::Scalar>& tokens, const Step& step,
                                  MatrixRef<typename L::Scalar> out, BasicWorkspace<typename L::Scalar>& ws) {
  { L::kPerToken } -> std::convertible_to<bool>;
  { layer.input_dim() } -> std::convertible_to<Index>;
  { layer.output_dim() } -> std::convertible_to<Index>;
  layer.forward(tokens, step, out, ws);
};

namespace detail {

/// Whether a layer does not say that one of its parts keeps it from training.
template <class L>
inline constexpr bool kMayBeTrained = true;
template <class L>
  requires requires { L::kTrainable; }
inline constexpr bool kMayBeTrained<L> = L::kTrainable;

}  // namespace detail

/// A layer that can be trained through, as MoeLayer and WithBranches: `Scalar`, `Tape`, `visit` and
///   moe::Index input_dim() const, output_dim() const;
///   void forward(tokens, const moe::Step& step, out, Tape& tape) const;
///   void backward(tokens, Tape& tape, dout, Layer& gradient, dtokens) const;
/// backward accumulates into `gradient`, an object of its own type, and overwrites dtokens. Optional, as of routers:
/// `void require_backward(num_tokens, tape, gradient) const`, which throws before backward writes anything; and
/// `static constexpr bool kTrainable`, false where a part of the layer cannot be trained through.
template <class L>
concept TrainableLayer = HasParameters<L> && detail::kMayBeTrained<L> && std::default_initializable<typename L::Tape> &&
                         requires(const L& layer, const ConstMatrixRef<typename L::Scalar>& tokens, const Step& step,
                                  MatrixRef<typename L::Scalar> out, typename L::Tape& tape, L& gradient) {
                           { layer.input_dim() } -> std::convertible_to<Index>;
                           { layer.output_dim() } -> std::convertible_to<Index>;
                           layer.forward(tokens, step, out, tape);
                           layer.backward(tokens, tape, tokens, gradient, out);
                         };

/// One that can leave out dL/dtokens, as a first layer may: backward without the last argument.
template <class L>
concept SkipsTokenGradient =
    TrainableLayer<L> &&
    requires(const L& layer, const ConstMatrixRef<typename L::Scalar>& tokens, typename L::Tape& tape, L& gradient) {
      layer.backward(tokens, tape, tokens, gradient);
    };

}  // namespace moe::inline MOE_ABI
