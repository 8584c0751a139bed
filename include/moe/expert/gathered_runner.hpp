// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/concept.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/kernel/dispatch.hpp"
#include "moe/routing/plan_view.hpp"

namespace moe::inline MOE_ABI::detail {

/// Runs a pool of arbitrary experts: rows gathered by expert, one expert per parallel task.
template <class E>
struct GatheredRunner {
  using S = typename E::Scalar;

  /// The rows that the experts read, and what a Step says of them.
  struct Inputs {
    RowBuffer<S> rows;  ///< those of the view from 0 on
    RowKeys keys;

    void gather(const ConstMatrixRef<S>& tokens, const PlanView& plan, const Step& step) {
      if (plan.num_rows() == plan.plan().num_rows())
        kernel::dispatch<S>(tokens, plan.plan(), rows);
      else
        kernel::gather<S>(
            tokens, plan.num_rows(), tokens.cols(), [&](Index r) { return plan.token_of_row(plan.first_row() + r); },
            rows);
      keys.build(step, plan);
    }
  };
  struct Tape {
    Inputs inputs;
    std::vector<TapeOf<E>> experts;
    ViewRows of;  ///< the view that forward ran
  };
  /// Working memory of backward.
  struct Gradients {
    RowBuffer<S> drows;  ///< as inputs.rows
  };

  template <class Pool>
  static Index row_width(const Pool& pool) {
    return pool.output_dim();
  }

  /// Calls body(e, context) in parallel for every expert that has rows; its draws are independent of the others'.
  template <class Body>
  static void for_each_expert(const Inputs& inputs, const PlanView& plan, const Context& context, const Body& body) {
    context.scratch.reserve_parts(plan.num_experts());
    parallel_for(plan.num_experts(), [&](Index e, Index) {
      if (plan.rows_of(e) == 0) return;
      const Step drawn = step_of_part(context.step, plan.first_expert() + e);
      const Step step = inputs.keys.of_rows(drawn, plan.offset(e), plan.offset(e + 1));
      body(e, Context{step, context.scratch.part(e)});
    });
  }
  /// The rows of an expert in a buffer of all rows of the plan, and in one of those of the view.
  static auto block(auto& rows, const PlanView& plan, Index e, Index cols) {
    return rows.matrix().block(plan.offset(e), 0, plan.rows_of(e), cols);
  }
  static auto own_block(auto& rows, const PlanView& plan, Index e, Index cols) {
    return rows.matrix().block(plan.offset(e) - plan.first_row(), 0, plan.rows_of(e), cols);
  }

  template <class Gradient>
  static decltype(auto) gradient_of(Gradient& gradient, Index e) {
    return part_of(gradient, [e](auto& pool) -> auto& { return pool[e]; });
  }

  /// Throws std::invalid_argument unless the experts that have rows are of the pool's dimensions.
  template <class Pool>
  static void require_experts(const Pool& pool, const PlanView& plan) {
    for (Index e = 0; e < pool.size(); ++e)
      if (plan.rows_of(e) > 0 && (pool[e].input_dim() != pool.input_dim() || pool[e].output_dim() != pool.output_dim()))
        fail("moe::ExpertPool: expert ", e, " maps ", pool[e].input_dim(), " to ", pool[e].output_dim(), ", expected ",
             pool.input_dim(), " to ", pool.output_dim(), " as expert 0");
  }

  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const PlanView& plan, const Context& context,
                      RowBuffer<S>& out) {
    require_experts(pool, plan);
    Inputs& inputs = context.scratch.get<Inputs>();
    inputs.gather(tokens, plan, context.step);
    for_each_expert(inputs, plan, context, [&](Index e, const Context& own) {
      pool[e].forward(own_block(inputs.rows, plan, e, pool.input_dim()), block(out, plan, e, pool.output_dim()), own);
    });
  }
  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const PlanView& plan, const Context& context,
                      RowBuffer<S>& out, Tape& tape)
    requires DifferentiableExpert<E>
  {
    require_experts(pool, plan);
    tape.inputs.gather(tokens, plan, context.step);
    tape.experts.resize(static_cast<std::size_t>(pool.size()));
    tape.of = ViewRows(plan);
    for_each_expert(tape.inputs, plan, context, [&](Index e, const Context& own) {
      pool[e].forward(own_block(tape.inputs.rows, plan, e, pool.input_dim()), block(out, plan, e, pool.output_dim()),
                      own, tape.experts[static_cast<std::size_t>(e)]);
    });
  }
  template <class Pool, class Gradient>
  static void require_backward(const Pool& pool, const PlanView& plan, const Tape& tape, const Gradient& gradient)
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_experts(pool, plan);
    if (static_cast<Index>(tape.experts.size()) != pool.size())
      fail(kFunction, ": the tape is of ", tape.experts.size(), " experts, expected ", pool.size());
    if (tape.inputs.rows.rows() != plan.num_rows() || tape.inputs.rows.cols() != pool.input_dim())
      fail(kFunction, ": the tape has rows [", tape.inputs.rows.rows(), ", ", tape.inputs.rows.cols(), "], expected [",
           plan.num_rows(), ", ", pool.input_dim(), "] as in the forward pass of these experts");
    tape.of.require(kFunction, plan);
    for (Index e = 0; e < pool.size(); ++e)
      if (plan.rows_of(e) > 0)  // no other has a tape of this batch
        require_backward_of(kFunction, "gradient", pool[e], plan.rows_of(e), tape.experts[static_cast<std::size_t>(e)],
                            gradient_of(gradient, e));
      else if constexpr (!kIsNoGradient<Gradient>)
        require_gradient_of(kFunction, "gradient", pool[e], gradient[e]);
  }
  template <class Pool, class Gradient>
  static void backward(const Pool& pool, const ConstMatrixRef<S>&, const PlanView& plan, const Context& context,
                       Tape& tape, const RowBuffer<S>& dout, Gradient& gradient, MatrixRef<S> dtokens)
    requires DifferentiableExpert<E>
  {
    RowBuffer<S>& drows = context.scratch.get<Gradients>().drows;
    drows.resize(plan.num_rows(), pool.input_dim());
    for_each_expert(tape.inputs, plan, context, [&](Index e, const Context& own) {
      pool[e].backward(own_block(tape.inputs.rows, plan, e, pool.input_dim()),
                       tape.experts[static_cast<std::size_t>(e)], block(dout, plan, e, pool.output_dim()),
                       own_block(drows, plan, e, pool.input_dim()), gradient_of(gradient, e), own);
    });
    kernel::combine_unweighted(drows, plan, dtokens);
  }
  template <class Pool, class Gradient>
  static void backward(const Pool& pool, const ConstMatrixRef<S>&, const PlanView& plan, const Context& context,
                       Tape& tape, const RowBuffer<S>& dout, Gradient& gradient)
    requires SkipsRowGradient<E>
  {
    for_each_expert(tape.inputs, plan, context, [&](Index e, const Context& own) {
      pool[e].backward(own_block(tape.inputs.rows, plan, e, pool.input_dim()),
                       tape.experts[static_cast<std::size_t>(e)], block(dout, plan, e, pool.output_dim()),
                       gradient_of(gradient, e), own);
    });
  }
};

}  // namespace moe::inline MOE_ABI::detail
