// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/backward_stages.hpp"
#include "moe/expert/forward_stages.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI::detail {

/// Runs a pool of panel experts: stage i of all experts in one parallel loop, routed rows read in place.
template <PanelExpert E>
struct PanelRunner {
  using S = typename E::Scalar;
  using Tape = StageTapeOf<E>;

  static kernel::RowGroups groups(const DispatchPlan& plan) { return {plan.offsets().data(), plan.num_experts()}; }
  static kernel::RowSource<S> rows(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan) {
    return kernel::RowSource<S>::from(tokens, plan.token_of_row().data());
  }
  template <class Pool>
  static auto expert_of(Pool& pool) {
    return [&pool](Index e) -> auto& { return pool[e]; };
  }

  /// Throws std::invalid_argument unless all experts are of the pool's dimensions, and their stages fit together.
  template <class Pool>
  static void require_experts(const Pool& pool) {
    require_stages<E>(pool.size(), pool.input_dim(), pool.output_dim(), expert_of(pool));
  }

  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                      RowBuffer<S>& expert_out, Scratch& scratch) {
    forward_stages<Keep::Nothing, E>(groups(plan), rows(tokens, plan), expert_of(pool), scratch.get<Tape>(),
                                     expert_out);
  }
  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                      RowBuffer<S>& expert_out, Tape& tape) {
    forward_stages<Keep::PreActivations, E>(groups(plan), rows(tokens, plan), expert_of(pool), tape, expert_out);
  }
  template <class Pool>
  static Index backward_width(const Pool& pool, const DispatchPlan& plan) {
    return moe::backward_width<E>(groups(plan), expert_of(pool));
  }
  template <class Pool>
  static void require_backward(const Pool& pool, const DispatchPlan& plan, const Tape& tape, const Pool& gradient) {
    require_backward_stages<E>(groups(plan), expert_of(pool), tape, expert_of(gradient));
  }
  template <class Pool>
  static void backward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                       Tape& tape, const RowBuffer<S>& dout, Pool& gradient, RowBuffer<S>& dtoken_rows) {
    backward_stages<E>(groups(plan), rows(tokens, plan), expert_of(pool), tape, dout, expert_of(gradient), dtoken_rows);
  }
  template <class Pool>
  static void backward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                       Tape& tape, const RowBuffer<S>& dout, Pool& gradient) {
    backward_stages<E>(groups(plan), rows(tokens, plan), expert_of(pool), tape, dout, expert_of(gradient));
  }
};

}  // namespace moe::inline MOE_ABI::detail
