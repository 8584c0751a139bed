// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "moe/routing/balance/load_balancing.hpp"

namespace moe::inline MOE_ABI {

/// Balance between groups of experts, as those of a device, a NUMA node or a cache, which may be uneven inside:
///   L = sum_g f'_g P'_g,   f'_g = mean of f_e over the experts of g,   P'_g = sum of P_e over them
/// where f_e is num_experts times the share of choices that name e, and P_e the mean probability of e, both over valid
/// tokens. 1 when the groups have their shares, whatever happens inside them; load_balancing_loss() with groups of one
/// expert. Dropped choices count. 0 without valid tokens or choices.
///   probability  [num_tokens, num_experts], rows that sum to 1      routing  of the same tokens
///   group_of     [num_experts], 0 <= group < num_experts; sizes may differ, and a group may have no experts
/// Returns the loss before `weight`; adds weight * dL/dprobability = weight * f'_{group of e} / B to
/// gradient.probability (f is a constant). Throws std::invalid_argument on shapes that differ and groups out of range.
/// O(num_tokens * num_experts), in parallel, the same bits for any number of threads; allocates partial sums.
/// Dai et al., "DeepSeekMoE", device-level balance loss, eq. 15 to 17 (arXiv:2401.06066).
template <class S>
double group_balance_loss(const MatrixView<S>& probability, const Routing<S>& routing, std::span<const Index> group_of,
                          const Step& step, double weight, RoutingGradient<S>& gradient) {
  constexpr const char* kName = "moe::group_balance_loss";
  const Index num_tokens = probability.rows(), num_experts = probability.cols();
  detail::require_routing(kName, routing, num_tokens, num_experts);
  step.validate(kName, num_tokens);
  if (std::ssize(group_of) != num_experts)
    fail(kName, ": group_of has ", group_of.size(), " entries, expected num_experts = ", num_experts);
  for (std::size_t e = 0; e < group_of.size(); ++e)
    if (group_of[e] < 0 || group_of[e] >= num_experts)
      fail(kName, ": group of expert ", e, " is ", group_of[e], ", expected 0 to num_experts - 1 = ", num_experts - 1);
  detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);

  // The loss over experts, if every expert of a group had been chosen as often as any other of it.
  std::vector<double> count = count_choices(routing, num_experts, step), of_group(count.size()), size(count.size());
  for (std::size_t e = 0; e < count.size(); ++e) {
    of_group[static_cast<std::size_t>(group_of[e])] += count[e];
    size[static_cast<std::size_t>(group_of[e])] += 1;
  }
  for (std::size_t e = 0; e < count.size(); ++e) {
    const auto group = static_cast<std::size_t>(group_of[e]);
    count[e] = of_group[group] / size[group];
  }
  return load_balancing_loss<S>(probability, routing, step, weight, gradient, {.counts = count});
}

}  // namespace moe::inline MOE_ABI
