// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <utility>

#include "moe/core/overlap.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/take.hpp"
#include "moe/expert/expert_set.hpp"
#include "moe/kernel/dispatch.hpp"
#include "moe/layer/mixture.hpp"
#include "moe/layer/routed_experts.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI {

/// A mixture that leaves apart what RoutedExperts adds up: a token's weights, then what each expert makes of it.
///   out[t] = (weight_t0, ..., weight_tZ, expert_0(x_t), ..., expert_Z(x_t)),   Z = num_experts - 1
/// which are num_experts * (1 + width) columns. For whoever combines experts otherwise than by a weighted sum of their
/// outputs: the components of a density (see MixturePolicy), errors per expert, votes. An expert that a token does not
/// choose has weight 0 and zeros there.
///   moe::MoeLayer layer(router, moe::SoftmaxGate{}, moe::SeparateExperts(moe::ExpertPool<moe::Mlp>(experts)));
/// Gradients are those of the columns: dL/dweight of a choice is that of its weight, which the experts' outputs are
/// free of. Immutable in use, share freely. Same bits for any number of threads and, where kPerToken, whatever else is
/// in the batch. The operations of RoutedExperts but for its sum; no allocation when warm.
template <class X>
class SeparateExperts {
  static_assert(ExpertSet<X>,
                "moe::SeparateExperts: an ExpertSet needs `Scalar`, `size()`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const PlanView& plan, const Context&, RowBuffer<Scalar>& rows) const`; wrap "
                "experts in moe::ExpertPool (see moe/expert/expert_set.hpp)");

 public:
  using Scalar = typename X::Scalar;
  static constexpr bool kPerToken = kIsPerToken<X>;
  static constexpr bool kCollective = kIsCollective<X>;

  /// What forward leaves for backward.
  struct Tape {
    DispatchPlan plan;
    RowBuffer<Scalar> rows;  ///< of the experts, in plan order
    detail::TapeOf<X> experts;
    bool is_whole = false;  ///< whether a forward pass has ended
  };

  explicit SeparateExperts(X experts) : experts_(std::move(experts)) {}

  Index num_experts() const { return experts_.size(); }
  Index input_dim() const { return experts_.input_dim(); }
  /// Columns of one expert.
  Index width() const { return experts_.output_dim(); }
  Index output_dim() const { return num_experts() * (1 + width()); }
  X& experts() { return experts_; }
  const X& experts() const { return experts_; }

