// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/overlap.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/gathered_runner.hpp"
#include "moe/expert/stage/panel_runner.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

template <class E>
struct RunnerOf {
  using type = GatheredRunner<E>;
};
template <PanelExpert E>
struct RunnerOf<E> {
  using type = PanelRunner<E>;
};

}  // namespace detail

/// Forward and backward of sets whose experts are all of one type: what ExpertPool and SharedLowRank are made of. A
/// Pool has size(), input_dim(), output_dim() and operator[], which gives an E, or something that stands for one.
template <class Pool, class E>
class PooledExperts {
  static_assert(Expert<E>,
                "moe::ExpertPool: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename E::Scalar;
  using Tape = typename detail::RunnerOf<E>::type::Tape;

  /// Columns of the rows that forward writes and backward reads; 0 in a pool that has been moved from.
  Index row_width() const {
    if (pool().size() == 0) return 0;
    require_whole("moe::ExpertPool::row_width", pool());
    return Runner::row_width(pool());
  }

  /// rows[r] = expert(tokens[plan.token_of_row(r)]) for the rows of `plan`; see ExpertSet. Throws
  /// std::invalid_argument if tokens, plan, rows and experts disagree on sizes: experts may be replaced by others of
  /// the same dimensions only. Experts without rows are not looked at.
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context,
               RowBuffer<Scalar>& rows) const {
    require_forward(tokens, plan, rows);
    Runner::forward(pool(), tokens, plan, context, rows);
  }
  void forward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, RowBuffer<Scalar>& rows,
               Tape& tape) const
    requires DifferentiableExpert<E>
  {
    require_forward(tokens, plan, rows);
    Runner::forward(pool(), tokens, plan, context, rows, tape);
  }
  /// Throws std::invalid_argument unless the tape is that of a forward pass over `plan` through experts of these sizes,
  /// and the gradient another pool of them.
  void require_backward(const PlanView& plan, const Tape& tape, const Pool& gradient) const
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_experts(kFunction, plan);
    if (gradient.size() != pool().size())
      fail(kFunction, ": gradient has ", gradient.size(), " experts, expected ", pool().size());
    require_whole(kFunction, gradient);
    if constexpr (requires { pool().require_like(kFunction, gradient); }) pool().require_like(kFunction, gradient);
    if (&gradient == &pool()) fail(kFunction, ": gradient is the pool itself, expected one of its own (zeros_like)");
    Runner::require_backward(pool(), plan, tape, gradient);
  }
  void require_backward(const PlanView& plan, const Tape& tape, NoGradient none) const
    requires DifferentiableExpert<E>
  {
    require_experts("moe::ExpertPool::backward", plan);
    Runner::require_backward(pool(), plan, tape, none);
  }
  /// dtokens[t] = sum of dL/d(row) over the rows of token t in `plan`, overwritten; accumulates into `gradient`.
  ///   dout  [all rows of the plan, at least row_width()]
  /// Throws std::invalid_argument, before it writes anything, if sizes or require_backward() say no.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, Pool& gradient, MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpert<E>
  {
    run_backward(tokens, plan, context, tape, dout, gradient, dtokens);
  }
  /// The same without dtokens, which are not computed: a third of the work of Glu, a quarter of that of Mlp.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, Pool& gradient) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsRowGradient<E>))
  {
    require_backward_call(tokens, plan, tape, dout, gradient);
    Runner::backward(pool(), tokens, plan, context, tape, dout, gradient);
  }

  /// dtokens alone, as for experts that are frozen: a third of the work less.
  void backward(const MatrixView<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                const RowBuffer<Scalar>& dout, NoGradient, MatrixRef<Scalar> dtokens) const
    requires(DifferentiableExpert<E> && (PanelExpert<E> || SkipsGradient<E>))
  {
    run_backward(tokens, plan, context, tape, dout, NoGradient{}, dtokens);
  }

 private:
  const Pool& pool() const { return static_cast<const Pool&>(*this); }

  using Runner = typename detail::RunnerOf<E>::type;

  /// Asks a pool whose experts are made of parts that can be replaced whether these are still there.
  static void require_whole(const char* function, const Pool& of) {
    if constexpr (requires { of.require_updates(function); }) of.require_updates(function);
  }

  void require_experts(const char* function, const PlanView& plan) const {
    detail::require_plan_of(function, pool(), plan);
    require_whole(function, pool());
  }

  /// `rows` are those of the whole plan.
  void require_sizes(const char* function, const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const char* name,
                     const RowBuffer<Scalar>& rows) const {
    require_experts(function, plan);
    detail::require_plan_rows(function, pool(), tokens, plan, name, rows);
  }

  void require_forward(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan,
                       const RowBuffer<Scalar>& rows) const {
    require_sizes("moe::ExpertPool::forward", tokens, plan, "rows", rows);
    detail::require_apart("moe::ExpertPool::forward", "rows", rows.matrix(), "tokens", tokens);
  }

  template <class Gradient>
  void require_backward_call(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Tape& tape,
                             const RowBuffer<Scalar>& dout, const Gradient& gradient) const {
    require_sizes("moe::ExpertPool::backward", tokens, plan, "dout", dout);
    require_backward(plan, tape, gradient);
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const PlanView& plan, const Context& context, Tape& tape,
                    const RowBuffer<Scalar>& dout, Gradient&& gradient, MatrixRef<Scalar> dtokens) const {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_backward_call(tokens, plan, tape, dout, gradient);
    detail::require_dtokens(kFunction, pool(), tokens, plan, dout, dtokens);
    Runner::backward(pool(), tokens, plan, context, tape, dout, gradient, dtokens);
  }
};

}  // namespace moe::inline MOE_ABI
