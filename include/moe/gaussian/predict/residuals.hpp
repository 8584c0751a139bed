// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/gaussian/predict/predict.hpp"

namespace moe::inline MOE_ABI {

/// Quantile residuals z_i = Phi^-1(P(Y <= y_i | x_i)) of rows (x [n, d], or RegressionData with their offsets) with y
/// [n]: standard normal if the model is right, whatever the mixture. The smaller tail is used, as the other one is 1 to
/// rounding far out; |z| ends at 37. O(n k). Dunn & Smyth, "Randomized quantile residuals", J. Comput. Graph. Statist.
/// 1996.
template <class G>
Eigen::VectorXd quantile_residuals(const GaussianMoe<G>& model, const InputRows& rows,
                                   const Eigen::Ref<const Eigen::VectorXd>& y) {
  detail::require_shape("moe::quantile_residuals", "y", y, rows.num_rows(), 1);
  Eigen::VectorXd residuals(rows.num_rows());
  detail::for_each_conditional("moe::quantile_residuals", model, rows, [&](Index i, const NormalMixture& at) {
    const double below = at.cdf(y(i)), above = at.survival(y(i)), tail = std::max(std::min(below, above), 1e-300);
    const double z = detail::normal_quantile(std::min(tail, 0.5));
    residuals(i) = below < above ? z : -z;
  });
  return residuals;
}

}  // namespace moe::inline MOE_ABI
