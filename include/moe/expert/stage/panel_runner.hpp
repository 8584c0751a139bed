// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/part_of_gradient.hpp"
#include "moe/expert/stage/backward_stages.hpp"
#include "moe/expert/stage/forward_stages.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/routing/plan_view.hpp"

namespace moe::inline MOE_ABI::detail {

/// Runs a pool of panel experts: stage i of all experts in one parallel loop, routed rows read in place.
template <PanelExpert E>
struct PanelRunner {
  using S = typename E::Scalar;
  struct Tape {
    StageTapeOf<E> stages;
    ViewRows of;            ///< the view that forward ran
    StageWidths<E> widths;  ///< of the experts that it ran
  };

  static kernel::RowGroups groups(const PlanView& plan) {
    return {plan.plan_offsets().data(), plan.num_experts(), plan.first_row(), plan.last_row()};
  }
  static kernel::RowSource<S> rows(const ConstMatrixRef<S>& tokens, const PlanView& plan) {
    return kernel::RowSource<S>::from(tokens, plan.plan().token_of_row().data());
  }
  template <class Pool>
  static auto expert_of(Pool& pool) {
    if constexpr (kIsNoGradient<Pool>)
      return NoGradient{};
    else
      return [&pool](Index e) -> decltype(auto) { return pool[e]; };
  }
  template <class Pool>
  static Index row_width(const Pool& pool) {
    return moe::row_width(pool[0]);
  }

  /// Throws std::invalid_argument unless the experts that have rows are of the pool's dimensions, and their stages fit
  /// together.
  template <class Pool>
  static StageWidths<E> require_experts(const Pool& pool, const PlanView& plan) {
    return require_stages<E>(groups(plan), pool.input_dim(), pool.output_dim(), expert_of(pool));
  }

  /// The rows of the plan and the experts that they go through.
  template <class Pool>
  static auto staged_rows(const Pool& pool, const ConstMatrixRef<S>& tokens, const PlanView& plan,
                          const StageWidths<E>& widths) {
    using ExpertOf = decltype(expert_of(pool));
    return StagedRows<E, ExpertOf>{groups(plan), rows(tokens, plan), expert_of(pool), widths};
  }

  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const PlanView& plan, const Context& context,
                      RowBuffer<S>& out) {
    forward_stages(staged_rows(pool, tokens, plan, require_experts(pool, plan)), memory(context), out);
  }
  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const PlanView& plan, const Context& context,
                      RowBuffer<S>& out, Tape& tape) {
    tape.widths = require_experts(pool, plan);
    tape.of = ViewRows(plan);
    forward_stages(staged_rows(pool, tokens, plan, tape.widths), memory(context), out, tape.stages);
  }
  template <class Pool, class Gradient>
  static void require_backward(const Pool& pool, const PlanView& plan, const Tape& tape, const Gradient& gradient) {
    tape.of.require("moe::ExpertPool::backward", plan);
    const StageWidths<E> widths = require_experts(pool, plan);
    require_backward_stages<E>(groups(plan), expert_of(pool), widths, tape.stages, expert_of(gradient));
    if (tape.widths != widths)
      fail("moe::ExpertPool::backward: the tape is of experts with other widths than those of the pool");
  }
  /// backward trusts what require_backward() has just looked at.
  template <class Pool, class Gradient>
  static void backward(const Pool& pool, const ConstMatrixRef<S>& tokens, const PlanView& plan, const Context& context,
                       Tape& tape, const RowBuffer<S>& dout, Gradient& gradient, MatrixRef<S> dtokens) {
    StageMemoryOf<E>& working = memory(context);
    backward_stages<E>(staged_rows(pool, tokens, plan, tape.widths), tape.stages, working, dout, expert_of(gradient));
    kernel::combine_unweighted(working.drows, plan, dtokens);
  }
  template <class Pool, class Gradient>
  static void backward(const Pool& pool, const ConstMatrixRef<S>& tokens, const PlanView& plan, const Context& context,
                       Tape& tape, const RowBuffer<S>& dout, Gradient& gradient) {
    backward_stages<E>(staged_rows(pool, tokens, plan, tape.widths), tape.stages, memory(context), dout,
                       expert_of(gradient), InputGradient::Skip);
  }

 private:
  static StageMemoryOf<E>& memory(const Context& context) { return context.scratch.get<StageMemoryOf<E>>(); }
};

}  // namespace moe::inline MOE_ABI::detail
