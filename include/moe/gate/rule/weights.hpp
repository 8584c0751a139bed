// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <span>

#include "moe/core/aligned.hpp"
#include "moe/core/simd.hpp"
#include "moe/gate/rule/token_rule.hpp"

namespace moe::inline MOE_ABI {

/// What the weights of a token are divided by after selection: nothing, their sum, their Euclidean norm, or their
/// p-norm for any p >= 1 (DBRX: moe_normalize_expert_weights).
enum class Normalise { Off, Sum, Euclidean, PNorm };

/// Which logits weigh the experts that a perturbed or tempered gate has selected: those that selected them, or the
/// logits as the router gave them.
enum class WeightLogits { Selection, Clean };

/// What a choice weighs where a gate leaves that open: its score, or as much as any other.
enum class ChoiceWeight { Score, Unit };

/// What training does where each weight is a constant, so that the router learns nothing from the task: Refuse it, or
/// Accept it, as where auxiliary losses alone are to train the router, or nothing is.
enum class ConstantWeights { Refuse, Accept };

namespace detail {

/// Throws std::invalid_argument for a PNorm in the options of a gate that has no p.
inline void require_norm_without_p(const char* gate, Normalise normalise) {
  if (normalise == Normalise::PNorm)
    fail(gate, ": normalise is PNorm, expected Off, Sum or Euclidean: this gate has no norm_p");
}

/// What backward of a gate says whose tokens have one choice each, divided by itself.
[[noreturn]] inline void fail_constant_weights(const char* function) {
  fail(function, ": each token has one choice, whose weight is normalised and the same for all, which leaves the ",
       "router without gradient, expected normalise = Normalise::Off, or constant_weights = ConstantWeights::Accept ",
       "where other losses alone train the router");
}

/// Scores of the chosen experts to weights: w_s = scale * score_s / max(norm + epsilon, floor).
struct WeightRule {
  Normalise normalise = Normalise::Off;
  double epsilon = 0, scale = 1, floor = 0;
  double p = 2;  ///< of PNorm
};

/// x^p lane by lane, for x >= 0: the same bits in a lane and alone. For the rare rules that need it.
template <class V>
V power(const V& x, double p) {
  using S = simd::Scalar<V>;
  if constexpr (simd::kIsBatch<V>) {
    alignas(kCacheLine) std::array<S, static_cast<std::size_t>(simd::kLanes<S>)> lane;
    simd::store(lane.data(), x);
    for (S& value : lane) value = std::pow(value, static_cast<S>(p));
    return simd::load(lane.data());
  } else {
    return std::pow(x, static_cast<S>(p));
  }
}

/// Norm of `count` chosen scores score(s), which are not negative; of a token, or of a token per lane. Euclidean and
/// PNorm: scaled by the largest, as powers of small scores underflow in float.
template <class V, class Score>
V chosen_norm(const Score& score, std::size_t count, const WeightRule& rule) {
  const V zero(simd::Scalar<V>{0});
  V largest = zero, sum = zero, squares = zero;
  for (std::size_t s = 0; s < count; ++s) {
    largest = simd::max(score(s), largest);
    sum = sum + score(s);
  }
  if (rule.normalise == Normalise::Sum) return sum;
  const bool euclidean = rule.normalise == Normalise::Euclidean;
  for (std::size_t s = 0; s < count; ++s) {
    const V ratio = simd::divide(score(s), largest);
    squares = euclidean ? simd::fma(ratio, ratio, squares) : squares + power(ratio, rule.p);
  }
  const V root = euclidean ? simd::sqrt(squares) : power(squares, 1 / rule.p);
  const V norm = simd::fma(largest, root, zero);  // a product that no compiler fuses with what follows
  return simd::select(largest == zero, sum, norm);
}

/// A norm as a divisor; never zero, so that scores which are all zero give weights of zero.
template <class V>
V positive(const V& norm) {
  return simd::max(norm, V(std::numeric_limits<simd::Scalar<V>>::min()));
}

/// What scores are divided by.
template <class V>
V divisor_of(const V& norm, const WeightRule& rule) {
  using S = simd::Scalar<V>;
  return positive(simd::max(norm + V(static_cast<S>(rule.epsilon)), V(static_cast<S>(rule.floor))));
}

/// Turns the scores of the chosen experts into their weights; of a token, or of a token per lane with the same bits.
template <class V>
void weigh_chosen(std::span<V> chosen, const WeightRule& rule) {
  using S = simd::Scalar<V>;
  const V scale(static_cast<S>(rule.scale));
  if (rule.normalise == Normalise::Off) {
    for (V& score : chosen) score = score * scale;
    return;
  }
  const V norm = chosen_norm<V>([&](std::size_t s) { return chosen[s]; }, chosen.size(), rule);
  const V divisor = divisor_of(norm, rule);
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
/// and slope_s = 0 where the floor is the divisor.
template <class S>
void weigh_backward(const S* score, const Choices<S>& choices, const WeightRule& rule, S* dscore) {
  const S scale = static_cast<S>(rule.scale);
  if (rule.normalise == Normalise::Off) {
    for (std::size_t s = 0; s < choices.size(); ++s)
      dscore[choices.expert(s)] = simd::fma(scale, choices.dweight(s), dscore[choices.expert(s)]);
    return;
  }
  const auto chosen = [&](std::size_t s) { return score[choices.expert(s)]; };
  const S norm = positive(chosen_norm<S>(chosen, choices.size(), rule));
  const S divisor = divisor_of(norm, rule);
  const bool is_floor = norm + static_cast<S>(rule.epsilon) < static_cast<S>(rule.floor);
  const auto slope_of = [&](S chosen_score) {
    if (is_floor) return S{0};
    if (rule.normalise == Normalise::Sum) return S{1};
    const S ratio = chosen_score / norm;
    return rule.normalise == Normalise::Euclidean ? ratio : power(ratio, rule.p - 1);
  };
  S mean = 0;
  for (std::size_t s = 0; s < choices.size(); ++s)
    mean = simd::fma(choices.dweight(s), score[choices.expert(s)] / divisor, mean);
  for (std::size_t s = 0; s < choices.size(); ++s) {
    const Index e = choices.expert(s);
    dscore[e] += scale / divisor * (choices.dweight(s) - slope_of(score[e]) * mean);
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
