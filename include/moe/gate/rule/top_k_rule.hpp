// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "moe/gate/rule/score_weights.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

/// What groups of experts are ranked by: sums of selection scores, or of logits (Megatron-LM where it takes the softmax
/// after the choice).
enum class GroupRank { Scores, Logits };

namespace detail {

/// One token of a top-K gate.
template <class S, class G>
class TopKRule {
 public:
  TopKRule(const G& gate, Index num_experts)
      : gate_(gate),
        num_experts_(num_experts),
        weights_(gate.score, {gate.normalise, gate.epsilon, gate.scale, gate.floor, gate.norm_p}, num_experts) {
    gate.validate(num_experts);
  }

  /// Scores grow with logits: without a bias or a sum of scores the logits decide who is chosen, else rank() does.
  bool logits_decide() const { return gate_.selection_bias.size() == 0 && gate_.groups.count == 1; }

  /// The weights of a token are a function of the logits of its choices.
  bool logits_weigh() const { return logits_decide() && gate_.weight_bias.size() == 0 && !weights_.needs_scale(); }

  /// What experts are chosen by, -inf where they may not be; the logits themselves or in `scratch`, of which 2 E + 1
  /// scalars may be written.
  const S* rank(const S* row, S* scratch) const {
    if (logits_decide()) return row;
    const bool biased = gate_.selection_bias.size() != 0;
    if (biased || (gate_.groups.best > 1 && gate_.groups.rank == GroupRank::Scores))
      weights_.scores(row, scratch);
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
    weights_.scores(with_bias(token.logits.data(), token.scratch.data()), p.data());
  }

  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    const S* z = with_bias(token.logits.data(), token.scratch.data());
    weights_.weigh(z, experts, token.scratch.data(), weights);
  }

  /// How logits, weight_bias included, become weights.
  const ScoreWeights<S>& weights() const { return weights_; }

  /// The logits that weights are taken from.
  const S* with_bias(const S* row, S* scratch) const {
    if (gate_.weight_bias.size() == 0) return row;
    for (Index e = 0; e < num_experts_; ++e) scratch[e] = row[e] + static_cast<S>(gate_.weight_bias(e));
    return scratch;
  }

  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d_of_experts) const {
    S* scratch = token.scratch.data();
    weights_.backward(with_bias(token.logits.data(), scratch), choices, scratch, d_of_experts.data());
  }

 private:
  static constexpr S kMasked = -std::numeric_limits<S>::infinity();

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
  ScoreWeights<S> weights_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
