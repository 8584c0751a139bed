// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "moe/gate/rule/weights.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

/// How a logit becomes a score: experts compete in the softmax, and do not in the sigmoid or in sqrt(softplus(logit)).
enum class Score { Softmax, Sigmoid, SqrtSoftplus };

/// What groups of experts are ranked by: sums of selection scores, or of logits (Megatron-LM where it takes the softmax
/// after the choice).
enum class GroupRank { Scores, Logits };

namespace detail {

/// One token of a top-K gate.
template <class S, class G>
class TopKRule {
 public:
  TopKRule(const G& gate, Index num_experts) : gate_(gate), num_experts_(num_experts) { gate.validate(num_experts); }

  /// Scores grow with logits: without a bias or a sum of scores the logits decide who is chosen, else rank() does.
  bool logits_decide() const { return gate_.selection_bias.size() == 0 && gate_.groups.count == 1; }

  /// The weights of a token are a function of the logits of its choices.
  bool logits_weigh() const { return logits_decide() && gate_.weight_bias.size() == 0 && !needs_scale(); }

  /// What experts are chosen by, -inf where they may not be; the logits themselves or in `scratch`, of which 2 E + 1
  /// scalars may be written.
  const S* rank(const S* row, S* scratch) const {
    if (logits_decide()) return row;
    const bool biased = gate_.selection_bias.size() != 0;
    if (biased || (gate_.groups.best > 1 && gate_.groups.rank == GroupRank::Scores))
      scores(row, scratch);
    else
      std::copy_n(row, num_experts_, scratch);
    for (Index e = 0; biased && e < num_experts_; ++e) scratch[e] += static_cast<S>(gate_.selection_bias(e));
    for (Index e = 0; e < num_experts_; ++e)
      if (row[e] == kMasked) scratch[e] = kMasked;
    if (gate_.groups.count > 1) keep_best_groups(scratch, scratch + num_experts_);
    return scratch;
  }

  Index choices(Index) const { return gate_.k; }

  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const S* ranks = rank(token.logits.data(), token.scratch.data());
    top_k(ranks, num_experts_, chosen);
    return ranks[chosen.back()] > kMasked ? std::ssize(chosen) : -1;
  }

