// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/simd.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/routing.hpp"
#include "moe/routing/token_sum.hpp"

namespace moe::inline MOE_ABI {

enum class CountedChoices { All, First };
enum class DroppedChoices { Count, Ignore };

/// What f counts in load_balancing_loss.
struct LoadBalancingOptions {
  CountedChoices choices = CountedChoices::All;  ///< First: GShard's definition, also for k > 1
  /// Count: f as chosen, before any drop (Switch, GShard), so that a full expert still pushes tokens away.
  /// Ignore: f as served.
  DroppedChoices dropped = DroppedChoices::Count;
};

/// Load-balancing loss: num_experts * sum_e f_e P_e, where f_e is the share of counted choices that name e and P_e the
/// mean probability of e, both over valid tokens. Exactly 1 when all f_e = P_e = 1 / num_experts, for any k and for
/// ragged routings; it can be below 1 when f and P disagree. 0 without valid tokens or choices.
///   probability  [num_tokens, num_experts], rows that sum to 1      routing  of the same tokens
/// Returns the loss before `weight`; adds weight * dL/dprobability to gradient.probability (f is a constant). The
/// expert-level balance of DeepSeekMoE is the same function. Throws std::invalid_argument on shapes that differ.
/// O(num_tokens * num_experts), in parallel, the same bits for any number of threads; allocates partial sums.
/// Fedus, Zoph & Shazeer, "Switch Transformers", eq. 4 (arXiv:2101.03961); Lepikhin et al., GShard (arXiv:2006.16668).
template <class S>
double load_balancing_loss(const MatrixView<S>& probability, const Routing<S>& routing, const Step& step, double weight,
                           RoutingGradient<S>& gradient, const LoadBalancingOptions& options = {}) {
  constexpr const char* kName = "moe::load_balancing_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  detail::require_routing(kName, routing, num_tokens, num_experts);
  step.validate(kName, num_tokens);
  auto& dprobability =
      detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);

  auto sums = detail::sum_over_tokens(num_tokens, 2 * num_experts, step, [&](Index t, double* probability_sum) {
    double* count = probability_sum + num_experts;
    const S* p = probability.row(t).data();
    for (Index e = 0; e < num_experts; ++e) probability_sum[e] += static_cast<double>(p[e]);
    const auto expert = routing.experts(t);
    const auto dropped = routing.dropped(t);
    const std::size_t last =
        options.choices == CountedChoices::All ? expert.size() : std::min<std::size_t>(1, expert.size());
    for (std::size_t slot = 0; slot < last; ++slot)
      if (options.dropped == DroppedChoices::Count || !dropped[slot]) count[expert[slot]] += 1;
  });

  const double* probability_sum = sums.data();
  double* count = sums.data() + num_experts;
  double product = 0, choices = 0;
  for (Index e = 0; e < num_experts; ++e) {
    product = simd::fma(probability_sum[e], count[e], product);
    choices += count[e];
  }
  if (choices == 0) return 0;
  const double scale = static_cast<double>(num_experts) / (choices * static_cast<double>(step.num_valid(num_tokens)));
  for (Index e = 0; e < num_experts; ++e) count[e] *= weight * scale;  // the gradient, the same for all tokens
  detail::for_each_valid(num_tokens, step, [&](Index t) {
    S* dp = dprobability.row(t).data();
    for (Index e = 0; e < num_experts; ++e) dp[e] += static_cast<S>(count[e]);
  });
  return scale * product;
}

}  // namespace moe::inline MOE_ABI
