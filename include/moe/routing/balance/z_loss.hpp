// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/numeric/log_sum_exp.hpp"
#include "moe/routing/balance/token_sum.hpp"
#include "moe/routing/gradient.hpp"

namespace moe::inline MOE_ABI {

/// Router z-loss: mean over valid tokens of (log sum_e exp z_e)^2, which keeps logits small. 0 without valid tokens.
///   logits  [num_tokens, num_experts]; -infinity masks an expert; at least one finite logit per valid token
/// Returns the loss before `weight`; adds weight * dL/dz = weight * 2 / B * lse(z) * softmax(z) to gradient.logits.
/// Throws std::invalid_argument on shapes that differ.
/// O(num_tokens * num_experts), in parallel, the same bits for any number of threads; allocates partial sums.
/// Zoph et al., "ST-MoE", eq. 5 (arXiv:2202.08906).
template <class S>
double z_loss(const MatrixView<S>& logits, const Step& step, double weight, RoutingGradient<S>& gradient) {
  constexpr const char* kName = "moe::z_loss";
  const Index num_tokens = logits.rows(), num_experts = logits.cols();
  step.validate(kName, num_tokens);
  auto& dlogits = detail::accumulator(kName, "gradient.logits", gradient.logits, num_tokens, num_experts);
  const Index num_valid = step.num_valid(num_tokens);
  if (num_valid == 0) return 0;

  const double scale = 2 * weight / static_cast<double>(num_valid);
  const auto sum = detail::sum_over_tokens(num_tokens, 1, step, [&](Index t, double* squares) {
    const S* z = logits.row(t).data();
    S* dz = dlogits.row(t).data();
    const auto lse = static_cast<double>(log_sum_exp(z, num_experts));
    *squares = simd::fma(lse, lse, *squares);
    // exp in double: z - lse cancels, and float would leave |lse| * 6e-8 of relative error.
    for (Index e = 0; e < num_experts; ++e)
      dz[e] =
          static_cast<S>(simd::fma(scale * lse, std::exp(static_cast<double>(z[e]) - lse), static_cast<double>(dz[e])));
  });
  return sum[0] / static_cast<double>(num_valid);
}

}  // namespace moe::inline MOE_ABI
