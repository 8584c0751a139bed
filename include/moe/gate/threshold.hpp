// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/score_weights.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

/// Where a token goes that no expert is active for: to its best expert, or to nobody, and the output is zero.
enum class Unclaimed { Best, Nobody };

namespace detail {

/// One token of a threshold gate.
template <class S, class G>
class ThresholdRule {
 public:
  ThresholdRule(const G& gate, Index num_experts)
      : gate_(gate), num_experts_(num_experts), scores_(gate.score, {}, num_experts) {
    gate.validate(num_experts);
  }

  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const S *z = token.logits.data(), *score = token.scratch.data();
    scores_.scores(z, token.scratch.data());
    std::size_t found = 0;
    for (Index e = 0; e < num_experts_; ++e)
      if (z[e] > kMasked && score[e] > threshold(e)) chosen[found++] = e;
    if (found > 0 || gate_.unclaimed == Unclaimed::Nobody) return static_cast<Index>(found);
    top_k(z, num_experts_, chosen.first(1));
    return z[chosen[0]] > kMasked ? 1 : -1;
  }

  void probabilities(const Token<S>& token, std::span<S> p) const { scores_.scores(token.logits.data(), p.data()); }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    if (gate_.weight == ChoiceWeight::Unit)
      std::ranges::fill(weights, S{1});
    else
      scores_.weigh(token.logits.data(), experts, token.scratch.data(), weights);
  }
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    const bool learns = gate_.weight == ChoiceWeight::Score;
    scores_.backward(token.logits.data(), learns ? choices : Choices<S>{}, token.scratch.data(), d.data());
  }

 private:
  static constexpr S kMasked = -std::numeric_limits<S>::infinity();

  S threshold(Index e) const {
    return static_cast<S>(gate_.thresholds.size() == 0 ? gate_.threshold : gate_.thresholds(e));
  }

  const G& gate_;
  Index num_experts_;
  ScoreWeights<S> scores_;
};

}  // namespace detail

/// Sends every token to all experts that are active for it, in ascending order: any number of them.
///   score_i = sigmoid(logits_i), softmax(logits)_i or sqrt(softplus(logits_i))
///   expert i is active where score_i > threshold, or > thresholds_i; a token without any goes to its best expert (ties
///   to the lower one), or with Unclaimed::Nobody nowhere
///   weight_i = score_i, or with ChoiceWeight::Unit 1
/// A logit of -infinity masks an expert; unless Nobody is allowed, at least one of each token must be finite. A binary
/// gate, as that of a correction that is added to an expert or not: {.unclaimed = Unclaimed::Nobody, .weight =
/// ChoiceWeight::Unit}.
/// Gradients, selection frozen, are those of the scores; with Unit the task teaches the router nothing, and other
/// losses on probabilities(), which are the scores, do. Thresholds are kept and not learned.
/// Immutable, share freely. O(num_experts) per token, done twice; allocates nothing when warm. All members throw
/// std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Guo et al., "Dynamic Mixture of Experts" (DynMoE, arXiv:2405.14297), whose thresholds are sigmoids of numbers that
/// learn by a straight-through estimator.
struct ThresholdGate {
  double threshold = 0.5;              ///< of all experts; finite
  Eigen::RowVectorXd thresholds = {};  ///< [num_experts], in the place of `threshold`, or empty
  Score score = Score::Sigmoid;
  Unclaimed unclaimed = Unclaimed::Best;
  ChoiceWeight weight = ChoiceWeight::Score;

  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn
  template <class F, class First, class... Rest>
  static void state(F&& f, First& first, Rest&... rest) {
    if (first.thresholds.size() != 0) f("thresholds", first.thresholds, rest.thresholds...);
  }

  /// Thresholds go with their experts.
  ThresholdGate take(std::span<const Index> ids, Index num_experts) const {
    validate(num_experts);
    ThresholdGate gate = *this;
    gate.thresholds = detail::take_entries("moe::ThresholdGate::take", thresholds, ids);
    return gate;
  }
  /// The thresholds of this gate, then those of `other`. Throws std::invalid_argument unless both have some, or none,
  /// and are equal in all else.
  ThresholdGate concatenate(const ThresholdGate& other, Index num_experts, Index other_num_experts) const {
    constexpr const char* kFunction = "moe::ThresholdGate::concatenate";
    validate(num_experts);
    other.validate(other_num_experts);
    detail::require_equal_option(kFunction, "threshold", threshold, other.threshold);
    detail::require_equal_option(kFunction, "score", score, other.score);
    detail::require_equal_option(kFunction, "unclaimed", unclaimed, other.unclaimed);
    detail::require_equal_option(kFunction, "weight", weight, other.weight);
    ThresholdGate gate = *this;
    gate.thresholds = detail::join_entries(kFunction, "thresholds", thresholds, other.thresholds);
    return gate;
  }

  /// Copies are active where their expert was, each with its share of the weight. Throws std::invalid_argument for
  /// several copies where they have no shares but of a softmax: but for Score::Softmax, ChoiceWeight::Score and
  /// Unclaimed::Nobody.
  ThresholdGate duplicate(Index times, Index num_experts) const;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::ThresholdGate: num_experts is ", num_experts, ", expected at least 1");
    if (!std::isfinite(threshold)) fail("moe::ThresholdGate: threshold is ", threshold, ", expected a finite number");
    detail::validate_bias("moe::ThresholdGate: thresholds", thresholds, num_experts);
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    route_tokens<S>("moe::ThresholdGate::route", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::ThresholdGate::probabilities", rule<S>(logits), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::ThresholdGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                ThresholdGate&) const {
    backward_tokens<S>("moe::ThresholdGate::backward", rule<S>(logits), logits, context, routing, dweight, dprobability,
                       dlogits);
  }

 private:
  template <class S>
  detail::ThresholdRule<S, ThresholdGate> rule(const Logits<S>& logits) const {
    return {*this, logits.cols()};
  }
};

inline ThresholdGate ThresholdGate::duplicate(Index times, Index num_experts) const {
  constexpr const char* kFunction = "moe::ThresholdGate::duplicate";
  validate(num_experts);
  detail::require_times(kFunction, times);
  if (times > 1 && (score != Score::Softmax || weight != ChoiceWeight::Score || unclaimed != Unclaimed::Nobody))
    fail(kFunction, ": ", times, " copies would not weigh what their expert did, expected Score::Softmax, ",
         "ChoiceWeight::Score and Unclaimed::Nobody");
  ThresholdGate gate = *this;
  gate.threshold = threshold / static_cast<double>(times);
  gate.thresholds.resize(detail::checked_product(kFunction, thresholds.size(), times));
  for (Index e = 0; e < gate.thresholds.size(); ++e)
    gate.thresholds(e) = thresholds(e / times) / static_cast<double>(times);
  return gate;
}

static_assert(DifferentiableGate<ThresholdGate, float> && DifferentiableGate<ThresholdGate, double>);

}  // namespace moe::inline MOE_ABI
