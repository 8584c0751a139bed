// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "moe/core/frozen.hpp"
#include "moe/core/take.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI {

/// A router that does not learn; trained through where its backward takes NoGradient, as those of LinearRouter,
/// CosineRouter, NoisyRouter and NoRouter do, and NormalisedRouter around them.
template <Router R>
class Frozen<R> : public detail::FrozenObject<R> {
 public:
  using Scalar = typename R::Scalar;
  using Tape = detail::TapeOf<R>;
  using detail::FrozenObject<R>::FrozenObject;

  Index num_experts() const { return (*this)->num_experts(); }
  Index model_dim() const { return (*this)->model_dim(); }

  /// See TakesExperts, Concatenates.
  Frozen take(std::span<const Index> ids) const
    requires TakesExperts<R>
  {
    return Frozen((*this)->take(ids));
  }
  Frozen concatenate(const Frozen& other) const
    requires Concatenates<R>
  {
    return Frozen((*this)->concatenate(*other));
  }

  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    (*this)->logits(tokens, context, out);
  }
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape) const
    requires RouterSkipsGradient<R>
  {
    (*this)->logits(tokens, context, out, tape);
  }
  void require_backward(Index num_tokens, const Tape& tape, const Frozen&) const
    requires RouterSkipsGradient<R>
  {
    if constexpr (requires { (*this)->require_backward(num_tokens, tape, NoGradient{}); })
      (*this)->require_backward(num_tokens, tape, NoGradient{});
  }
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                Frozen&, MatrixRef<Scalar> dtokens) const
    requires RouterSkipsGradient<R>
  {
    (*this)->backward(tokens, context, tape, dlogits, NoGradient{}, dtokens);
  }
  /// The same without dtokens: nothing to do.
  void backward(const MatrixView<Scalar>&, const Context&, Tape&, const MatrixView<Scalar>&, Frozen&) const
    requires RouterSkipsGradient<R>
  {}
};

}  // namespace moe::inline MOE_ABI
