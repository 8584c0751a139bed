// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <utility>

#include "moe/core/frozen.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/expert/stage/staged_expert.hpp"

namespace moe::inline MOE_ABI {

/// An expert that does not learn; trained through where its backward takes NoGradient, as those of Linear, Mlp, Glu,
/// Offset and ScaledIdentity do, those of OneOf, GatedExpert, FeatureGated, Normalised and Film where their experts'
/// do, and that of Frozen. That of LayerExpert does not: such a one serves inference.
template <Expert E>
class Frozen<E> : public detail::FrozenObject<E> {
 public:
  using Scalar = typename E::Scalar;
  using Tape = detail::TapeOf<E>;
  static constexpr bool kPerToken = kIsPerToken<E>;
  using detail::FrozenObject<E>::FrozenObject;

  Index input_dim() const { return (*this)->input_dim(); }
  Index output_dim() const { return (*this)->output_dim(); }

  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    (*this)->forward(rows, out, context);
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape& tape) const
    requires SkipsGradient<E>
  {
    (*this)->forward(rows, out, context, tape);
  }
  void require_backward(Index num_rows, const Tape& tape, const Frozen&) const
    requires SkipsGradient<E>
  {
    require_backward(num_rows, tape, NoGradient{});
  }
  void require_backward(Index num_rows, const Tape& tape, NoGradient none) const
    requires SkipsGradient<E>
  {
    if constexpr (requires { (*this)->require_backward(num_rows, tape, none); })
      (*this)->require_backward(num_rows, tape, none);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                Frozen&, const Context& context) const
    requires SkipsGradient<E>
  {
    (*this)->backward(rows, tape, dout, drows, NoGradient{}, context);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                NoGradient none, const Context& context) const
    requires SkipsGradient<E>
  {
    (*this)->backward(rows, tape, dout, drows, none, context);
  }
  /// The same without `drows`: nothing to do.
  void backward(const MatrixView<Scalar>&, Tape&, const MatrixView<Scalar>&, Frozen&, const Context&) const
    requires SkipsGradient<E>
  {}
};

/// A panel expert that does not learn is one, too: a pool of them runs at full speed, and shared ones lie once.
template <PanelExpert E>
class Frozen<E> : public detail::FrozenObject<E>, public StagedExpert<Frozen<E>, CodecOf<typename E::Scalar>> {
  using Staged = StagedExpert<Frozen, CodecOf<typename E::Scalar>>;

 public:
  using Scalar = typename E::Scalar;
  using Tape = typename Staged::template Tape<Frozen>;
  using detail::FrozenObject<E>::FrozenObject;

  Index input_dim() const { return (*this)->input_dim(); }
  Index output_dim() const { return (*this)->output_dim(); }

  template <class Self>
  static auto stages(Self& self) {
    return E::stages(*self);  // const, whatever Self is
  }
};

/// An expert set that does not learn; trained through where its backward takes NoGradient, as those of ExpertPool and
/// Concatenated do where those of their experts and sets do.
template <ExpertSet X>
class Frozen<X> : public detail::FrozenObject<X> {
 public:
  using Scalar = typename X::Scalar;
  using Tape = detail::TapeOf<X>;
  static constexpr bool kPerToken = kIsPerToken<X>;
  static constexpr bool kCollective = kIsCollective<X>;
  using detail::FrozenObject<X>::FrozenObject;

  Index size() const { return (*this)->size(); }
  Index input_dim() const { return (*this)->input_dim(); }
  Index output_dim() const { return (*this)->output_dim(); }
  Index row_width() const { return moe::row_width(**this); }
  decltype(auto) operator[](Index e) const
    requires requires(const X& experts) { experts[e]; }
  {
    return (**this)[e];
  }

  /// Experts of this set, or of two; frozen, and shared with nobody. See TakesExperts, Concatenates.
  Frozen take(std::span<const Index> ids) const
    requires TakesExperts<X>
  {
    return Frozen((*this)->take(ids));
  }
  Frozen concatenate(const Frozen& other) const
    requires Concatenates<X>
  {
    return Frozen((*this)->concatenate(*other));
  }

  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    (*this)->forward(tokens, plan, context, rows);
  }
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, RowBuffer<Scalar>& rows,
               Tape& tape) const
    requires SetSkipsGradient<X>
  {
    (*this)->forward(tokens, plan, context, rows, tape);
  }
  void require_backward(const PlanView& plan, const Tape& tape, const Frozen&) const
    requires SetSkipsGradient<X>
  {
    require_backward(plan, tape, NoGradient{});
  }
  void require_backward(const PlanView& plan, const Tape& tape, NoGradient none) const
    requires SetSkipsGradient<X>
  {
    if constexpr (requires { (*this)->require_backward(plan, tape, none); })
      (*this)->require_backward(plan, tape, none);
  }
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, Frozen&, MatrixRef<Scalar> dtokens) const
    requires SetSkipsGradient<X>
  {
    (*this)->backward(tokens, plan, context, tape, dout, NoGradient{}, dtokens);
  }
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, NoGradient none, MatrixRef<Scalar> dtokens) const
    requires SetSkipsGradient<X>
  {
    (*this)->backward(tokens, plan, context, tape, dout, none, dtokens);
  }
  /// The same without dtokens: nothing to do.
  void backward(const MatrixView<Scalar>&, const PlanView& plan, const Context&, Tape& tape, const RowBuffer<Scalar>&,
                Frozen& gradient) const
    requires SetSkipsGradient<X>
  {
    require_backward(plan, tape, gradient);
  }
};

}  // namespace moe::inline MOE_ABI