  void probabilities(const Token<S>& token, std::span<S> p) const {
    scores(with_bias(token.logits.data(), token.scratch.data()), p.data());
  }

  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    const S* z = with_bias(token.logits.data(), token.scratch.data());
    if (!is_softmax_of_chosen()) {
      scores(z, token.scratch.data());
      detail::weigh<S>(token.scratch.data(), experts, rule(), weights);
      return;
    }
    softmax_of_chosen(z, experts, weights.data());
    for (S& weight : weights) weight *= static_cast<S>(gate_.scale);
  }

  /// weigh() of a token per lane, in place and with the same bits: from the logits of the experts that it has chosen,
  /// weight_bias included, and scale_of() its logits.
  void weigh_lanes(std::span<simd::Batch<S>> chosen, const SoftmaxScale<simd::Batch<S>>& scale) const {
    if (is_softmax_of_chosen()) {
      softmax_lanes<S>(chosen);
      for (auto& weight : chosen) weight = weight * simd::Batch<S>(static_cast<S>(gate_.scale));
      return;
    }
    for (auto& z : chosen) z = gate_.score == Score::Softmax ? scale(z) : score_of(z);
    weigh_chosen(chosen, rule());
  }

  /// The logits that weights are taken from.
  const S* with_bias(const S* row, S* scratch) const {
    if (gate_.weight_bias.size() == 0) return row;
    for (Index e = 0; e < num_experts_; ++e) scratch[e] = row[e] + static_cast<S>(gate_.weight_bias(e));
    return scratch;
  }

  /// Where a weight depends on all logits of a token through its softmax; elsewhere without meaning.
  SoftmaxScale<S> scale_of(const S* z) const {
    return needs_scale() ? softmax_scale(z, num_experts_) : SoftmaxScale<S>{0, 0};
  }
  bool needs_scale() const { return gate_.score == Score::Softmax && !is_softmax_of_chosen(); }

  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d_of_experts) const {
    S *d = d_of_experts.data(), *scratch = token.scratch.data();
    const S* z = with_bias(token.logits.data(), scratch);
    S* weight = scratch + num_experts_;
    const bool direct = is_softmax_of_chosen();
    if (direct) softmax_of_chosen(z, choices.experts, weight);
    scores(z, scratch);
    if (!direct) weigh_backward<S>(scratch, choices, rule(), d);
    scores_backward(scratch, d);
    if (direct) softmax_of_chosen_backward(weight, choices, d);
  }

 private:
  static constexpr S kMasked = -std::numeric_limits<S>::infinity();

  WeightRule rule() const { return {gate_.normalise, gate_.epsilon, gate_.scale, gate_.floor, gate_.norm_p}; }

  /// A softmax divided by the sum over the chosen is the softmax of the chosen logits: cheaper, and exact where all
  /// chosen probabilities underflow (a bias or a group limit may choose such experts).
  bool is_softmax_of_chosen() const {
    return gate_.score == Score::Softmax && gate_.normalise == Normalise::Sum && gate_.epsilon == 0 && gate_.floor == 0;
  }
  static void softmax_of_chosen(const S* z, std::span<const Index> experts, S* weight) {
    for (std::size_t s = 0; s < experts.size(); ++s) weight[s] = z[experts[s]];
    softmax(weight, static_cast<Index>(experts.size()), weight);
  }
  void softmax_of_chosen_backward(const S* weight, const Choices<S>& choices, S* d) const {
    S mean = 0;
    for (std::size_t s = 0; s < choices.size(); ++s) mean = simd::fma(choices.dweight(s), weight[s], mean);
    for (std::size_t s = 0; s < choices.size(); ++s)
      d[choices.expert(s)] += static_cast<S>(gate_.scale) * weight[s] * (choices.dweight(s) - mean);
  }

  void scores(const S* z, S* out) const {
    if (gate_.score == Score::Softmax) return softmax(z, num_experts_, out);
    simd::transform(num_experts_, z, out, [this](const simd::Batch<S>& x) { return score_of(x); });
  }
  /// Scores that are functions of their own logit.
  template <class V>
  V score_of(const V& x) const {
    return gate_.score == Score::Sigmoid ? Sigmoid::value(x) : simd::sqrt(Softplus::value(x));
  }
  void scores_backward(const S* score, S* d) const {
    if (gate_.score == Score::Softmax) return softmax_backward(score, d, num_experts_, d);
    if (gate_.score == Score::Sigmoid)
      for (Index e = 0; e < num_experts_; ++e) d[e] *= score[e] * (1 - score[e]);
    else  // sigmoid(z) / (2 score), where 1 + exp(z) = exp(score^2); 0 at score 0, where z is -infinity or near
      for (Index e = 0; e < num_experts_; ++e)
        d[e] *= score[e] > 0 ? -std::expm1(-score[e] * score[e]) / (2 * score[e]) : S{0};
  }

  /// Masks the experts of all but the `kept` best groups; ties go to the lower group. Masked experts add nothing to the
  /// sum of a group. `scratch`: a sum per group and a copy of one group.
  void keep_best_groups(S* rank, S* scratch) const {
    const auto [count, kept, best, by] = gate_.groups;
    const Index size = num_experts_ / count;
    S *sum = scratch, *rest = scratch + count;
    for (Index g = 0; g < count; ++g) {
      std::copy_n(rank + g * size, size, rest);
      S* largest = std::max_element(rest, rest + size);
      sum[g] = *largest;
      for (Index i = 1; i < best; ++i) {
        *largest = kMasked;
        largest = std::max_element(rest, rest + size);
        if (*largest > kMasked) sum[g] += *largest;
      }
    }
    for (Index g = 0; g < count; ++g) {
      Index better = 0;
      for (Index other = 0; other < count; ++other)
        better += sum[other] > sum[g] || (sum[other] == sum[g] && other < g);
      if (better >= kept) std::fill_n(rank + g * size, size, kMasked);
    }
  }

  const G& gate_;
  Index num_experts_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
