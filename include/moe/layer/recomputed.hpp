// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/core/aligned.hpp"
#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/layer/mixture.hpp"

namespace moe::inline MOE_ABI {

/// A mixture whose tape holds nothing but how many tokens there were: backward runs forward anew, into a tape in the
/// scratch. So a layer in training costs its routing, and one tape serves all layers that borrow one scratch:
///   moe::MoeLayer layer(router, gate, moe::Recomputed(moe::RoutedExperts(pool)));
///   tape.scratch.borrow(memory);  // of every layer
/// The bits of M, outputs and gradients, as M computes the same again; parameters have the names that they have in M.
/// By operations backward is 1.5 of what it is in M, a step 1.33. Losses of routers inside of M have no tape to be in:
/// a mixture whose experts are layers is refused, and those deeper inside cannot be balanced. "Activation
/// checkpointing": Chen, Xu, Zhang & Guestrin, "Training deep nets with sublinear memory cost" (arXiv:1604.06174).
template <class M>
class Recomputed {
  static_assert(DifferentiableMixture<M>,
                "moe::Recomputed: training needs a Mixture with forward(..., tape), backward and visit, as "
                "moe::RoutedExperts of a set is (see moe/layer/mixture.hpp)");
  static_assert(
      !requires(const M& mixture) { mixture.experts()[0].layer(); },
      "moe::Recomputed: the experts are layers, whose routers would have no tape for their losses");

 public:
  using Scalar = typename M::Scalar;
  static constexpr bool kPerToken = kIsPerToken<M>;
  static constexpr bool kCollective = kIsCollective<M>;

  /// Of a pass over so many tokens, or of none.
  struct Tape {
    Index num_tokens = -1;
  };

  explicit Recomputed(M mixture) : mixture_(std::move(mixture)) {}

  Index num_experts() const { return mixture_.num_experts(); }
  Index input_dim() const { return mixture_.input_dim(); }
  Index output_dim() const { return mixture_.output_dim(); }
  M& mixture() { return mixture_; }
  const M& mixture() const { return mixture_; }
  auto& experts()
    requires requires(M& mixture) { mixture.experts(); }
  {
    return mixture_.experts();
  }
  const auto& experts() const
    requires requires(const M& mixture) { mixture.experts(); }
  {
    return mixture_.experts();
  }

  /// As M, at inference and in training alike.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out) const {
    mixture_.forward(tokens, routing, context, out);
  }
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out, Tape& tape) const {
    detail::require_apart("moe::Recomputed::forward", "out", out, "tokens", tokens);
    tape.num_tokens = -1;
    mixture_.forward(tokens, routing, context, out);
    tape.num_tokens = tokens.rows();
  }

  /// Throws std::invalid_argument unless `tape` is that of a pass over as many tokens, and `gradient` another mixture
  /// with the parameters of this one.
  void require_backward(const Routing<Scalar>& routing, const Tape& tape, const Recomputed& gradient) const {
    constexpr const char* kFunction = "moe::Recomputed::backward";
    if (tape.num_tokens < 0) fail(kFunction, ": the tape holds no forward pass that has ended");
    if (tape.num_tokens != routing.num_tokens())
      fail(kFunction, ": routing has ", routing.num_tokens(), " tokens, expected ", tape.num_tokens,
           " as in the forward pass of the tape");
    if (&gradient == this) fail(kFunction, ": gradient is the mixture itself, expected one of its own (zeros_like)");
    detail::require_gradient_of(kFunction, "gradient", mixture_, gradient.mixture_);
  }

  /// As M's, with `tokens` and `routing` as in forward. Three times the operations of forward. Throws
  /// std::invalid_argument, before it writes anything, as M and require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
                const Tape& tape, const MatrixView<Scalar>& dout, Recomputed& gradient, std::span<Scalar> dweight,
                MatrixRef<Scalar> dtokens) const {
    run_backward(tokens, routing, context, tape, dout, gradient, dweight, dtokens);
  }
  /// The same without dtokens, where M can leave them out.
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
                const Tape& tape, const MatrixView<Scalar>& dout, Recomputed& gradient, std::span<Scalar> dweight) const
    requires MixtureSkipsTokenGradient<M>
  {
    run_backward(tokens, routing, context, tape, dout, gradient, dweight);
  }

  /// The same over the given experts. Throws std::invalid_argument as TakesExperts says.
  Recomputed take(std::span<const Index> ids) const
    requires TakesExperts<M>
  {
    return Recomputed(mixture_.take(ids));
  }
  Recomputed concatenate(const Recomputed& other) const
    requires Concatenates<M>
  {
    return Recomputed(mixture_.concatenate(other.mixture_));
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.mixture_...);
  }

 private:
  /// Of backward; apart, as M works in a scratch, too.
  struct Memory {
    typename M::Tape tape;
    RowBuffer<Scalar> out;
    Scratch own;
  };

  template <class... MaybeTokens>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
                    const Tape& tape, const ConstMatrixRef<Scalar>& dout, Recomputed& gradient,
                    std::span<Scalar> dweight, const MaybeTokens&... dtokens) const {
    require_backward(routing, tape, gradient);
    auto& [again, out, own] = context.scratch.get<Memory>();
    out.resize(tokens.rows(), output_dim());
    const Context inner{context.step, own};
    mixture_.forward(tokens, routing, inner, MatrixRef<Scalar>(out.matrix()), again);
    mixture_.backward(tokens, routing, inner, again, dout, gradient.mixture_, dweight, dtokens...);
  }

  M mixture_;
};

}  // namespace moe::inline MOE_ABI
