// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/simd.hpp"
#include "moe/routing/balance/token_sum.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// Divisor of a variance over n experts: n, or n - 1. Public implementations of the losses below disagree.
enum class Variance { Population, Sample };

/// A squared coefficient of variation: variance / (mean^2 + epsilon). Public code takes {Variance::Sample, 1e-10}.
struct CvOptions {
  Variance variance = Variance::Population;
  double epsilon = 0;  ///< >= 0

  /// Throws std::invalid_argument, opened by `function`, unless epsilon is a number of at least 0.
  void validate(const char* function) const {
    if (!(epsilon >= 0)) fail(function, ": epsilon is ", epsilon, ", expected at least 0");
  }
};

namespace detail {

/// Squared coefficient of variation of `values`, which are replaced by `weight` times its gradient. 0 with zero
/// gradient where it says nothing: mean 0, or a sample of one.
inline double squared_cv(std::span<double> values, const CvOptions& options, double weight) {
  const auto n = static_cast<double>(values.size());
  const double divisor = options.variance == Variance::Population ? n : n - 1;
  double mean = 0, spread = 0;
  for (const double value : values) mean += value / n;
  for (const double value : values) spread = simd::fma(value - mean, value - mean, spread);
  if (mean == 0 || divisor < 1) {
    std::fill(values.begin(), values.end(), 0.0);
    return 0;
  }
  const double square = simd::fma(mean, mean, options.epsilon);
  const double result = spread / divisor / square;
  for (double& value : values) value = 2 * weight / square * ((value - mean) / divisor - result * mean / n);
  return result;
}

}  // namespace detail

/// Importance loss: CV^2 over experts of I_e = sum over valid tokens of the routing weight of e. 0 when all experts get
/// the same total weight. Returns the loss before `weight`; adds weight * dL/dw to gradient.weight, exactly 0 where
/// dropped. Not useful where each token's weights are constant (top-1 renormalised).
/// Throws std::invalid_argument on an expert outside [0, num_experts) or a gradient of another size.
/// O(assignments + num_experts), in parallel, the same bits for any number of threads; allocates partial sums.
/// Shazeer et al., "Outrageously Large Neural Networks", eq. 6 and 7 (arXiv:1701.06538).
template <class S>
double importance_loss(const Routing<S>& routing, Index num_experts, const Step& step, double weight,
                       RoutingGradient<S>& gradient, const CvOptions& options = {}) {
  constexpr const char* kName = "moe::importance_loss";
  const Index num_tokens = routing.num_tokens();
  detail::require_experts(kName, routing, num_experts);
  step.validate(kName, num_tokens);
  options.validate(kName);
  auto& dweight = detail::accumulator(kName, "gradient.weight", gradient.weight, routing.num_assignments());

  const Index* expert = routing.experts().data();
  const std::uint8_t* dropped = routing.dropped().data();
  const S* weights = routing.weights().data();
  auto importance = detail::sum_over_tokens(num_tokens, num_experts, step, [&](Index t, double* sum) {
    for (Index a = routing.begin(t); a < routing.end(t); ++a)
      if (!dropped[a]) sum[expert[a]] += static_cast<double>(weights[a]);
  });
  const double value = detail::squared_cv(importance, options, weight);
  const double* slope = importance.data();
  detail::for_each_valid(num_tokens, step, [&](Index t) {
    for (Index a = routing.begin(t); a < routing.end(t); ++a)
      if (!dropped[a]) dweight[static_cast<std::size_t>(a)] += static_cast<S>(slope[expert[a]]);
  });
  return value;
}

/// The same with I_e = sum over valid tokens of the probability of e, selected or not; adds to gradient.probability.
///   probability  [num_tokens, num_experts]
/// V-MoE takes the importance of the full softmax (arXiv:2106.05974).
template <class S>
double importance_loss(const MatrixView<S>& probability, const Step& step, double weight, RoutingGradient<S>& gradient,
                       const CvOptions& options = {}) {
  constexpr const char* kName = "moe::importance_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  step.validate(kName, num_tokens);
  options.validate(kName);
  auto& dprobability =
      detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);

  auto importance = detail::sum_over_tokens(num_tokens, num_experts, step, [&](Index t, double* sum) {
    const S* p = probability.row(t).data();
    for (Index e = 0; e < num_experts; ++e) sum[e] += static_cast<double>(p[e]);
  });
  const double value = detail::squared_cv(importance, options, weight);
  const double* slope = importance.data();
  detail::for_each_valid(num_tokens, step, [&](Index t) {
    S* dp = dprobability.row(t).data();
    for (Index e = 0; e < num_experts; ++e) dp[e] += static_cast<S>(slope[e]);
  });
  return value;
}

}  // namespace moe::inline MOE_ABI
