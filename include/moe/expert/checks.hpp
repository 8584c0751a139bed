// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/aligned.hpp"
#include "moe/core/overlap.hpp"
#include "moe/expert/expert_set.hpp"

// What experts that are made of others, and sets of them, ask of the arguments of their calls. All throw
// std::invalid_argument.
namespace moe::inline MOE_ABI::detail {

/// Of backward of an expert.
template <class E, class Rows, class Dout, class Drows>
void require_backward_rows(const char* function, const E& expert, const Rows& rows, const Dout& dout,
                           const Drows& drows) {
  require_shape(function, "rows", rows, rows.rows(), expert.input_dim());
  require_shape(function, "dout", dout, rows.rows(), expert.output_dim());
  require_shape(function, "drows", drows, rows.rows(), expert.input_dim());
}

template <class X>
void require_plan_of(const char* function, const X& experts, const PlanView& plan) {
  if (experts.size() == 0) fail(function, ": there are no experts: they have been moved from");
  if (plan.num_experts() != experts.size())
    fail(function, ": the plan is of ", plan.num_experts(), " experts, expected ", experts.size());
}

/// `rows` are those of the whole plan, read or written.
template <class X>
void require_plan_rows(const char* function, const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens,
                       const PlanView& plan, const char* name, const RowBuffer<typename X::Scalar>& rows) {
  require_shape(function, "tokens", tokens, plan.num_tokens(), experts.input_dim());
  if (rows.rows() < plan.last_row() || rows.cols() < experts.row_width())
    fail(function, ": ", name, " is [", rows.rows(), ", ", rows.cols(), "], expected at least [", plan.last_row(), ", ",
         experts.row_width(), "]");
}

/// What backward of a set writes.
template <class X>
void require_dtokens(const char* function, const X& experts, const ConstMatrixRef<typename X::Scalar>& tokens,
                     const PlanView& plan, const RowBuffer<typename X::Scalar>& dout,
                     const MatrixRef<typename X::Scalar>& dtokens) {
  require_shape(function, "dtokens", dtokens, plan.num_tokens(), experts.input_dim());
  require_apart(function, "dtokens", dtokens, "tokens", tokens);
  require_apart(function, "dtokens", dtokens, "dout", dout.matrix());
}

}  // namespace moe::inline MOE_ABI::detail
