// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>

#include "moe/gate/rule/weights.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/softmax.hpp"

namespace moe::inline MOE_ABI {

/// How a logit becomes a score: experts compete in the softmax, and do not in the sigmoid or in sqrt(softplus(logit)).
enum class Score { Softmax, Sigmoid, SqrtSoftplus };

namespace detail {

/// From the logits of a token over scores to the weights of the experts that it has chosen, and back.
template <class S>
class ScoreWeights {
 public:
  ScoreWeights(Score score, const WeightRule& rule, Index num_experts)
      : score_(score), rule_(rule), num_experts_(num_experts) {}

  /// out[e] = score of expert e; may be z.
  void scores(const S* z, S* out) const {
    if (score_ == Score::Softmax) return softmax(z, num_experts_, out);
    simd::transform(num_experts_, z, out, [this](const simd::Batch<S>& x) { return score_of(x); });
  }

  /// `scratch`: num_experts scalars, which may be z.
  void weigh(const S* z, std::span<const Index> experts, S* scratch, std::span<S> weights) const {
    if (!is_softmax_of_chosen()) {
      scores(z, scratch);
      return detail::weigh<S>(scratch, experts, rule_, weights);
    }
    softmax_of_chosen(z, experts, weights.data());
    for (S& weight : weights) weight *= static_cast<S>(rule_.scale);
  }

  /// weigh() of a token per lane, in place and with the same bits: from the logits of the experts that it has chosen,
  /// and scale_of() all its logits.
  void weigh_lanes(std::span<simd::Batch<S>> chosen, const SoftmaxScale<simd::Batch<S>>& scale) const {
    if (is_softmax_of_chosen()) {
      softmax_lanes<S>(chosen);
      for (auto& weight : chosen) weight = weight * simd::Batch<S>(static_cast<S>(rule_.scale));
      return;
    }
    for (auto& z : chosen) z = score_ == Score::Softmax ? scale(z) : score_of(z);
    weigh_chosen(chosen, rule_);
  }

  /// Where a weight depends on all logits of a token through its softmax; elsewhere without meaning.
  SoftmaxScale<S> scale_of(const S* z) const {
    return needs_scale() ? softmax_scale(z, num_experts_) : SoftmaxScale<S>{0, 0};
  }
  bool needs_scale() const { return score_ == Score::Softmax && !is_softmax_of_chosen(); }

  /// In: d[e] = dL/dscore[e]; out: d[e] = dL/dz[e], with that of the weights of the choices. `scratch`: 2 num_experts
  /// scalars, the first half of which may be z.
  void backward(const S* z, const Choices<S>& choices, S* scratch, S* d) const {
    S* weight = scratch + num_experts_;
    const bool direct = is_softmax_of_chosen();
    if (direct) softmax_of_chosen(z, choices.experts, weight);
    scores(z, scratch);
    if (!direct) weigh_backward<S>(scratch, choices, rule_, d);
    scores_backward(scratch, d);
    if (direct) softmax_of_chosen_backward(weight, choices, d);
  }

 private:
  /// A softmax divided by the sum over the chosen is the softmax of the chosen logits: cheaper, and exact where all
  /// chosen probabilities underflow (a bias or a group limit may choose such experts).
  bool is_softmax_of_chosen() const {
    return score_ == Score::Softmax && rule_.normalise == Normalise::Sum && rule_.epsilon == 0 && rule_.floor == 0;
  }
  static void softmax_of_chosen(const S* z, std::span<const Index> experts, S* weight) {
    for (std::size_t s = 0; s < experts.size(); ++s) weight[s] = z[experts[s]];
    softmax(weight, static_cast<Index>(experts.size()), weight);
  }
  void softmax_of_chosen_backward(const S* weight, const Choices<S>& choices, S* d) const {
    S mean = 0;
    for (std::size_t s = 0; s < choices.size(); ++s) mean = simd::fma(choices.dweight(s), weight[s], mean);
    for (std::size_t s = 0; s < choices.size(); ++s)
      d[choices.expert(s)] += static_cast<S>(rule_.scale) * weight[s] * (choices.dweight(s) - mean);
  }

  /// Scores that are functions of their own logit.
  template <class V>
  V score_of(const V& x) const {
    return score_ == Score::Sigmoid ? Sigmoid::value(x) : simd::sqrt(Softplus::value(x));
  }
  void scores_backward(const S* score, S* d) const {
    const Index n = num_experts_;
    if (score_ == Score::Softmax) return softmax_backward(score, d, n, d);
    if (score_ == Score::Sigmoid)
      for (Index e = 0; e < n; ++e) d[e] *= score[e] * (1 - score[e]);
    else  // sigmoid(z) / (2 score), where 1 + exp(z) = exp(score^2); 0 at score 0, where z is -infinity or near
      for (Index e = 0; e < n; ++e)
        d[e] *= score[e] > 0 ? -std::expm1(-score[e] * score[e]) / (2 * score[e]) : S{0};
  }

  Score score_;
  WeightRule rule_;
  Index num_experts_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
