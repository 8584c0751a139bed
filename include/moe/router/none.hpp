// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/overlap.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI {

/// A router for gates that do not look at logits, as StochasticGate or HashGate: logits are zero, there is
/// nothing to learn, and tokens get no gradient. Before a gate that does look, all experts are alike, and ties go to
/// the lower ones. Immutable in use, share freely.
///   moe::MoeLayer layer(moe::NoRouter(8, 64), moe::StochasticGate{}, experts);
template <class Codec>
class BasicNoRouter {
 public:
  using Scalar = typename Codec::Scalar;
  struct Tape {};

  /// Throws std::invalid_argument for num_experts < 1 or model_dim < 1.
  BasicNoRouter(Index num_experts, Index model_dim)
      : num_experts_(detail::checked_size("moe::NoRouter", "num_experts", num_experts, 1)),
        model_dim_(detail::checked_size("moe::NoRouter", "model_dim", model_dim, 1)) {}

  Index num_experts() const { return num_experts_; }
  Index model_dim() const { return model_dim_; }

  /// out [num_tokens, num_experts] = 0; must not overlap tokens, whose values are not read. num_tokens * num_experts
  /// stores, no allocation. Throws std::invalid_argument on wrong shapes.
  void logits(const MatrixView<Scalar>& tokens, const Context&, MatrixRef<Scalar> out) const {
    constexpr const char* kFunction = "moe::NoRouter::logits";
    detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), model_dim_);
    detail::require_shape(kFunction, "out", out, tokens.rows(), num_experts_);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    out.setZero();
  }
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape&) const {
    logits(tokens, context, out);
  }

  /// Throws std::invalid_argument unless the gradient is of these sizes.
  void require_backward(Index, const Tape&, const BasicNoRouter& gradient) const {
    if (gradient.num_experts_ != num_experts_ || gradient.model_dim_ != model_dim_)
      fail("moe::NoRouter::backward: gradient is of ", gradient.num_experts_, " experts and ", gradient.model_dim_,
           " columns, expected ", num_experts_, " and ", model_dim_);
  }

  /// Adds nothing to anything. Throws std::invalid_argument on wrong shapes.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                BasicNoRouter& gradient, MatrixRef<Scalar> dtokens) const {
    detail::require_shape("moe::NoRouter::backward", "dtokens", dtokens, tokens.rows(), model_dim_);
    backward(tokens, context, tape, dlogits, gradient);
  }
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient, MatrixRef<Scalar> dtokens) const {
    BasicNoRouter none = *this;
    backward(tokens, context, tape, dlogits, none, dtokens);
  }
  /// The same without dtokens.
  void backward(const MatrixView<Scalar>& tokens, const Context&, Tape& tape, const MatrixView<Scalar>& dlogits,
                BasicNoRouter& gradient) const {
    constexpr const char* kFunction = "moe::NoRouter::backward";
    detail::require_shape(kFunction, "tokens", tokens, tokens.rows(), model_dim_);
    detail::require_shape(kFunction, "dlogits", dlogits, tokens.rows(), num_experts_);
    require_backward(tokens.rows(), tape, gradient);
  }

  /// As many logits as there are ids. Throws std::invalid_argument as TakesExperts says.
  BasicNoRouter take(std::span<const Index> ids) const {
    detail::require_ids("moe::NoRouter::take", ids, num_experts_);
    return {std::ssize(ids), model_dim_};
  }
  /// As many logits as both have. Throws std::invalid_argument unless both read as many columns.
  BasicNoRouter concatenate(const BasicNoRouter& other) const {
    if (other.model_dim_ != model_dim_)
      fail("moe::NoRouter::concatenate: other reads ", other.model_dim_, " columns, expected model_dim = ", model_dim_);
    return {num_experts_ + other.num_experts_, model_dim_};
  }

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

 private:
  Index num_experts_, model_dim_;
};

using NoRouter = BasicNoRouter<F32>;

static_assert(RouterSkipsGradient<NoRouter> && RouterSkipsGradient<BasicNoRouter<F64>>);
static_assert(TakesExperts<NoRouter> && Concatenates<NoRouter>);

}  // namespace moe::inline MOE_ABI
