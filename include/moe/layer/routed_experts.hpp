// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/layer/mixture.hpp"
#include "moe/layer/weight_on.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The rows w x of a routing, as tokens of a plan of their own. Working memory; one per thread.
template <class S>
struct WeightedTokens {
  RowBuffer<S> rows;
  DispatchPlan plan;  ///< token r is row r
  RowKeys keys;

  void build(const ConstMatrixRef<S>& tokens, const DispatchPlan& routed, std::span<const S> weights,
             const Step& step) {
    const auto assignment = routed.assignment_of_row();
    kernel::gather<S>(
        tokens, routed.num_rows(), tokens.cols(),
        [&](Index r) { return routed.token_of_row()[static_cast<std::size_t>(r)]; }, rows,
        [&](Index r, const S* token, Index cols, S* to) {
          const S weight = weights[static_cast<std::size_t>(assignment[static_cast<std::size_t>(r)])];
          std::transform(token, token + cols, to, [&](S x) { return weight * x; });
        });
    plan.build_from_counts(routed.num_experts(), [&](Index e) { return routed.rows_of(e); });
    keys.build(step, routed);
  }
  Step step(const Step& step) const { return keys.of_rows(step, 0, plan.num_rows()); }
};

/// dweight[a] = <dtokens[row of a], tokens[t]>, 0 where dropped: the gradient of the weights of rows w x.
template <class S>
void weighted_tokens_backward(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const RowBuffer<S>& drows,
                              std::span<S> dweight) {
  std::ranges::fill(dweight, S{0});
  parallel_ranges(plan.num_rows(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
    for (Index r = begin; r < end; ++r) {
      const auto row = static_cast<std::size_t>(r);
      const S* token = tokens.data() + plan.token_of_row()[row] * tokens.outerStride();
      double sum = 0;
      for (Index c = 0; c < tokens.cols(); ++c)
        sum = simd::fma(static_cast<double>(token[c]), static_cast<double>(drows.row(r)[c]), sum);
      dweight[static_cast<std::size_t>(plan.assignment_of_row()[row])] = static_cast<S>(sum);
    }
  });
}

/// Throws std::invalid_argument unless the routing has as many choices per token as that of the tape's plan.
template <class S>
void require_same_routing(const char* function, const DispatchPlan& plan, const Routing<S>& routing) {
  if (plan.num_tokens() != routing.num_tokens() || std::ssize(plan.row_of_assignment()) != routing.num_assignments())
    fail(function, ": routing has ", routing.num_tokens(), " tokens and ", routing.num_assignments(),
         " assignments, expected ", plan.num_tokens(), " and ", plan.row_of_assignment().size(),
         " as in the forward pass of the tape");
  if (routing.choices_per_token() >= 0 && routing.choices_per_token() == plan.choices_per_token()) return;
  for (Index t = 0; t < routing.num_tokens(); ++t)
    if (routing.begin(t) != plan.begin(t))
      fail(function, ": the choices of token ", t, " begin at ", routing.begin(t), ", expected ", plan.begin(t),
           " as in the forward pass of the tape");
}

/// Working memory of RoutedExperts.
template <class S>
struct RoutedRows {
  DispatchPlan plan;
  RowBuffer<S> rows;  ///< of the experts, unweighted, in plan order; in backward their gradients
  WeightedTokens<S> weighted;
  RowBuffer<S> dtokens;  ///< of weighted tokens, and where nobody asks for them, but the experts write them
  Scratch experts;       ///< apart: among them may be another RoutedExperts
};

}  // namespace detail

/// The mixture of every ordinary layer: out[t] = sum over the kept choices of t of weight_e * expert_e(tokens[t]), or
/// of expert_e(weight_e * tokens[t]) with WeightOn::Input, in the order of the choices. Lifts any expert set to a
/// Mixture, as ExpertPool lifts an expert to a set:
///   const moe::RoutedExperts mixture(moe::ExpertPool<moe::Glu>::random(8, 64, 256, 1));
///   mixture.forward(tokens, moe::Routing<float>::from(num_tokens, ids, weights, 8), {step, scratch}, out);
/// A token without kept choices gets zeros; padding must have none, see drop_padding(). Immutable in use, share freely.
/// Same bits for any number of threads and, where kPerToken, whatever else is in the batch.
template <class X>
class RoutedExperts {
  static_assert(ExpertSet<X>,
                "moe::RoutedExperts: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const PlanView& plan, const Context&, RowBuffer<Scalar>& rows) const`; wrap "
                "experts in moe::ExpertPool (see moe/expert/expert_set.hpp)");

 public:
  using Scalar = typename X::Scalar;
  static constexpr bool kPerToken = kIsPerToken<X>;
  static constexpr bool kCollective = kIsCollective<X>;

