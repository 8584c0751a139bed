// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <span>

#include "moe/core/visit.hpp"
#include "moe/routing/context.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// What a layer does once it is decided who goes where: out[t] from tokens[t] and the choices and weights of t.
/// Routings may come from anywhere: a gate, a file, an inference engine, another layer. RoutedExperts lifts any expert
/// set to it. One of your own needs:
///   using Scalar = float;
///   moe::Index num_experts() const, input_dim() const, output_dim() const;
///   void forward(tokens, const moe::Routing<float>& routing, const moe::Context& context, out) const;
/// with tokens [num_tokens, input_dim] and out [num_tokens, output_dim], overwritten. Choices of padding have been
/// dropped (see drop_padding). Immutable in use; working memory is in context.scratch. Optional, for the functions of
/// moe/layer/structure.hpp: `take` and `concatenate` (TakesExperts, Concatenates).
template <class M>
concept Mixture =
    requires(const M& mixture, const ConstMatrixRef<typename M::Scalar>& tokens,
             const Routing<typename M::Scalar>& routing, const Context& context, MatrixRef<typename M::Scalar> out) {
      { mixture.num_experts() } -> std::convertible_to<Index>;
      { mixture.input_dim() } -> std::convertible_to<Index>;
      { mixture.output_dim() } -> std::convertible_to<Index>;
      { mixture.forward(tokens, routing, context, out) } -> std::same_as<void>;
    };

/// A mixture that can be trained through; it declares `visit` (see moe/core/visit.hpp):
///   void forward(tokens, routing, context, out, Tape& tape) const;
///   void backward(tokens, routing, context, Tape& tape, dout, M& gradient, std::span<Scalar> dweight, dtokens) const;
/// The routing is that of forward. backward accumulates into `gradient`, an object of its own type, and overwrites
/// dweight [num_assignments] (0 where dropped) and dtokens [num_tokens, input_dim], which lie apart from what it reads.
/// Optional: backward without dtokens, and `void require_backward(routing, tape, gradient) const`, which throws
/// std::invalid_argument for a tape or gradient of another mixture, before anything is written.
template <class M>
concept DifferentiableMixture =
    Mixture<M> && HasParameters<M> && std::default_initializable<typename M::Tape> &&
    requires(const M& mixture, const ConstMatrixRef<typename M::Scalar>& tokens,
             const Routing<typename M::Scalar>& routing, const Context& context, MatrixRef<typename M::Scalar> out,
             typename M::Tape& tape, M& gradient, std::span<typename M::Scalar> dweight) {
      mixture.forward(tokens, routing, context, out, tape);
      mixture.backward(tokens, routing, context, tape, tokens, gradient, dweight, out);
    };

/// One that can leave out dL/dtokens.
template <class M>
concept MixtureSkipsTokenGradient =
    DifferentiableMixture<M> && requires(const M& mixture, const ConstMatrixRef<typename M::Scalar>& tokens,
                                         const Routing<typename M::Scalar>& routing, const Context& context,
                                         typename M::Tape& tape, M& gradient, std::span<typename M::Scalar> dweight) {
      mixture.backward(tokens, routing, context, tape, tokens, gradient, dweight);
    };

}  // namespace moe::inline MOE_ABI
