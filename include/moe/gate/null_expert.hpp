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

/// One token of a gate with null experts, whose logits stand behind those of the experts.
template <class S>
class NullExpertRule {
 public:
  NullExpertRule(Index num_logits, Index nulls, Index k, Normalise normalise)
      : num_experts_(num_logits - nulls), k_(k), weights_(Score::Softmax, {.normalise = normalise}, num_logits) {}

  Index num_experts(Index) const { return num_experts_; }

  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const S* z = token.logits.data();
    const std::span<Index> best = chosen.first(static_cast<std::size_t>(k_));
    top_k(z, std::ssize(token.logits), best);
    if (z[best[0]] == -std::numeric_limits<S>::infinity()) return -1;
    std::size_t found = 0;
    for (const Index e : best)
      if (e < num_experts_ && z[e] > -std::numeric_limits<S>::infinity()) chosen[found++] = e;
    return static_cast<Index>(found);
  }

  void probabilities(const Token<S>& token, std::span<S> p) const {
    weights_.scores(token.logits.data(), token.scratch.data());
    std::copy_n(token.scratch.data(), p.size(), p.data());
  }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    weights_.weigh(token.logits.data(), experts, token.scratch.data(), weights);
  }
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    weights_.backward(token.logits.data(), choices, token.scratch.data(), d.data());
  }

 private:
  Index num_experts_, k_;
  ScoreWeights<S> weights_;
};

}  // namespace detail

/// TopKGate with null experts, which cost nothing and give zero: every token makes k choices among num_experts experts
/// and `nulls` nulls, and those of nulls are no choices of the routing. So each token takes as many experts as it
/// needs, k at most, and one that chose only nulls takes none: its output is zero.
///   logits  [num_tokens, num_experts + nulls], those of the nulls last      ties go to the lower one
///   prob = softmax over all of them       weight_i = prob_i / sum of prob over the chosen experts, nulls not counted;
///                                         with Normalise::Off prob_i, which nulls take their share of
/// The router scores num_logits(num_experts). probabilities() are prob of the experts, [num_tokens, num_experts], whose
/// rows do not sum to one: load_balancing_loss() of them is least where all goes to nulls, and drives it there;
/// null_expert_loss() balances experts and nulls.
/// Gradients, selection frozen, are those of TopKGate; logits of nulls learn through Normalise::Off and through losses
/// on probabilities(). A logit of -infinity masks an expert or a null, and a token chooses among what is left, one at
/// least. With nulls = 0 it is TopKGate, bit for bit.
/// Immutable, share freely. O(k num_logits / lanes) per token, done twice; allocates nothing when warm. All members
/// throw std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Zeng et al., "AdaMoE: Token-Adaptive Routing with Null Experts for Mixture-of-Experts Language Models"
/// (arXiv:2406.13233).
struct NullExpertGate {
  Index k = 2;      ///< in [1, num_experts + nulls]
  Index nulls = 1;  ///< >= 0
  Normalise normalise = Normalise::Sum;
  ConstantWeights constant_weights = ConstantWeights::Refuse;  ///< in backward, see require_backward()

  static constexpr bool kPerToken = true;

  Index num_logits(Index num_experts) const { return num_experts + nulls; }

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  /// The nulls stay. Throws std::invalid_argument where fewer than k logits are left.
  NullExpertGate take(std::span<const Index> ids, Index num_experts) const {
    validate(num_experts);
    validate(std::ssize(ids));
    return *this;
  }
  /// Those of the experts, then those of all nulls.
  std::vector<Index> logits_of(std::span<const Index> ids, Index num_experts) const {
    std::vector<Index> columns(ids.begin(), ids.end());
    for (Index null = 0; null < nulls; ++null) columns.push_back(num_experts + null);
    return columns;
  }
  friend bool operator==(const NullExpertGate&, const NullExpertGate&) = default;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::NullExpertGate: num_experts is ", num_experts, ", expected at least 1");
    if (nulls < 0) fail("moe::NullExpertGate: nulls is ", nulls, ", expected at least 0");
    if (k < 1 || k > num_logits(num_experts))
      fail("moe::NullExpertGate: k is ", k, ", expected 1 <= k <= num_experts + nulls = ", num_logits(num_experts));
    detail::require_norm_without_p("moe::NullExpertGate", normalise);
  }

  /// Throws std::invalid_argument where the router would learn nothing: it has more than one logit, but tokens choose
  /// one expert at most (k = 1, or a single expert beside nulls), whose weight is normalised; see constant_weights.
  void require_backward(Index num_experts) const {
    if (num_logits(num_experts) > 1 && std::min(k, num_experts) == 1 && normalise != Normalise::Off &&
        constant_weights == ConstantWeights::Refuse)
      detail::fail_constant_weights("moe::NullExpertGate::backward");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    route_tokens<S>("moe::NullExpertGate::route", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::NullExpertGate::probabilities", rule<S>(logits), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::NullExpertGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                NullExpertGate&) const {
    require_backward(logits.cols() - nulls);
    backward_tokens<S>("moe::NullExpertGate::backward", rule<S>(logits), logits, context, routing, dweight,
                       dprobability, dlogits);
  }

 private:
  template <class S>
  detail::NullExpertRule<S> rule(const Logits<S>& logits) const {
    if (logits.cols() <= nulls)
      fail("moe::NullExpertGate: logits have ", logits.cols(), " columns, expected more than nulls = ", nulls);
    validate(logits.cols() - nulls);
    return {logits.cols(), nulls, k, normalise};
  }
};

static_assert(DifferentiableGate<NullExpertGate, float> && DifferentiableGate<NullExpertGate, double>);

}  // namespace moe::inline MOE_ABI
