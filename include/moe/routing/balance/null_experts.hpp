// SPDX-License-Identifier: MIT
#pragma once

#include "moe/routing/balance/load_balancing.hpp"

namespace moe::inline MOE_ABI {

/// What a NullExpertGate chooses beside experts: `count` nulls, with which a token makes k choices.
struct NullExperts {
  Index count = 1;  ///< >= 0
  Index k = 2;      ///< >= 1
};

/// Load-balancing loss over experts and nulls, of which it does not matter which one takes a choice:
///   (num_experts + m) * (sum_e f_e P_e + sum over m nulls of F / m * P_null)
/// where f_e is the share of all k choices of valid tokens that name e, F that of the nulls together, and P the mean
/// probabilities. 1 when all are alike; it pulls the share of nulls towards m / (num_experts + m), and so the number of
/// experts per token towards k num_experts / (num_experts + m). Without nulls it is load_balancing_loss(). 0 without
/// valid tokens.
///   probability  [num_tokens, num_experts], of the experts; the rest of each row is that of the nulls
///   routing      of the same tokens, choices of experts alone: what a token lacks of k went to nulls
/// Dropped choices count as chosen. Returns the loss before `weight`; adds weight * dL/dprobability to
/// gradient.probability, f and F being constants. Throws std::invalid_argument on shapes that differ, numbers out of
/// range and tokens of more than k choices. O(num_tokens * num_experts), in parallel, the same bits for any number of
/// threads; allocates partial sums. Zeng et al., "AdaMoE" (arXiv:2406.13233).
template <class S>
double null_expert_loss(const MatrixView<S>& probability, const Routing<S>& routing, const NullExperts& nulls,
                        const Step& step, double weight, RoutingGradient<S>& gradient) {
  constexpr const char* kName = "moe::null_expert_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  if (nulls.count < 0) fail(kName, ": nulls.count is ", nulls.count, ", expected at least 0");
  if (nulls.k < 1) fail(kName, ": nulls.k is ", nulls.k, ", expected at least 1");
  detail::require_routing(kName, routing, num_tokens, num_experts);
  step.validate(kName, num_tokens);
  for (Index t = 0; t < num_tokens; ++t)
    if (std::ssize(routing.experts(t)) > nulls.k)
      fail(kName, ": token ", t, " has ", routing.experts(t).size(), " choices, expected at most k = ", nulls.k);
  auto& dprobability =
      detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);
  const auto num_valid = static_cast<double>(step.num_valid(num_tokens));
  if (num_valid == 0) return 0;

  auto sums = detail::sum_over_tokens(num_tokens, 2 * num_experts, step, [&](Index t, double* mean) {
    for (Index e = 0; e < num_experts; ++e) mean[e] += static_cast<double>(probability(t, e)) / num_valid;
    detail::count_choices_of(t, routing, {}, mean + num_experts);
  });
  const double* mean = sums.data();
  double* slope = sums.data() + num_experts;  // from counts to shares to dL/dP
  const double all = static_cast<double>(num_experts + nulls.count);
  double of_nulls = 1, mean_of_nulls = 1, product = 0;
  for (Index e = 0; e < num_experts; ++e) {
    slope[e] /= num_valid * static_cast<double>(nulls.k);
    of_nulls -= slope[e];
    mean_of_nulls -= mean[e];
    product = simd::fma(slope[e], mean[e], product);
  }
  const double of_one = nulls.count == 0 ? 0 : of_nulls / static_cast<double>(nulls.count);
  for (Index e = 0; e < num_experts; ++e) slope[e] = weight * all / num_valid * (slope[e] - of_one);
  detail::for_each_valid(num_tokens, step, [&](Index t) {
    for (Index e = 0; e < num_experts; ++e) dprobability(t, e) += static_cast<S>(slope[e]);
  });
  return all * simd::fma(of_one, mean_of_nulls, product);
}

}  // namespace moe::inline MOE_ABI
