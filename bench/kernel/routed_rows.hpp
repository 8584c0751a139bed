// SPDX-License-Identifier: MIT
// Rows on their way to experts and back: what dispatch and combine work on.
#pragma once

#include <algorithm>
#include <limits>

#include "moe/gate/top_k.hpp"
#include "moe/kernel/combine.hpp"
#include "problem.hpp"

namespace bench {

struct RoutedRows {
  Matrix<float> tokens, out;
  moe::Routing<float> routing;
  moe::DispatchPlan plan;
  moe::RowBuffer<float> rows;

  RoutedRows(const Shape& shape, Pattern pattern, Index num_tokens)
      : tokens(routed_tokens(shape, pattern, num_tokens)), out(num_tokens, shape.model_dim) {
    moe::TopKGate{.k = shape.k}.route<float>(routing_logits(pattern, num_tokens, shape.num_experts), moe::Step{},
                                             routing);
    plan.build(routing, shape.num_experts);
    moe::kernel::dispatch<float>(tokens, plan, rows);
  }

  /// Throws std::runtime_error unless dispatch copied the rows, and combine adds up what scatter_add does: both sums of
  /// k products are within k epsilons / 2 of the largest value of a row, as the weights of a token add up to one; twice
  /// that for what is not first order.
  void verify() {
    for (Index r = 0; r < plan.num_rows(); ++r) {
      const Index token = plan.token_of_row()[static_cast<std::size_t>(r)];
      if (!std::equal(rows.row(r), rows.row(r) + rows.cols(), tokens.row(token).data()))
        moe::fail_environment("bench: dispatch: row ", r, " is not token ", token);
    }
    scatter_add();
    const Matrix<float> expected = out;
    out.setConstant(std::numeric_limits<float>::quiet_NaN());
    moe::kernel::combine(rows, plan, routing, out);
    const auto k = static_cast<float>(routing.num_assignments() / routing.num_tokens());
    const float tolerance = 2 * k * std::numeric_limits<float>::epsilon() * tokens.cwiseAbs().maxCoeff();
    if (!((out - expected).cwiseAbs().array() <= tolerance).all())
      moe::fail_environment("bench: combine differs from adding each expert's rows");
  }

  /// Bytes read and written. A row that several experts take is read from memory once at best, counted every time.
  double dispatch_bytes() const { return 2 * row_bytes(); }
  double combine_bytes() const { return row_bytes() + static_cast<double>(out.size()) * sizeof(float); }

  /// What combine replaces: expert by expert, each row added to its token.
  void scatter_add() {
    out.setZero();
    for (Index r = 0; r < plan.num_rows(); ++r) {
      const auto a = static_cast<std::size_t>(plan.assignment_of_row()[static_cast<std::size_t>(r)]);
      out.row(plan.token_of_row()[static_cast<std::size_t>(r)]) +=
          routing.weights()[a] * Eigen::Map<const Eigen::RowVectorXf>(rows.row(r), out.cols());
    }
  }

 private:
  double row_bytes() const { return static_cast<double>(plan.num_rows() * tokens.cols()) * sizeof(float); }
};

}  // namespace bench
