// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>

#include "moe/core/visit.hpp"
#include "moe/routing/context.hpp"

namespace moe::inline MOE_ABI {

/// Maps tokens [num_tokens, model_dim] to logits [num_tokens, num_experts]. Immutable in use. One of your own:
///   using Scalar = float;
///   moe::Index num_experts() const, model_dim() const;
///   void logits(const moe::ConstMatrixRef<float>& tokens, const moe::Context&, moe::MatrixRef<float> out) const;
/// Each row must depend on its own token (and the step's keys of it) alone. Working memory is in context.scratch.
/// Optional, for the functions of moe/layer/structure.hpp: a router whose logit i is logit ids[i] of this one, and one
/// with the logits of this one, then those of another (TakesExperts, Concatenates):
///   MyRouter take(std::span<const moe::Index> ids) const;
///   MyRouter concatenate(const MyRouter& other) const;
template <class R>
concept Router = requires(const R& router, const ConstMatrixRef<typename R::Scalar>& tokens, const Context& context,
                          MatrixRef<typename R::Scalar> out) {
  { router.num_experts() } -> std::convertible_to<Index>;
  { router.model_dim() } -> std::convertible_to<Index>;
  { router.logits(tokens, context, out) } -> std::same_as<void>;
};

/// A router that can be trained through: it declares `visit` (see moe/core/visit.hpp), logits(tokens, context, out,
/// tape) fills a tape, and
///   backward(tokens, context, tape, dlogits, gradient, dtokens)
/// accumulates into `gradient`, an object of its own type, and ADDS to dtokens [num_tokens, model_dim], which is memory
/// apart from tokens and dlogits. Optional: backward without dtokens, which then need not be computed, and
/// `void require_backward(num_tokens, tape, gradient) const`, which throws std::invalid_argument for a tape or gradient
/// of another router, before anything is written.
template <class R>
concept DifferentiableRouter =
    Router<R> && HasParameters<R> && std::default_initializable<typename R::Tape> &&
    requires(const R& router, const ConstMatrixRef<typename R::Scalar>& tokens, const Context& context,
             MatrixRef<typename R::Scalar> out, typename R::Tape& tape, R& gradient) {
      router.logits(tokens, context, out, tape);
      router.backward(tokens, context, tape, tokens, gradient, out);
    };

/// One whose backward takes NoGradient in place of its gradient and leaves that out: what Frozen asks for.
template <class R>
concept RouterSkipsGradient =
    DifferentiableRouter<R> &&
    requires(const R& router, const ConstMatrixRef<typename R::Scalar>& tokens, const Context& context,
             MatrixRef<typename R::Scalar> dtokens,
             typename R::Tape& tape) { router.backward(tokens, context, tape, tokens, NoGradient{}, dtokens); };

}  // namespace moe::inline MOE_ABI
