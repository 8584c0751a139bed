// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "moe/kernel/combine.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// What the weight of a choice multiplies: the output of the expert, out = sum_e w_e f_e(x), or its input,
/// out = sum_e f_e(w_e x), through which the router learns via the expert (Llama 4).
enum class WeightOn { Output, Input };

namespace detail {

/// The rows w x of a routing in plan order, as tokens of their own: a plan over them, and a step that speaks of them.
/// Working memory; one per thread.
template <class S>
class WeightedRows {
 public:
  const WeightedRows& build(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const Routing<S>& routing,
                            const Step& step) {
    rows_.resize(plan.num_rows(), tokens.cols());
    token_id_.clear();
    group_id_.clear();
    routing_.resize(plan.num_rows(), 1);
    for (Index e = 0; e < plan.num_experts(); ++e)
      std::fill_n(routing_.experts().begin() + plan.offset(e), plan.rows_of(e), e);
    for (const Index token : plan.token_of_row()) {
      token_id_.push_back(step.id(token));
      group_id_.push_back(step.group(token));
    }
    plan_.build(routing_, plan.num_experts());  // row r reads row r
    parallel_ranges(plan.num_rows(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r) {
        const auto row = static_cast<std::size_t>(r);
        const S weight = routing.weights()[static_cast<std::size_t>(plan.assignment_of_row()[row])];
        const S* token = tokens.data() + plan.token_of_row()[row] * tokens.outerStride();
        std::transform(token, token + tokens.cols(), rows_.row(r), [&](S x) { return weight * x; });
      }
    });
    return *this;
  }

  const RowBuffer<S>& rows() const { return rows_; }
  const DispatchPlan& plan() const { return plan_; }
  Step step(const Step& step) const {
    Step own = step;
    own.valid = {};  // padding has no rows
    own.token_id = token_id_;
    own.group_id = group_id_;
    return own;
  }

 private:
  RowBuffer<S> rows_;
  Routing<S> routing_;
  DispatchPlan plan_;
  std::vector<std::int64_t> token_id_, group_id_;
};

/// rows[r] = matrix[token of row r], zero from its last column to `width`.
template <class S>
void gather_padded(const ConstMatrixRef<S>& matrix, const DispatchPlan& plan, Index width, RowBuffer<S>& rows) {
  rows.resize(plan.num_rows(), width);
  parallel_ranges(plan.num_rows(), kernel::kRowsPerTask, [&](Index begin, Index end, Index) {
    for (Index r = begin; r < end; ++r) {
      const Index token = plan.token_of_row()[static_cast<std::size_t>(r)];
      std::copy_n(matrix.data() + token * matrix.outerStride(), matrix.cols(), rows.row(r));
      std::fill(rows.row(r) + matrix.cols(), rows.row(r) + width, S{0});
    }
  });
}

/// dweight[a] = <drows[row of a], tokens[t]>, 0 where dropped: the gradient of the weights of rows w x.
template <class S>
void input_weight_gradient(const ConstMatrixRef<S>& tokens, const DispatchPlan& plan, const RowBuffer<S>& drows,
                           std::vector<S>& dweight) {
  std::fill(dweight.begin(), dweight.end(), S{0});
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

}  // namespace detail

}  // namespace moe::inline MOE_ABI
