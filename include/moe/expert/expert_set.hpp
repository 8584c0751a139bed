// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>

#include "moe/core/aligned.hpp"
#include "moe/core/visit.hpp"
#include "moe/expert/concept.hpp"
#include "moe/routing/plan_view.hpp"

namespace moe::inline MOE_ABI {

/// All experts of a layer over the rows that a plan gives them: the seam where quantised, cached or sharded experts
/// plug in. One of your own needs:
///   using Scalar = float;
///   moe::Index size() const, input_dim() const, output_dim() const;
///   void forward(tokens, const moe::PlanView& plan, const moe::Context& context, moe::RowBuffer<float>& rows) const;
/// forward writes rows [plan.first_row(), plan.last_row()) of `rows`, in plan order and unweighted, as combine alone
/// applies weights: rows.row(r) = expert(tokens[plan.token_of_row(r)]). The caller has sized rows to all rows of the
/// plan and row_width(). Immutable in use; working memory is in context.scratch. Experts that draw random numbers key
/// them by plan.first_expert() + e, as the experts of other sets draw under the same step.
/// Optional: `moe::Index row_width() const`, where a set writes whole registers; output_dim() else. A set whose calls
/// several processes make together says so (kIsCollective), and layers never call it unequally often. And for the
/// functions of moe/layer/structure.hpp (TakesExperts, Concatenates) a set whose expert i is expert ids[i] of this one,
/// and one with the experts of this one, then those of another, without which Concatenated stands in:
///   MySet take(std::span<const moe::Index> ids) const;
///   MySet concatenate(const MySet& other) const;
template <class X>
concept ExpertSet = requires(const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens, const PlanView& plan,
                             const Context& context, RowBuffer<typename X::Scalar>& rows) {
  { experts.size() } -> std::convertible_to<Index>;
  { experts.input_dim() } -> std::convertible_to<Index>;
  { experts.output_dim() } -> std::convertible_to<Index>;
  { experts.forward(tokens, plan, context, rows) } -> std::same_as<void>;
};

/// An expert set that can be trained through:
///   void forward(tokens, plan, context, rows, Tape& tape) const;
///   void backward(tokens, plan, context, Tape& tape, dout, X& gradient, moe::MatrixRef<Scalar> dtokens) const;
/// and `visit`. dout is as wide as rows, zero from output_dim on. backward accumulates into `gradient`, an object of
/// its own type, and overwrites dtokens [num_tokens, input_dim], the sum of what the rows of a token give. Optional:
/// backward without dtokens, which then need not be computed, and `void require_backward(plan, tape, gradient) const`,
/// which throws std::invalid_argument for a tape or gradient of another set, before anything is written.
template <class X>
concept DifferentiableExpertSet =
    ExpertSet<X> && HasParameters<X> && std::default_initializable<typename X::Tape> &&
    requires(const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens, const PlanView& plan,
             const Context& context, RowBuffer<typename X::Scalar>& rows, typename X::Tape& tape, X& gradient,
             MatrixRef<typename X::Scalar> dtokens) {
      experts.forward(tokens, plan, context, rows, tape);
      experts.backward(tokens, plan, context, tape, rows, gradient, dtokens);
    };

/// One that can leave out dL/dtokens.
template <class X>
concept SetSkipsTokenGradient =
    DifferentiableExpertSet<X> &&
    requires(const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens, const PlanView& plan,
             const Context& context, const RowBuffer<typename X::Scalar>& dout, typename X::Tape& tape,
             X& gradient) { experts.backward(tokens, plan, context, tape, dout, gradient); };

/// One whose backward takes NoGradient in place of its gradient and leaves that out: what Frozen asks for.
template <class X>
concept SetSkipsGradient =
    DifferentiableExpertSet<X> &&
    requires(const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens, const PlanView& plan,
             const Context& context, const RowBuffer<typename X::Scalar>& dout, typename X::Tape& tape,
             MatrixRef<typename X::Scalar> dtokens) {
      experts.backward(tokens, plan, context, tape, dout, NoGradient{}, dtokens);
    };

/// Columns of the rows of a set: what forward writes and backward reads.
template <ExpertSet X>
Index row_width(const X& experts) {
  if constexpr (requires { experts.row_width(); })
    return experts.row_width();
  else
    return experts.output_dim();
}

}  // namespace moe::inline MOE_ABI
