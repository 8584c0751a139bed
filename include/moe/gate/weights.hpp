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

/// Norm of `count` chosen scores score(s), which are not negative; of a token, or of a token per lane. Euclidean:
/// scaled by the largest, as squares of small scores underflow in float.
template <class V, class Score>
V chosen_norm(const Score& score, std::size_t count, Normalise normalise) {
  const V zero(simd::Scalar<V>{0});
  V largest = zero, sum = zero, squares = zero;
  for (std::size_t s = 0; s < count; ++s) {
    largest = simd::max(score(s), largest);
    sum = sum + score(s);
  }
  if (normalise == Normalise::Sum) return sum;
  for (std::size_t s = 0; s < count; ++s) {
    const V ratio = simd::divide(score(s), largest);
    squares = simd::fma(ratio, ratio, squares);
  }
  const V norm = simd::fma(largest, simd::sqrt(squares), zero);  // a product that no compiler fuses with what follows
  return simd::select(largest == zero, sum, norm);
}

/// The divisor; never zero, so that scores which are all zero give weights of zero.
template <class V>
V positive(const V& norm) {
  return simd::max(norm, V(std::numeric_limits<simd::Scalar<V>>::min()));
}

/// Turns the scores of the chosen experts into their weights; of a token, or of a token per lane with the same bits.
template <class V>
void weigh_chosen(std::span<V> chosen, const WeightRule& rule) {
  using S = simd::Scalar<V>;
  const V scale(static_cast<S>(rule.scale));
  if (rule.normalise == Normalise::None) {
    for (V& score : chosen) score = score * scale;
    return;
  }
  const V norm = chosen_norm<V>([&](std::size_t s) { return chosen[s]; }, chosen.size(), rule.normalise);
  const V divisor = positive(norm + V(static_cast<S>(rule.epsilon)));
  for (V& score : chosen) score = simd::divide(score, divisor) * scale;
}

/// weights[s] from the score of the s-th chosen expert.
template <class S>
void weigh(const S* score, std::span<const Index> chosen, const WeightRule& rule, std::span<S> weights) {
  for (std::size_t s = 0; s < chosen.size(); ++s) weights[s] = score[chosen[s]];
  weigh_chosen(weights, rule);
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
  const auto chosen = [&](std::size_t s) { return score[choices.expert(s)]; };
  const S norm = positive(chosen_norm<S>(chosen, choices.size(), rule.normalise));
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
