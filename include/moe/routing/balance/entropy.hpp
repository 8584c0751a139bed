// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/core/simd.hpp"
#include "moe/routing/balance/token_sum.hpp"
#include "moe/routing/gradient.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// -sum p log p in nats; terms with p <= 0 count as 0.
template <class S>
double entropy(const S* p, Index n) {
  double sum = 0;
  for (Index i = 0; i < n; ++i)
    if (p[i] > 0) sum = simd::fma(-static_cast<double>(p[i]), std::log(static_cast<double>(p[i])), sum);
  return sum;
}

/// dp[e] += scale * slope(e) where p > 0. Slopes of entropies are infinite at p = 0, but softmax multiplies them by p:
/// their share is 0.
template <class S, class Slope>
void add_where_positive(const S* p, Index n, double scale, Slope&& slope, S* dp) {
  for (Index e = 0; e < n; ++e)
    if (p[e] > 0) dp[e] = static_cast<S>(simd::fma(scale, slope(e), static_cast<double>(dp[e])));
}

}  // namespace detail

/// Entropy loss: mean over valid tokens of H(p) = -sum_e p_e log p_e, in nats. Minimised it makes routers decide
/// (dynamic top-p routing); with a negative weight it keeps them open. 0 without valid tokens.
///   probability  [num_tokens, num_experts], >= 0
/// Returns the loss before `weight`; adds weight * dL/dp = -weight / B * (log p + 1) to gradient.probability (0 at
/// p = 0).
/// Throws std::invalid_argument on shapes that differ.
/// O(num_tokens * num_experts), in parallel, the same bits for any number of threads; allocates partial sums.
/// Huang et al., "Harder Tasks Need More Experts" (arXiv:2403.07652).
template <class S>
double entropy_loss(const MatrixView<S>& probability, const Step& step, double weight, RoutingGradient<S>& gradient) {
  constexpr const char* kName = "moe::entropy_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  step.validate(kName, num_tokens);
  auto& dprobability =
      detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);
  const auto num_valid = static_cast<double>(step.num_valid(num_tokens));
  if (num_valid == 0) return 0;

  const auto sum = detail::sum_over_tokens(num_tokens, 1, step, [&](Index t, double* entropies) {
    const S* p = probability.row(t).data();
    *entropies += detail::entropy(p, num_experts);
    const auto slope = [&](Index e) { return -std::log(static_cast<double>(p[e])) - 1; };
    detail::add_where_positive(p, num_experts, weight / num_valid, slope, dprobability.row(t).data());
  });
  return sum[0] / num_valid;
}

/// Mutual information loss: L = -(H(P) - mean over valid tokens of H(p)), P the mean probability: minus the information
/// that tokens carry about experts. Between -log(num_experts), decided and balanced, and 0. 0 without valid tokens.
///   probability  [num_tokens, num_experts], >= 0
/// Returns the loss before `weight`; adds weight * dL/dp = weight / B * (log P - log p) to gradient.probability, 0 at
/// p = 0. Throws std::invalid_argument on shapes that differ.
/// O(num_tokens * num_experts), in parallel, the same bits for any number of threads; allocates partial sums.
/// Chen et al., "Mod-Squad" (arXiv:2212.08066).
template <class S>
double mutual_information_loss(const MatrixView<S>& probability, const Step& step, double weight,
                               RoutingGradient<S>& gradient) {
  constexpr const char* kName = "moe::mutual_information_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  step.validate(kName, num_tokens);
  auto& dprobability =
      detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);
  const auto num_valid = static_cast<double>(step.num_valid(num_tokens));
  if (num_valid == 0) return 0;

  auto mean = detail::sum_over_tokens(num_tokens, num_experts, step, [&](Index t, double* sum) {
    for (Index e = 0; e < num_experts; ++e) sum[e] += static_cast<double>(probability(t, e));
  });
  for (double& p : mean) p /= num_valid;
  const auto sum = detail::sum_over_tokens(num_tokens, 1, step, [&](Index t, double* entropies) {
    const S* p = probability.row(t).data();
    *entropies += detail::entropy(p, num_experts);
    const auto slope = [&](Index e) { return std::log(mean[static_cast<std::size_t>(e)] / static_cast<double>(p[e])); };
    detail::add_where_positive(p, num_experts, weight / num_valid, slope, dprobability.row(t).data());
  });
  return sum[0] / num_valid - detail::entropy(mean.data(), num_experts);
}

}  // namespace moe::inline MOE_ABI
