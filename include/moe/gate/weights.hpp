// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <span>

#include "moe/core/simd.hpp"
#include "moe/gate/rows.hpp"

namespace moe::inline MOE_ABI {

/// What the weights of a token are divided by after selection: nothing, their sum, or their Euclidean norm (DBRX allows
/// it).
enum class Normalise { None, Sum, Euclidean };

/// Which logits weigh the experts that a perturbed or tempered gate has selected: those that selected them, or the
/// logits as the router gave them.
enum class WeightSource { Selection, Clean };

namespace detail {

/// Scores of the chosen experts to weights: w_s = scale * score_s / (norm + epsilon).
struct WeightRule {
  Normalise normalise = Normalise::None;
  double epsilon = 0, scale = 1;
};

/// Norm of the chosen scores, which are not negative. Euclidean: scaled by the largest, as squares of small scores
/// underflow in float.
template <class S>
S chosen_norm(const S* score, std::span<const Index> chosen, Normalise normalise) {
  S largest = 0, sum = 0;
  for (const Index e : chosen) {
    largest = std::max(largest, score[e]);
    sum += score[e];
  }
  if (normalise == Normalise::Sum || largest == S{0}) return sum;
  S squares = 0;
  for (const Index e : chosen) squares = simd::fma(score[e] / largest, score[e] / largest, squares);
  return largest * std::sqrt(squares);
}

/// The divisor; never zero, so that scores which are all zero give weights of zero.
template <class S>
S positive(S norm) {
  return std::max(norm, std::numeric_limits<S>::min());
}

/// weights[s] from the score of the s-th chosen expert.
template <class S>
void weigh(const S* score, std::span<const Index> chosen, const WeightRule& rule, std::span<S> weights) {
  const S scale = static_cast<S>(rule.scale);
  if (rule.normalise == Normalise::None) {
    for (std::size_t s = 0; s < chosen.size(); ++s) weights[s] = score[chosen[s]] * scale;
    return;
  }
  const S divisor = positive(chosen_norm(score, chosen, rule.normalise) + static_cast<S>(rule.epsilon));
  for (std::size_t s = 0; s < chosen.size(); ++s) weights[s] = score[chosen[s]] / divisor * scale;
}

/// dscore[e] += dL/dscore[e] through the weights of the chosen experts. With q_s = score_s / divisor:
///   dscore_s += scale / divisor * (dw_s - slope_s * sum_j dw_j q_j),   slope_s = dnorm/dscore_s
template <class S>
void weigh_backward(const S* score, const Choices<S>& choices, const WeightRule& rule, S* dscore) {
  const S scale = static_cast<S>(rule.scale);
  if (rule.normalise == Normalise::None) {
    for (std::size_t s = 0; s < choices.size(); ++s)
      dscore[choices.expert(s)] = simd::fma(scale, choices.dweight(s), dscore[choices.expert(s)]);
    return;
  }
  const S norm = positive(chosen_norm(score, choices.experts, rule.normalise));
  const S divisor = positive(norm + static_cast<S>(rule.epsilon));
  S mean = 0;
  for (std::size_t s = 0; s < choices.size(); ++s)
    mean = simd::fma(choices.dweight(s), score[choices.expert(s)] / divisor, mean);
  for (std::size_t s = 0; s < choices.size(); ++s) {
    const Index e = choices.expert(s);
    const S slope = rule.normalise == Normalise::Sum ? S{1} : score[e] / norm;
    dscore[e] += scale / divisor * (choices.dweight(s) - slope * mean);
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
