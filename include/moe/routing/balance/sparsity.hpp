// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/routing/balance/token_sum.hpp"
#include "moe/routing/gradient.hpp"

namespace moe::inline MOE_ABI {

/// Activation loss: mean over valid tokens and experts of their scores, the L1 norm of what ReluGate weighs with. It
/// pulls scores to zero, where experts stop being chosen. 0 without valid tokens.
///   probability  [num_tokens, num_experts], >= 0
/// Returns the loss before `weight`; adds weight * dL/dp = weight / (B num_experts) to gradient.probability (0 at
/// p = 0). Throws std::invalid_argument on shapes that differ.
/// O(num_tokens * num_experts), in parallel, the same bits for any number of threads; allocates partial sums.
/// Wang, Zhu & Chen, "ReMoE" (arXiv:2412.14711), whose penalty is num_experts times this.
template <class S>
double activation_loss(const MatrixView<S>& probability, const Step& step, double weight,
                       RoutingGradient<S>& gradient) {
  constexpr const char* kName = "moe::activation_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  step.validate(kName, num_tokens);
  auto& dprobability =
      detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);
  const double count = static_cast<double>(step.num_valid(num_tokens)) * static_cast<double>(num_experts);
  if (count == 0) return 0;

  const auto slope = static_cast<S>(weight / count);
  const auto sum = detail::sum_over_tokens(num_tokens, 1, step, [&](Index t, double* scores) {
    for (Index e = 0; e < num_experts; ++e) {
      *scores += static_cast<double>(probability(t, e));
      if (probability(t, e) > S{0}) dprobability(t, e) += slope;
    }
  });
  return sum[0] / count;
}

/// The coefficient of the next update for a penalty that drives sparsity to a target, as the weight of
/// activation_loss():
///   coefficient * factor^sign(target - sparsity)
/// so that it grows while too many experts are active, shrinks while too few are, and stays at the target.
///   sparsity  share of (token, expert) pairs that are not active, over the batch and all layers:
///             1 - mean_active_experts(routing, step) / num_experts
///   target    1 - k / num_experts for k experts per token on average
///   factor    of ReMoE: 1.2, and 1e-8 the first coefficient
/// Throws std::invalid_argument unless sparsity and target are in [0, 1], the coefficient is > 0 and the factor > 1,
/// both finite. The result is kept between the least normal number and the largest: it never gets stuck. O(1).
/// Wang, Zhu & Chen, "ReMoE" (arXiv:2412.14711).
[[nodiscard]] inline double update_sparsity_coefficient(double coefficient, double sparsity, double target,
                                                        double factor = 1.2) {
  constexpr const char* kName = "moe::update_sparsity_coefficient";
  if (!(coefficient > 0 && std::isfinite(coefficient)))
    fail(kName, ": coefficient is ", coefficient, ", expected a finite number > 0");
  if (!(sparsity >= 0 && sparsity <= 1)) fail(kName, ": sparsity is ", sparsity, ", expected a value in [0, 1]");
  if (!(target >= 0 && target <= 1)) fail(kName, ": target is ", target, ", expected a value in [0, 1]");
  if (!(factor > 1 && std::isfinite(factor))) fail(kName, ": factor is ", factor, ", expected a finite number > 1");
  using Limits = std::numeric_limits<double>;
  const double next = sparsity == target  ? coefficient
                      : sparsity < target ? coefficient * factor
                                          : coefficient / factor;
  return std::clamp(next, Limits::min(), Limits::max());
}

}  // namespace moe::inline MOE_ABI
