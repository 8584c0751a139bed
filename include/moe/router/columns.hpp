// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/core/part_of_gradient.hpp"
#include "moe/core/take.hpp"
#include "moe/core/tape.hpp"
#include "moe/router/concept.hpp"

namespace moe::inline MOE_ABI {

/// Any router over some columns of the tokens, so that it reads other inputs than the experts, which see all columns:
///   logits = R(tokens[:, first : first + R.model_dim()])
/// What decides who is asked, as the context of an environment or the scores of other models, goes in columns beside
/// those of the state or the features:
///   moe::ColumnsRouter router(moe::LinearRouter::random(3, context_dim, 1), state_dim + context_dim, state_dim);
/// Trainable if the router is; the other columns get no gradient from it. Its parameters and their names are the
/// router's. Immutable in use, share freely. No cost beside the router's, no copy of the columns.
template <Router R>
class ColumnsRouter {
 public:
  using Scalar = typename R::Scalar;
  using Tape = detail::TapeOf<R>;

  /// Throws std::invalid_argument unless 0 <= first <= model_dim - router.model_dim().
  ColumnsRouter(R router, Index model_dim, Index first)
      : router_(std::move(router)),
        model_dim_(detail::checked_size("moe::ColumnsRouter", "model_dim", model_dim, 1)),
        first_(first) {
    if (first < 0 || first > model_dim - router_.model_dim())
      fail("moe::ColumnsRouter: first is ", first, ", expected 0 to model_dim - columns of the router = ", model_dim,
           " - ", router_.model_dim());
  }

  Index num_experts() const { return router_.num_experts(); }
  Index model_dim() const { return model_dim_; }
  Index first() const { return first_; }
  R& router() { return router_; }
  const R& router() const { return router_; }

  /// out [num_tokens, num_experts], overwritten. Throws std::invalid_argument on wrong shapes and where the router
  /// does.
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out) const {
    require_tokens("moe::ColumnsRouter::logits", tokens);
    router_.logits(columns(tokens), context, out);
  }
  void logits(const MatrixView<Scalar>& tokens, const Context& context, MatrixRef<Scalar> out, Tape& tape) const
    requires DifferentiableRouter<R>
  {
    require_tokens("moe::ColumnsRouter::logits", tokens);
    router_.logits(columns(tokens), context, out, tape);
  }

  /// Throws std::invalid_argument unless the gradient is of the same columns, and where the router does.
  template <class Gradient>
    requires DifferentiableRouter<R>
  void require_backward(Index num_tokens, const Tape& tape, const Gradient& gradient) const {
    if constexpr (!detail::kIsNoGradient<Gradient>)
      if (gradient.model_dim_ != model_dim_ || gradient.first_ != first_)
        fail("moe::ColumnsRouter::backward: gradient is of columns from ", gradient.first_, " on, of ",
             gradient.model_dim_, ", expected ", first_, " and ", model_dim_);
    if constexpr (requires { router_.require_backward(num_tokens, tape, of_router(gradient)); })
      router_.require_backward(num_tokens, tape, of_router(gradient));
  }

  /// Adds to the router's columns of `dtokens`, which must not overlap `tokens` or `dlogits`. Throws
  /// std::invalid_argument, before it writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                ColumnsRouter& gradient, MatrixRef<Scalar> dtokens) const
    requires DifferentiableRouter<R>
  {
    require_shapes(tokens, tape, gradient, &dtokens);
    router_.backward(columns(tokens), context, tape, dlogits, gradient.router_,
                     dtokens.middleCols(first_, router_.model_dim()));
  }
  /// dtokens alone.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                NoGradient none, MatrixRef<Scalar> dtokens) const
    requires RouterSkipsGradient<R>
  {
    require_shapes(tokens, tape, none, &dtokens);
    router_.backward(columns(tokens), context, tape, dlogits, none, dtokens.middleCols(first_, router_.model_dim()));
  }
  /// The gradient alone.
  void backward(const MatrixView<Scalar>& tokens, const Context& context, Tape& tape, const MatrixView<Scalar>& dlogits,
                ColumnsRouter& gradient) const
    requires requires(const R& router, R& of_router) { router.backward(tokens, context, tape, dlogits, of_router); }
  {
    require_shapes(tokens, tape, gradient, nullptr);
    router_.backward(columns(tokens), context, tape, dlogits, gradient.router_);
  }

  /// Over the same columns.
  ColumnsRouter take(std::span<const Index> ids) const
    requires TakesExperts<R>
  {
    return ColumnsRouter(router_.take(ids), model_dim_, first_);
  }
  /// Throws std::invalid_argument unless both read the same columns.
  ColumnsRouter concatenate(const ColumnsRouter& other) const
    requires Concatenates<R>
  {
    constexpr const char* kFunction = "moe::ColumnsRouter::concatenate";
    detail::require_equal_option(kFunction, "model_dim", model_dim_, other.model_dim_);
    detail::require_equal_option(kFunction, "first", first_, other.first_);
    return ColumnsRouter(router_.concatenate(other.router_), model_dim_, first_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.router_...);
  }

 private:
  auto columns(const ConstMatrixRef<Scalar>& tokens) const { return tokens.middleCols(first_, router_.model_dim()); }

  template <class Gradient>
  static decltype(auto) of_router(Gradient& gradient) {
    return detail::part_of(gradient, [](auto& whole) -> auto& { return whole.router_; });
  }

  void require_tokens(const char* function, const ConstMatrixRef<Scalar>& tokens) const {
    detail::require_shape(function, "tokens", tokens, tokens.rows(), model_dim_);
  }
  template <class Gradient>
  void require_shapes(const ConstMatrixRef<Scalar>& tokens, const Tape& tape, const Gradient& gradient,
                      const MatrixRef<Scalar>* dtokens) const {
    constexpr const char* kFunction = "moe::ColumnsRouter::backward";
    require_tokens(kFunction, tokens);
    require_backward(tokens.rows(), tape, gradient);
    if (dtokens != nullptr) detail::require_shape(kFunction, "dtokens", *dtokens, tokens.rows(), model_dim_);
  }

  R router_;
  Index model_dim_, first_;
};

}  // namespace moe::inline MOE_ABI
