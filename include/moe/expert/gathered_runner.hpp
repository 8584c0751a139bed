// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/core/same_parameters.hpp"
#include "moe/expert/concept.hpp"
#include "moe/kernel/dispatch.hpp"

namespace moe::inline MOE_ABI::detail {

/// Runs a pool of arbitrary experts: rows gathered by expert, one expert per parallel task.
template <Expert E>
struct GatheredRunner {
  using S = typename E::Scalar;

  /// Gathered rows, and a Step that speaks of them.
  struct Inputs {
    RowBuffer<S> rows;
    std::vector<std::int64_t> token_id, group_id;

    void gather(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step& step) {
      kernel::dispatch<S>(tokens, plan, rows);
      token_id.clear();
      group_id.clear();
      for (const Index token : plan.token_of_row()) {
        token_id.push_back(step.id(token));
        group_id.push_back(step.group(token));
      }
    }
    /// The step of expert e: its own rows, and draws that are independent of the other experts'.
    Step step_of(Index e, const DispatchPlan& plan, const Step& step) const {
      Step own = step_of_part(step, e);
      own.valid = {};
      const auto begin = static_cast<std::size_t>(plan.offset(e)), size = static_cast<std::size_t>(plan.rows_of(e));
      own.token_id = std::span(token_id).subspan(begin, size);
      own.group_id = std::span(group_id).subspan(begin, size);
      return own;
    }
  };
  struct Tape {
    Inputs inputs;
    std::vector<ExpertTape<E>> experts;
    Scratch scratch;
  };

  /// Calls body(e, context) in parallel for every expert that has rows.
  template <class Body>
  static void for_each_expert(const Inputs& inputs, const DispatchPlan& plan, const Step& step, Scratch& scratch,
                              const Body& body) {
    scratch.reserve_parts(plan.num_experts());
    parallel_for(plan.num_experts(), [&](Index e, Index) {
      if (plan.rows_of(e) == 0) return;
      const Step own = inputs.step_of(e, plan, step);
      Context context{own, scratch.part(e)};
      body(e, context);
    });
  }
  template <class Buffer>
  static auto block(Buffer& rows, const DispatchPlan& plan, Index e, Index cols) {
    return rows.matrix().block(plan.offset(e), 0, plan.rows_of(e), cols);
  }

  /// Throws std::invalid_argument unless the experts that have rows are of the pool's dimensions.
  template <class Pool>
  static void require_experts(const Pool& pool, const DispatchPlan& plan) {
    for (Index e = 0; e < pool.size(); ++e)
      if (plan.rows_of(e) > 0 && (pool[e].input_dim() != pool.input_dim() || pool[e].output_dim() != pool.output_dim()))
        fail("moe::ExpertPool: expert ", e, " maps ", pool[e].input_dim(), " to ", pool[e].output_dim(), ", expected ",
             pool.input_dim(), " to ", pool.output_dim(), " as expert 0");
  }

  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step& step,
                      RowBuffer<S>& expert_out, Scratch& scratch) {
    require_experts(pool, plan);
    Inputs& inputs = scratch.get<Inputs>();
    inputs.gather(tokens, plan, step);
    expert_out.resize(plan.num_rows(), pool.output_dim());
    for_each_expert(inputs, plan, step, scratch, [&](Index e, Context& context) {
      pool[e].forward(block(inputs.rows, plan, e, pool.input_dim()), block(expert_out, plan, e, pool.output_dim()),
                      context);
    });
  }
  template <class Pool>
  static void forward(const Pool& pool, const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Step& step,
                      RowBuffer<S>& expert_out, Tape& tape)
    requires DifferentiableExpert<E>
  {
    require_experts(pool, plan);
    tape.inputs.gather(tokens, plan, step);
    tape.experts.resize(static_cast<std::size_t>(pool.size()));
    expert_out.resize(plan.num_rows(), pool.output_dim());
    for_each_expert(tape.inputs, plan, step, tape.scratch, [&](Index e, Context& context) {
      pool[e].forward(block(tape.inputs.rows, plan, e, pool.input_dim()), block(expert_out, plan, e, pool.output_dim()),
                      context, tape.experts[static_cast<std::size_t>(e)].tape);
    });
  }
  template <class Pool>
  static Index backward_width(const Pool& pool) {
    return pool.output_dim();
  }
  /// Returns backward_width().
  template <class Pool>
  static Index require_backward(const Pool& pool, const DispatchPlan& plan, const Tape& tape, const Pool& gradient)
    requires DifferentiableExpert<E>
  {
    constexpr const char* kFunction = "moe::ExpertPool::backward";
    require_experts(pool, plan);
    if (static_cast<Index>(tape.experts.size()) != pool.size())
      fail(kFunction, ": the tape is of ", tape.experts.size(), " experts, expected ", pool.size());
    if (tape.inputs.rows.rows() != plan.num_rows() || tape.inputs.rows.cols() != pool.input_dim())
      fail(kFunction, ": the tape has rows [", tape.inputs.rows.rows(), ", ", tape.inputs.rows.cols(), "], expected [",
           plan.num_rows(), ", ", pool.input_dim(), "] as in the forward pass of these experts");
    for (Index e = 0; e < pool.size(); ++e)
      if (plan.rows_of(e) > 0)  // no other has a tape of this batch
        require_backward_of(kFunction, "gradient", pool[e], plan.rows_of(e),
                            tape.experts[static_cast<std::size_t>(e)].tape, gradient[e]);
      else
        require_gradient_of(kFunction, "gradient", pool[e], gradient[e]);
    return pool.output_dim();
  }
  template <class Pool>
  static void backward(const Pool& pool, const ConstMatrixRef<S>&, const DispatchPlan& plan, const Step& step,
                       Tape& tape, const RowBuffer<S>& dout, Pool& gradient, RowBuffer<S>& dtoken_rows)
    requires DifferentiableExpert<E>
  {
    dtoken_rows.resize(plan.num_rows(), pool.input_dim());
    for_each_expert(tape.inputs, plan, step, tape.scratch, [&](Index e, Context& context) {
      pool[e].backward(block(tape.inputs.rows, plan, e, pool.input_dim()),
                       tape.experts[static_cast<std::size_t>(e)].tape, block(dout, plan, e, pool.output_dim()),
                       block(dtoken_rows, plan, e, pool.input_dim()), gradient[e], context);
    });
  }
  template <class Pool>
  static void backward(const Pool& pool, const ConstMatrixRef<S>&, const DispatchPlan& plan, const Step& step,
                       Tape& tape, const RowBuffer<S>& dout, Pool& gradient)
    requires SkipsRowGradient<E>
  {
    for_each_expert(tape.inputs, plan, step, tape.scratch, [&](Index e, Context& context) {
      pool[e].backward(block(tape.inputs.rows, plan, e, pool.input_dim()),
                       tape.experts[static_cast<std::size_t>(e)].tape, block(dout, plan, e, pool.output_dim()),
                       gradient[e], context);
    });
  }
};

}  // namespace moe::inline MOE_ABI::detail
