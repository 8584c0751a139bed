// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Balance without a loss: one step of the controller of TopKGate::selection_bias,
///   bias_e += rate * sign(mean count - count_e)
/// so that experts with more than their share are chosen less, and the other way round; the bias of an expert with
/// exactly its share stays. Call it once per update with the counts of the batch, summed over all ranks.
///   count  [num_experts], tokens_per_expert() of a plan or a routing, >= 0
///   rate   of DeepSeek-V3: 1e-3, and 0 at the end of training; >= 0
///   bias   [num_experts], or empty: made zero first
/// Throws std::invalid_argument if the sizes differ, a count is negative or the rate is not a number >= 0; the bias is
/// then as it was. O(num_experts).
/// Wang et al., "Auxiliary-loss-free load balancing strategy for mixture-of-experts" (arXiv:2408.15664).
inline void update_selection_bias(std::span<const Index> count, double rate, Eigen::RowVectorXd& bias) {
  constexpr const char* kName = "moe::update_selection_bias";
  const auto num_experts = static_cast<Index>(count.size());
  if (!(rate >= 0 && std::isfinite(rate))) fail(kName, ": rate is ", rate, ", expected a number of at least 0");
  if (bias.size() != 0 && bias.size() != num_experts)
    fail(kName, ": bias has ", bias.size(), " entries, expected 0 or num_experts = ", num_experts);
  double total = 0;
  for (Index e = 0; e < num_experts; ++e) {
    const Index served = count[static_cast<std::size_t>(e)];
    if (served < 0) fail(kName, ": count of expert ", e, " is ", served, ", expected at least 0");
    total += static_cast<double>(served);
  }
  if (bias.size() == 0) bias.setZero(num_experts);
  for (Index e = 0; e < num_experts; ++e) {  // total and products are whole numbers: signs are exact below 2^53
    const double surplus = static_cast<double>(count[static_cast<std::size_t>(e)]) * static_cast<double>(num_experts);
    if (surplus != total) bias(e) += surplus < total ? rate : -rate;
  }
}

}  // namespace moe::inline MOE_ABI
