// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/score_weights.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a rank gate.
template <class S>
class RankRule {
 public:
  RankRule(std::span<const Index> ranks, Normalise normalise, Index num_experts)
      : ranks_(ranks), num_experts_(num_experts), weights_(Score::Softmax, {.normalise = normalise}, num_experts) {}

  Index choices(Index) const { return std::ssize(ranks_); }

  /// Takes the best expert out of a copy of the logits until that of the last rank has been found.
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    S* left = token.scratch.data();
    std::ranges::copy(token.logits, left);
    const Index last = *std::ranges::max_element(ranks_);
    for (Index rank = 0; rank <= last; ++rank) {
      Index best = 0;
      top_k(left, num_experts_, std::span(&best, 1));
      if (left[best] == kMasked) return -1;
      left[best] = kMasked;
      for (std::size_t s = 0; s < ranks_.size(); ++s)
        if (ranks_[s] == rank) chosen[s] = best;
    }
    return std::ssize(chosen);
  }

  void probabilities(const Token<S>& token, std::span<S> p) const { weights_.scores(token.logits.data(), p.data()); }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    weights_.weigh(token.logits.data(), experts, token.scratch.data(), weights);
  }
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    weights_.backward(token.logits.data(), choices, token.scratch.data(), d.data());
  }

 private:
  static constexpr S kMasked = -std::numeric_limits<S>::infinity();

  std::span<const Index> ranks_;
  Index num_experts_;
  ScoreWeights<S> weights_;
};

}  // namespace detail

/// Sends every token to the experts of given ranks: choice s is the expert whose logit is the ranks[s]-th largest,
/// counted from 0; ties go to the lower expert. {0, 1} is TopKGate{.k = 2}, bit for bit; {1} is what the literature
/// calls rank 2. The second, weaker routing of a trained layer, over the same router and experts, that self-contrast
/// subtracts, and a way to see what the experts know that are not chosen.
///   prob = softmax(logits)      weight_i = prob_i divided by their sum over the choices, or as Normalise says
/// A logit of -infinity masks an expert, which has no rank; each token needs as many others as the largest rank asks.
/// Gradients, selection frozen, are those of TopKGate.
/// Immutable, share freely. O((1 + largest rank) num_experts / lanes) per token; allocates nothing when warm. All
/// members throw std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Shi et al., "Unchosen Experts Can Contribute Too: Unleashing MoE Models' Power by Self-Contrast" (arXiv:2405.14507;
/// its text counts ranks from 1, its code from 0).
struct RankGate {
  std::vector<Index> ranks = {1};  ///< distinct, each in [0, num_experts)
  Normalise normalise = Normalise::Sum;
  ConstantWeights constant_weights = ConstantWeights::Refuse;  ///< in backward, with one rank and weights normalised

  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  /// Nothing is an expert's own; every rank must still be there.
  RankGate take(std::span<const Index> ids, Index num_experts) const {
    validate(num_experts);
    validate(std::ssize(ids));
    return *this;
  }
  /// Throws std::invalid_argument unless both are equal.
  RankGate concatenate(const RankGate& other, Index num_experts, Index other_num_experts) const {
    validate(num_experts);
    other.validate(other_num_experts);
    detail::require_equal_option("moe::RankGate::concatenate", "the gate", *this, other);
    return *this;
  }
  /// The ranks of all copies, each of which has its share of the weight. Throws std::invalid_argument for several
  /// copies with Normalise::Euclidean, under which they would weigh more than the expert.
  RankGate duplicate(Index times, Index num_experts) const;
  friend bool operator==(const RankGate&, const RankGate&) = default;

  /// Throws std::invalid_argument, naming the first number that is out of range; one expert has no ranks.
  void validate(Index num_experts) const {
    if (num_experts < 2) fail("moe::RankGate: num_experts is ", num_experts, ", expected at least 2");
    if (ranks.empty()) fail("moe::RankGate: 0 ranks, expected at least 1");
    for (std::size_t s = 0; s < ranks.size(); ++s) {
      if (ranks[s] < 0 || ranks[s] >= num_experts)
        fail("moe::RankGate: ranks[", s, "] is ", ranks[s], ", expected 0 <= rank < num_experts = ", num_experts);
      const auto end = ranks.begin() + static_cast<std::ptrdiff_t>(s);
      if (const auto same = std::find(ranks.begin(), end, ranks[s]); same != end)
        fail("moe::RankGate: ranks[", s, "] is ", ranks[s], " as ranks[", same - ranks.begin(),
             "], expected distinct ranks");
    }
    detail::require_norm_without_p("moe::RankGate", normalise);
  }

  bool makes_one_choice() const { return ranks.size() == 1; }

  /// Throws std::invalid_argument where the router would learn nothing; see constant_weights.
  void require_backward(Index) const {
    if (makes_one_choice() && normalise != Normalise::Off && constant_weights == ConstantWeights::Refuse)
      detail::fail_constant_weights("moe::RankGate::backward");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    route_tokens<S>("moe::RankGate::route", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::RankGate::probabilities", rule<S>(logits), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::RankGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                RankGate&) const {
    require_backward(logits.cols());
    backward_tokens<S>("moe::RankGate::backward", rule<S>(logits), logits, context, routing, dweight, dprobability,
                       dlogits);
  }

 private:
  template <class S>
  detail::RankRule<S> rule(const Logits<S>& logits) const {
    validate(logits.cols());
    return {ranks, normalise, logits.cols()};
  }
};

inline RankGate RankGate::duplicate(Index times, Index num_experts) const {
  constexpr const char* kFunction = "moe::RankGate::duplicate";
  validate(num_experts);
  detail::require_times(kFunction, times);
  if (times > 1 && normalise == Normalise::Euclidean)
    fail(kFunction, ": weights are normalised by their Euclidean norm, expected their sum, or Normalise::Off");
  RankGate gate = *this;
  gate.ranks.clear();
  for (const Index rank : ranks)
    for (Index copy = 0; copy < times; ++copy)
      gate.ranks.push_back(detail::checked_product(kFunction, rank, times) + copy);
  return gate;
}

static_assert(DifferentiableGate<RankGate, float> && DifferentiableGate<RankGate, double>);

}  // namespace moe::inline MOE_ABI
