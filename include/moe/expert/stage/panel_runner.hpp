// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/stage/backward_stages.hpp"
#include "moe/expert/stage/forward_stages.hpp"
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

  /// Throws std::invalid_argument unless the experts that have rows are of the pool's dimensions, and their stages fit
  /// together.
  template <class Pool>
  static StageWidths<E> require_experts(const Pool& pool, const DispatchPlan& plan) {
    return require_stages<E>(groups(plan), pool.input_dim(), pool.output_dim(), expert_of(pool));
  }

  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                      RowBuffer<S>& expert_out, Scratch& scratch) {
    const StageWidths<E> widths = require_experts(pool, plan);
    forward_stages<Keep::Nothing, E>(groups(plan), rows(tokens, plan), expert_of(pool), widths, scratch.get<Tape>(),
                                     expert_out);
  }
  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                      RowBuffer<S>& expert_out, Tape& tape) {
    const StageWidths<E> widths = require_experts(pool, plan);
    forward_stages<Keep::PreActivations, E>(groups(plan), rows(tokens, plan), expert_of(pool), widths, tape,
                                            expert_out);
  }
  template <class Pool>
  static Index backward_width(const Pool& pool) {
    return moe::backward_width(pool[0]);
  }
  /// Returns backward_width(), which it has found on the way.
  template <class Pool>
  static Index require_backward(const Pool& pool, const DispatchPlan& plan, const Tape& tape, const Pool& gradient) {
    const StageWidths<E> widths = require_experts(pool, plan);
    require_backward_stages<E>(groups(plan), expert_of(pool), widths, tape, expert_of(gradient));
    return widths.template out<kNumStages<E> - 1>();
  }
  template <class Pool>
  static void backward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                       Tape& tape, const RowBuffer<S>& dout, Pool& gradient, RowBuffer<S>& dtoken_rows) {
    backward_stages<E>(groups(plan), rows(tokens, plan), expert_of(pool), require_experts(pool, plan), tape, dout,
                       expert_of(gradient), dtoken_rows);
  }
  template <class Pool>
  static void backward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step&,
                       Tape& tape, const RowBuffer<S>& dout, Pool& gradient) {
    backward_stages<E>(groups(plan), rows(tokens, plan), expert_of(pool), require_experts(pool, plan), tape, dout,
                       expert_of(gradient));
  }
};

}  // namespace moe::inline MOE_ABI::detail