  /// What forward leaves for backward.
  struct Tape {
    DispatchPlan plan;
    RowBuffer<Scalar> rows;  ///< of the experts, unweighted, in plan order
    detail::TapeOf<X> experts;
    detail::WeightedTokens<Scalar> weighted;  ///< with WeightOn::Input
    WeightOn weight_on = WeightOn::Output;
    bool is_whole = false;  ///< whether a forward pass has ended
  };

  explicit RoutedExperts(X experts, WeightOn weight_on = WeightOn::Output)
      : experts_(std::move(experts)), weight_on_(weight_on) {}

  Index num_experts() const { return experts_.size(); }
  Index input_dim() const { return experts_.input_dim(); }
  Index output_dim() const { return experts_.output_dim(); }
  X& experts() { return experts_; }
  const X& experts() const { return experts_; }
  WeightOn weight_on() const { return weight_on_; }

  /// `out` may be `tokens` itself, but not overlap other rows of it. Throws std::invalid_argument on wrong shapes, and
  /// for a routing of other tokens or experts. Does not allocate when the scratch has seen sizes as large before.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out) const {
    constexpr const char* kFunction = "moe::RoutedExperts::forward";
    require_shapes(kFunction, tokens, routing, context.step, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    auto& [plan, rows, weighted, unused, scratch] = memory(context);
    plan.build(routing, experts_.size());  // stable sort by expert
    rows.resize(plan.num_rows(), row_width(experts_));
    if (weight_on_ == WeightOn::Input) {
      weighted.build(tokens, plan, routing.weights(), context.step);
      const Step step = weighted.step(context.step);
      experts_.forward(weighted.rows, weighted.plan, Context{step, scratch}, rows);
      return kernel::combine_unweighted(rows, plan, out);
    }
    experts_.forward(tokens, plan, Context{context.step, scratch}, rows);  // grouped GEMM over routed rows
    kernel::combine(rows, plan, routing, out);                             // weighted sum per token
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`, which backward reads again.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out, Tape& tape) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::RoutedExperts::forward";
    require_shapes(kFunction, tokens, routing, context.step, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    tape.is_whole = false;
    tape.weight_on = weight_on_;
    tape.plan.build(routing, experts_.size());
    tape.rows.resize(tape.plan.num_rows(), row_width(experts_));
    Scratch& scratch = memory(context).experts;
    if (weight_on_ == WeightOn::Input) {
      tape.weighted.build(tokens, tape.plan, routing.weights(), context.step);
      const Step step = tape.weighted.step(context.step);
      experts_.forward(tape.weighted.rows, tape.weighted.plan, Context{step, scratch}, tape.rows, tape.experts);
      kernel::combine_unweighted(tape.rows, tape.plan, out);
    } else {
      experts_.forward(tokens, tape.plan, Context{context.step, scratch}, tape.rows, tape.experts);
      kernel::combine(tape.rows, tape.plan, routing, out);
    }
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass through experts of these sizes with a routing of
  /// as many choices per token, and `gradient` is another mixture of them.
  void require_backward(const Routing<Scalar>& routing, const Tape& tape, const RoutedExperts& gradient) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::RoutedExperts::backward";
    if (!tape.is_whole) fail(kFunction, ": the tape holds no forward pass that has ended");
    if (tape.weight_on != weight_on_)
      fail(kFunction, ": the tape is of a mixture with another WeightOn, expected that of this one");
    detail::require_same_routing(kFunction, tape.plan, routing);
    if (&gradient == this) fail(kFunction, ": gradient is the mixture itself, expected one of its own (zeros_like)");
    detail::require_backward_of(kFunction, "gradient.experts", experts_, plan_of(tape), tape.experts,
                                gradient.experts_);
  }

  /// From dout [num_tokens, output_dim] to dweight [num_assignments] and dtokens [num_tokens, input_dim], both
  /// overwritten, and `gradient`, accumulated into; `routing` as in forward. About twice the operations of forward.
  /// Throws std::invalid_argument, before it writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, RoutedExperts& gradient, std::span<Scalar> dweight,
                MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpertSet<X>
  {
    run_backward(tokens, routing, context, tape, dout, gradient, dweight, &dtokens);
  }
  /// The same without dtokens, for tokens that nobody trains.
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, RoutedExperts& gradient, std::span<Scalar> dweight) const
    requires DifferentiableExpertSet<X>
  {
    run_backward(tokens, routing, context, tape, dout, gradient, dweight, nullptr);
  }

  /// The same over the given experts of the set. Throws std::invalid_argument as TakesExperts says.
  RoutedExperts take(std::span<const Index> ids) const
    requires TakesExperts<X>
  {
    return RoutedExperts(experts_.take(ids), weight_on_);
  }
  /// The same over the experts of both sets. Throws std::invalid_argument unless weights are on the same side.
  RoutedExperts concatenate(const RoutedExperts& other) const
    requires Concatenates<X>
  {
    detail::require_equal_option("moe::RoutedExperts::concatenate", "WeightOn", weight_on_, other.weight_on_);
    return RoutedExperts(experts_.concatenate(other.experts_), weight_on_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.experts_...);
  }

 private:
  static detail::RoutedRows<Scalar>& memory(const Context& context) {
    return context.scratch.get<detail::RoutedRows<Scalar>>();
  }

  void require_shapes(const char* function, const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing,
                      const Step& step, const MatrixRef<Scalar>& out) const {
    if (experts_.size() == 0) fail(function, ": there are no experts: they have been moved from");
    detail::require_shape(function, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(function, "out", out, tokens.rows(), output_dim());
    step.validate(function, tokens.rows());
    for (Index t = 0; t < tokens.rows() && !step.valid.empty(); ++t)
      if (!step.is_valid(t) && std::ranges::count(routing.dropped(t), std::uint8_t{0}) != 0)
        fail(function, ": token ", t, " is padding and has choices, expected them dropped (see drop_padding)");
  }

  /// The plan that the experts have been given.
  const DispatchPlan& plan_of(const Tape& tape) const {
    return weight_on_ == WeightOn::Input ? tape.weighted.plan : tape.plan;
  }

  /// `dtokens` is nullptr where nobody asks for it.
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
                    Tape& tape, const ConstMatrixRef<Scalar>& dout, RoutedExperts& gradient, std::span<Scalar> dweight,
                    MatrixRef<Scalar>* dtokens) const {
    constexpr const char* kFunction = "moe::RoutedExperts::backward";
    require_backward(routing, tape, gradient);
    detail::require_shape(kFunction, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(kFunction, "dout", dout, tokens.rows(), output_dim());
    if (std::ssize(dweight) != routing.num_assignments())
      fail(kFunction, ": dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    if (dtokens != nullptr) {
      detail::require_shape(kFunction, "dtokens", *dtokens, tokens.rows(), input_dim());
      detail::require_apart(kFunction, "dtokens", *dtokens, "tokens", tokens);
      detail::require_apart(kFunction, "dtokens", *dtokens, "dout", dout);
    }
    if (weight_on_ == WeightOn::Input)
      return backward_of_inputs(tokens, routing, context, tape, dout, gradient, dweight, dtokens);
    auto& [unused_plan, drows, unused_tokens, own_dtokens, scratch] = memory(context);
    kernel::combine_backward<Scalar>(dout, tape.rows, tape.plan, routing, row_width(experts_), dweight, drows);
    const Context of_experts{context.step, scratch};
    if (dtokens != nullptr)
      return experts_.backward(tokens, tape.plan, of_experts, tape.experts, drows, gradient.experts_, *dtokens);
    if constexpr (SetSkipsTokenGradient<X>) {
      experts_.backward(tokens, tape.plan, of_experts, tape.experts, drows, gradient.experts_);
    } else {
      own_dtokens.resize(tokens.rows(), input_dim());
      experts_.backward(tokens, tape.plan, of_experts, tape.experts, drows, gradient.experts_,
                        MatrixRef<Scalar>(own_dtokens.matrix()));
    }
  }

  /// With WeightOn::Input. The gradient of what the experts read is needed always: dL/dweight is taken from it.
  void backward_of_inputs(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
                          Tape& tape, const ConstMatrixRef<Scalar>& dout, RoutedExperts& gradient,
                          std::span<Scalar> dweight, MatrixRef<Scalar>* dtokens) const {
    auto& [unused_plan, drows, unused_tokens, dweighted, scratch] = memory(context);
    const Step step = tape.weighted.step(context.step);
    const auto token_of = [&](Index r) { return tape.plan.token_of_row()[static_cast<std::size_t>(r)]; };
    kernel::gather<Scalar>(dout, tape.plan.num_rows(), row_width(experts_), token_of, drows);
    dweighted.resize(tape.plan.num_rows(), input_dim());
    experts_.backward(tape.weighted.rows, tape.weighted.plan, Context{step, scratch}, tape.experts, drows,
                      gradient.experts_, MatrixRef<Scalar>(dweighted.matrix()));
    detail::weighted_tokens_backward<Scalar>(tokens, tape.plan, dweighted, dweight);
    if (dtokens != nullptr) kernel::combine(dweighted, tape.plan, routing, *dtokens);
  }

  X experts_;
  WeightOn weight_on_;
};

}  // namespace moe::inline MOE_ABI
