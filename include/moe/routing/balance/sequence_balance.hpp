// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"
#include "moe/core/simd.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/routing.hpp"
#include "moe/routing/token_groups.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// sum_e f_e P_e of one sequence, in which `factor` [num_experts] holds f_e afterwards; 0 and zeros without choices.
template <class S>
double sequence_balance(const ConstMatrixRef<S>& score, const Routing<S>& routing, std::span<const Index> tokens,
                        std::span<double> factor, std::span<double> share) {
  std::ranges::fill(factor, 0.0);
  std::ranges::fill(share, 0.0);
  Index choices = 0;
  for (const Index t : tokens) {
    const S* s = score.row(t).data();
    double sum = 0;
    for (std::size_t e = 0; e < share.size(); ++e) sum += static_cast<double>(s[e]);
    if (sum != 0)
      for (std::size_t e = 0; e < share.size(); ++e) share[e] += static_cast<double>(s[e]) / sum;
    for (const Index e : routing.experts(t)) factor[static_cast<std::size_t>(e)] += 1;
    choices += std::ssize(routing.experts(t));
  }
  if (choices == 0) return 0;
  double loss = 0;
  for (std::size_t e = 0; e < share.size(); ++e) {
    factor[e] *= static_cast<double>(factor.size()) / static_cast<double>(choices);
    loss = simd::fma(factor[e], share[e] / static_cast<double>(tokens.size()), loss);
  }
  return loss;
}

/// ds += scale * the gradient of <factor, s / sum of s> by s.
template <class S>
void add_normalised_gradient(const S* s, std::span<const double> factor, double scale, S* ds) {
  double sum = 0, along = 0;
  for (std::size_t e = 0; e < factor.size(); ++e) {
    sum += static_cast<double>(s[e]);
    along = simd::fma(factor[e], static_cast<double>(s[e]), along);
  }
  if (sum == 0) return;
  for (std::size_t e = 0; e < factor.size(); ++e) ds[e] += static_cast<S>(scale / sum * (factor[e] - along / sum));
}

}  // namespace detail

/// Balance inside every sequence, mean over the sequences that have valid tokens (step.group_id; without it, one):
///   L = sum_e f_e P_e,   P_e = mean over the valid tokens of score_e / sum_j score_j
/// where f_e is num_experts times the share of the sequence's choices that name e. Every sequence counts once, however
/// long. 1 when a sequence uses all experts evenly, num_experts when all its tokens want one alone; over a batch of
/// sequences that each want another, load_balancing_loss() sees nothing of that. Dropped choices count.
///   score    [num_tokens, num_experts], >= 0, of any sum, as the sigmoids that a TopKGate gives for probabilities; a
///            token whose scores are all 0 has no part in P
///   routing  of the same tokens
/// Returns the loss before `weight`, 0 without valid tokens or choices; adds weight * dL/dscore, the normalisation
/// included, to gradient.probability (f is a constant). Throws std::invalid_argument on shapes that differ.
/// O(num_tokens * num_experts), in parallel over sequences, the same bits for any number of threads; allocates.
/// DeepSeek-AI, "DeepSeek-V3 technical report", eq. 17 to 20 (arXiv:2412.19437), whose weight is 1e-4.
template <class S>
double sequence_balance_loss(const MatrixView<S>& score, const Routing<S>& routing, const Step& step, double weight,
                             RoutingGradient<S>& gradient) {
  constexpr const char* kName = "moe::sequence_balance_loss";
  const Index num_tokens = score.rows(), num_experts = score.cols();
  detail::require_routing(kName, routing, num_tokens, num_experts);
  step.validate(kName, num_tokens);
  auto& dscore = detail::accumulator(kName, "gradient.probability", gradient.probability, num_tokens, num_experts);

  detail::TokenGroups sequences;
  sequences.build(num_tokens, step);
  const auto num_sequences = static_cast<double>(sequences.count());
  std::vector<double> loss(static_cast<std::size_t>(sequences.count()));
  RowBuffer<double> sums;  // two rows per worker
  sums.resize(2 * num_workers(), num_experts);
  parallel_for(sequences.count(), [&](Index sequence, Index worker) {
    const auto tokens = sequences[sequence];
    const std::span factor(sums.row(2 * worker), static_cast<std::size_t>(num_experts));
    const std::span share(sums.row(2 * worker + 1), static_cast<std::size_t>(num_experts));
    loss[static_cast<std::size_t>(sequence)] = detail::sequence_balance<S>(score, routing, tokens, factor, share);
    const double scale = weight / (num_sequences * static_cast<double>(tokens.size()));
    for (const Index t : tokens)
      detail::add_normalised_gradient<S>(score.row(t).data(), factor, scale, dscore.row(t).data());
  });
  double sum = 0;
  for (const double of_sequence : loss) sum += of_sequence;
  return loss.empty() ? 0 : sum / num_sequences;
}

}  // namespace moe::inline MOE_ABI