  /// `out` may be `tokens` itself, but not overlap other rows of it. Throws std::invalid_argument on wrong
  /// shapes, for a routing of other tokens or experts, and for one in which a token names an expert twice.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out) const {
    constexpr const char* kFunction = "moe::SeparateExperts::forward";
    require_shapes(kFunction, tokens, routing, context.step, out);
    detail::require_same_or_apart(kFunction, "out", out, "tokens", tokens);
    auto& [plan, rows, unused, of_experts] = memory(context);
    plan.build(routing, experts_.size());
    rows.resize(plan.num_rows(), row_width(experts_));
    experts_.forward(tokens, plan, Context{context.step, of_experts}, rows);
    lay_out(plan, routing, rows, out);
  }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `tokens`, which backward reads again.
  void forward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
               MatrixRef<Scalar> out, Tape& tape) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::SeparateExperts::forward";
    require_shapes(kFunction, tokens, routing, context.step, out);
    detail::require_apart(kFunction, "out", out, "tokens", tokens);
    tape.is_whole = false;
    tape.plan.build(routing, experts_.size());
    tape.rows.resize(tape.plan.num_rows(), row_width(experts_));
    experts_.forward(tokens, tape.plan, Context{context.step, memory(context).experts}, tape.rows, tape.experts);
    lay_out(tape.plan, routing, tape.rows, out);
    tape.is_whole = true;
  }

  /// Throws std::invalid_argument unless `tape` holds a forward pass through experts of these sizes with a routing of
  /// the same kept choices, and `gradient` is another mixture of them.
  void require_backward(const Routing<Scalar>& routing, const Tape& tape, const SeparateExperts& gradient) const
    requires DifferentiableExpertSet<X>
  {
    constexpr const char* kFunction = "moe::SeparateExperts::backward";
    if (!tape.is_whole) fail(kFunction, ": the tape holds no forward pass that has ended");
    detail::require_same_routing(kFunction, tape.plan, routing);
    require_same_experts(kFunction, tape.plan, routing);
    if (&gradient == this) fail(kFunction, ": gradient is the mixture itself, expected one of its own (zeros_like)");
    detail::require_backward_of(kFunction, "gradient.experts", experts_, tape.plan, tape.experts, gradient.experts_);
  }

  /// From dout [num_tokens, output_dim] to dweight [num_assignments] and dtokens [num_tokens, input_dim], both
  /// overwritten, and `gradient`, accumulated into; `routing` as in forward. Throws std::invalid_argument, before it
  /// writes anything, on wrong shapes and as require_backward().
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, SeparateExperts& gradient, std::span<Scalar> dweight,
                MatrixRef<Scalar> dtokens) const
    requires DifferentiableExpertSet<X>
  {
    run_backward(tokens, routing, context, tape, dout, gradient, dweight, &dtokens);
  }
  /// The same without dtokens, for tokens that nobody trains.
  void backward(const MatrixView<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context, Tape& tape,
                const MatrixView<Scalar>& dout, SeparateExperts& gradient, std::span<Scalar> dweight) const
    requires DifferentiableExpertSet<X>
  {
    run_backward(tokens, routing, context, tape, dout, gradient, dweight, nullptr);
  }

  /// The same over the given experts of the set. Throws std::invalid_argument as TakesExperts says.
  SeparateExperts take(std::span<const Index> ids) const
    requires TakesExperts<X>
  {
    return SeparateExperts(experts_.take(ids));
  }
  /// The same over the experts of both sets.
  SeparateExperts concatenate(const SeparateExperts& other) const
    requires Concatenates<X>
  {
    return SeparateExperts(experts_.concatenate(other.experts_));
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.experts_...);
  }

 private:
  struct Memory {
    DispatchPlan plan;
    RowBuffer<Scalar> rows;     ///< in backward their gradients
    RowBuffer<Scalar> dtokens;  ///< where nobody asks for them, but the experts write them
    Scratch experts;            ///< apart: among them may be another mixture
  };
  static Memory& memory(const Context& context) { return context.scratch.template get<Memory>(); }

  void require_shapes(const char* function, const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing,
                      const Step& step, const MatrixRef<Scalar>& out) const {
    if (experts_.size() == 0) fail(function, ": there are no experts: they have been moved from");
    detail::require_shape(function, "tokens", tokens, routing.num_tokens(), input_dim());
    detail::require_shape(function, "out", out, tokens.rows(), output_dim());
    step.validate(function, tokens.rows());
    for (Index t = 0; t < tokens.rows(); ++t) {
      const auto experts = routing.experts(t);
      const bool ascending = std::ranges::adjacent_find(experts, std::greater_equal{}) == experts.end();
      for (auto e = experts.begin(); e != experts.end() && !ascending; ++e)
        if (std::find(experts.begin(), e, *e) != e)
          fail(function, ": token ", t, " names expert ", *e, " twice, expected each expert once");
      if (!step.is_valid(t) && std::ranges::count(routing.dropped(t), std::uint8_t{0}) != 0)
        fail(function, ": token ", t, " is padding and has choices, expected them dropped (see drop_padding)");
    }
  }

  /// Throws unless every choice that has a row in the plan names the expert of that row: by it columns are found.
  static void require_same_experts(const char* function, const DispatchPlan& plan, const Routing<Scalar>& routing) {
    const auto experts = routing.experts();
    const auto rows = plan.row_of_assignment();
    for (std::size_t a = 0; a < rows.size(); ++a) {
      const Index e = experts[a], row = rows[a];
      if (row < 0) continue;
      if (e < 0 || e >= plan.num_experts() || row < plan.offset(e) || row >= plan.offset(e + 1))
        fail(function, ": assignment ", a, " names expert ", e, ", expected ",
             std::ranges::upper_bound(plan.offsets(), row) - plan.offsets().begin() - 1,
             " as in the forward pass of the tape");
    }
  }

  /// Calls body(t, a, e, row) for the kept choices of all tokens, and start(t) before those of a token.
  template <class Start, class Body>
  static void for_each_choice(const DispatchPlan& plan, const Routing<Scalar>& routing, const Start& start,
                              const Body& body) {
    parallel_ranges(plan.num_tokens(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        start(t);
        for (auto a = static_cast<std::size_t>(plan.begin(t)); a < static_cast<std::size_t>(plan.end(t)); ++a)
          if (const Index row = plan.row_of_assignment()[a]; row >= 0) body(t, a, routing.experts()[a], row);
      }
    });
  }

  void lay_out(const DispatchPlan& plan, const Routing<Scalar>& routing, const RowBuffer<Scalar>& rows,
               MatrixRef<Scalar> out) const {
    const Index num_experts = this->num_experts(), width = this->width();
    for_each_choice(
        plan, routing, [&](Index t) { std::fill_n(out.data() + t * out.outerStride(), out.cols(), Scalar{0}); },
        [&](Index t, std::size_t a, Index e, Index row) {
          Scalar* const to = out.data() + t * out.outerStride();
          to[e] = routing.weights()[a];
          std::copy_n(rows.row(row), width, to + num_experts + e * width);
        });
  }

  /// `dtokens` is nullptr where nobody asks for it.
  void run_backward(const ConstMatrixRef<Scalar>& tokens, const Routing<Scalar>& routing, const Context& context,
                    Tape& tape, const ConstMatrixRef<Scalar>& dout, SeparateExperts& gradient,
                    std::span<Scalar> dweight, MatrixRef<Scalar>* dtokens) const {
    constexpr const char* kFunction = "moe::SeparateExperts::backward";
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
    const Index num_experts = this->num_experts(), width = this->width();
    Memory& working = memory(context);
    RowBuffer<Scalar>& drows = working.rows;
    drows.resize(tape.plan.num_rows(), row_width(experts_));
    std::ranges::fill(dweight, Scalar{0});
    for_each_choice(
        tape.plan, routing, [](Index) {},
        [&](Index t, std::size_t a, Index e, Index row) {
          const Scalar* const from = dout.data() + t * dout.outerStride();
          Scalar* const to = drows.row(row);
          dweight[a] = from[e];
          std::copy_n(from + num_experts + e * width, width, to);
          std::fill(to + width, to + drows.cols(), Scalar{0});
        });
    const Context of_experts{context.step, working.experts};
    if (dtokens != nullptr)
      return experts_.backward(tokens, tape.plan, of_experts, tape.experts, drows, gradient.experts_, *dtokens);
    if constexpr (SetSkipsTokenGradient<X>) {
      experts_.backward(tokens, tape.plan, of_experts, tape.experts, drows, gradient.experts_);
    } else {
      working.dtokens.resize(tokens.rows(), input_dim());
      experts_.backward(tokens, tape.plan, of_experts, tape.experts, drows, gradient.experts_,
                        MatrixRef<Scalar>(working.dtokens.matrix()));
    }
  }

  X experts_;
};

template <class X>
SeparateExperts(X) -> SeparateExperts<X>;

}  // namespace moe::inline MOE_ABI
