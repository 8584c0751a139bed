// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/core/overlap.hpp"
#include "moe/numeric/top_k.hpp"
#include "moe/routing/balance/token_sum.hpp"

namespace moe::inline MOE_ABI {

/// When sinkhorn() stops.
struct SinkhornOptions {
  double tolerance = 1e-4;     ///< of the mean change of a column's scale in one iteration; >= 0
  Index max_iterations = 200;  ///< >= 1
  double temperature = 1;      ///< that logits are divided by; > 0. Lower ones come nearer to a hard plan

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate() const {
    if (!(tolerance >= 0)) fail("moe::sinkhorn: tolerance is ", tolerance, ", expected at least 0");
    if (max_iterations < 1) fail("moe::sinkhorn: max_iterations is ", max_iterations, ", expected at least 1");
    if (!(temperature > 0 && std::isfinite(temperature)))
      fail("moe::sinkhorn: temperature is ", temperature, ", expected a finite value above 0");
  }
  friend bool operator==(const SinkhornOptions&, const SinkhornOptions&) = default;
};

/// How sinkhorn() ended.
struct SinkhornReport {
  Index iterations = 0;
  double change = 0;  ///< mean change of a column's scale in the last iteration
  bool converged = false;
};

namespace detail {

/// Added to the sums that scales are divided by, so that an expert that no token can reach has a finite scale. The sums
/// are of the order of 1 and more, as the largest entry of every row is 1.
inline constexpr double kSinkhornEpsilon = 1e-8;

/// exp((logit - largest of the token) / temperature), so that no logit overflows; 0 for masked experts. Rows of padding
/// are left as they are.
template <class S>
void sinkhorn_kernel(const ConstMatrixRef<S>& logits, const Step& step, double temperature, RowBuffer<double>& kernel) {
  kernel.resize(logits.rows(), logits.cols());
  for_each_valid(logits.rows(), step, [&](Index t) {
    const S* z = logits.data() + t * logits.outerStride();
    const auto most = static_cast<double>(*std::max_element(z, z + logits.cols()));
    const bool masked = most == -std::numeric_limits<double>::infinity();
    for (Index e = 0; e < logits.cols(); ++e)
      kernel.row(t)[e] = masked ? 0.0 : std::exp((static_cast<double>(z[e]) - most) / temperature);
  });
}

template <class S>
void require_sinkhorn_logits(const ConstMatrixRef<S>& logits, const Step& step) {
  step.validate("moe::sinkhorn", logits.rows());
  for (Index t = 0; t < logits.rows(); ++t) {
    if (!step.is_valid(t)) continue;
    const S* z = logits.data() + t * logits.outerStride();
    const Index e = first_not_below_infinity(z, logits.cols());
    if (e < logits.cols())
      fail("moe::sinkhorn: logit of token ", t, " for expert ", e, " is ", z[e],
           ", expected a finite number, or -infinity as a mask");
  }
}

}  // namespace detail

/// Working memory of sinkhorn(), which grows and never shrinks. One per thread.
struct SinkhornWorkspace {
  RowBuffer<double> kernel, partial;  ///< the logits' exponentials, [num_tokens, num_experts]; sums of blocks of tokens
  std::vector<double> row, column, sum;
};

namespace detail {

/// The turns of sinkhorn() on workspace.kernel, which leave the scales of rows and columns there.
inline SinkhornReport sinkhorn_scales(const Step& step, const SinkhornOptions& options, SinkhornWorkspace& workspace) {
  auto& [kernel, partial, row, column, sum] = workspace;
  const Index num_tokens = kernel.rows(), num_experts = kernel.cols(), stride = kernel.stride();
  const auto num_valid = static_cast<double>(step.num_valid(num_tokens));
  column.assign(static_cast<std::size_t>(num_experts), 1);
  row.resize(static_cast<std::size_t>(num_tokens));
  const double *const k_of_all = kernel.row(0), *const column_scale = column.data();
  double* const row_scale = row.data();
  SinkhornReport report;
  while (report.iterations < options.max_iterations && !report.converged) {
    sum.assign(static_cast<std::size_t>(num_experts), 0);
    add_over_tokens(num_tokens, step, sum, partial, [=](Index t, double* sums) {
      const double* k = k_of_all + t * stride;
      double total = kSinkhornEpsilon;
      for (Index e = 0; e < num_experts; ++e) total += k[e] * column_scale[e];
      const double scale = 1 / (num_valid * total);
      row_scale[t] = scale;
      for (Index e = 0; e < num_experts; ++e) sums[e] += scale * k[e];
    });
    report.change = 0;
    for (std::size_t e = 0; e < sum.size(); ++e) {
      const double scale = 1 / (static_cast<double>(num_experts) * (sum[e] + kSinkhornEpsilon));
      report.change += std::abs(scale - column[e]) / static_cast<double>(num_experts);
      column[e] = scale;
    }
    ++report.iterations;
    report.converged = report.change < options.tolerance;
  }
  return report;
}

}  // namespace detail

/// Balanced assignment of tokens to experts, softened by entropy: plan_te = r_t exp(z_te) c_e, with every expert's
/// column summing to 1 / num_experts and every valid token's row to 1 / (number of valid tokens), by turns from c = 1
/// on:
///   r_t = 1 / T / (sum_e exp(z_te) c_e + 1e-8),   c_e = 1 / E / (sum_t r_t exp(z_te) + 1e-8)
/// until the mean |change of c_e| is below the tolerance. Columns are met exactly, rows nearly. Choose the experts of a
/// token by its row of the plan and weigh them by a score of its logits (S-BASE, Megatron-LM): no gradient passes here.
///   logits  [num_tokens, num_experts]; those of a token that lie 745 temperatures below its largest count as
///           -infinity, a mask. Adding a number to all logits of a token changes nothing.
///   plan    [num_tokens, num_experts], overwritten (resized); padding gets zeros
/// The sums are of exp(z - largest z of the token): no logit is too large. Masks may leave no plan with these sums; the
/// turns then end at max_iterations, with finite numbers. Divide logits by a temperature to come nearer to a hard plan.
/// Throws std::invalid_argument for options out of range and for a NaN or +infinity in the logits of a valid token.
/// O(iterations * num_tokens * num_experts), in parallel, the same bits for any number of threads; no allocation when
/// workspace and plan have seen sizes as large before.
/// Clark et al., "Unified scaling laws for routed language models" (arXiv:2202.01169); Cuturi (arXiv:1306.0895).
template <class S>
SinkhornReport sinkhorn(const MatrixView<S>& logits, const Step& step, const SinkhornOptions& options,
                        SinkhornWorkspace& workspace, RowBuffer<S>& plan) {
  options.validate();
  detail::require_apart("moe::sinkhorn", "plan", plan.matrix(), "logits", logits);
  detail::require_sinkhorn_logits<S>(logits, step);
  plan.resize(logits.rows(), logits.cols());
  plan.matrix().setZero();
  if (step.num_valid(logits.rows()) == 0 || logits.cols() == 0) return {0, 0, true};
  detail::sinkhorn_kernel<S>(logits, step, options.temperature, workspace.kernel);
  const SinkhornReport report = detail::sinkhorn_scales(step, options, workspace);
  detail::for_each_valid(logits.rows(), step, [&](Index t) {
    const double scale = workspace.row[static_cast<std::size_t>(t)];
    for (Index e = 0; e < plan.cols(); ++e)
      plan.row(t)[e] =
          static_cast<S>(scale * workspace.kernel.row(t)[e] * workspace.column[static_cast<std::size_t>(e)]);
  });
  return report;
}
/// The same with memory of its own: allocates a copy of the logits in double, and one of the plan.
template <class S>
SinkhornReport sinkhorn(const MatrixView<S>& logits, const Step& step, const SinkhornOptions& options,
                        Matrix<S>& plan) {
  detail::require_apart("moe::sinkhorn", "plan", plan, "logits", logits);
  SinkhornWorkspace workspace;
  RowBuffer<S> rows;
  const SinkhornReport report = sinkhorn<S>(logits, step, options, workspace, rows);
  plan = rows.matrix();
  return report;
}

}  // namespace moe::inline MOE_ABI
