// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/score_weights.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a top-p gate.
template <class S, class G>
class TopPRule {
 public:
  TopPRule(const G& gate, Index num_experts)
      : num_experts_(num_experts),
        least_(gate.least),
        most_(gate.most == 0 ? num_experts : gate.most),
        enough_(gate.p == 1 ? std::numeric_limits<double>::infinity()
                            : gate.p - 8 * static_cast<double>(num_experts) * std::numeric_limits<S>::epsilon()),
        weights_(Score::Softmax, {.normalise = gate.normalise}, num_experts) {
    gate.validate(num_experts);
  }

  /// Ranks a few experts, and more of them if they do not suffice, which leaves the first ones as they are.
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const S *z = token.logits.data(), *p = token.scratch.data();
    softmax(z, num_experts_, token.scratch.data());
    double sum = 0;
    Index found = 0;
    for (Index ranked = 0; found < most_; ++found) {
      if (found >= least_ && sum >= enough_) break;
      if (found == ranked) {
        ranked = std::min(most_, 4 * std::max<Index>(ranked, 1));
        top_k(z, num_experts_, chosen.first(static_cast<std::size_t>(ranked)));
      }
      const Index e = chosen[static_cast<std::size_t>(found)];
      if (z[e] == -std::numeric_limits<S>::infinity()) break;
      sum += static_cast<double>(p[e]);
    }
    return found > 0 ? found : -1;
  }

  void probabilities(const Token<S>& token, std::span<S> p) const { weights_.scores(token.logits.data(), p.data()); }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    weights_.weigh(token.logits.data(), experts, token.scratch.data(), weights);
  }
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    weights_.backward(token.logits.data(), choices, token.scratch.data(), d.data());
  }

 private:
  Index num_experts_, least_, most_;
  double enough_;
  ScoreWeights<S> weights_;
};

}  // namespace detail

/// Sends every token to as many experts as it takes: the smallest set whose probabilities sum to p. A token of which
/// the router is sure costs one expert, one of which it is not costs several.
///   prob = softmax(logits)                  ranked by the logits, best first; ties go to the lower expert
///   choose the first n experts, the least n with prob_(1) + ... + prob_(n) >= p - 8 num_experts epsilon,
///          at least `least` and at most `most` of them; with p = 1 all of them up to `most`
///   weight_i = prob_i, or divided by their sum or norm over the choices (Normalise)
/// Epsilon is that of the scalar of the logits, so that a sum which is p but for its rounding is enough. A logit of
/// -infinity masks an expert, which is never chosen; at least one of each token must be finite. Without most the number
/// of experts of a token is not bounded: entropy_loss() keeps routers from flattening to get many of them, and
/// mean_active_experts() tells how many they are.
/// Gradients, selection frozen: dL/dlogits_i = sum_{j chosen} dw_j prob_j ([i = j] - prob_i): all logits learn; with
/// Normalise::Sum weights are a softmax over the chosen, and logits of the others get zero.
/// Immutable, share freely. route is O(num_experts n / lanes) per token, done twice, and allocates nothing when warm.
/// All members throw std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Huang et al., "Harder Tasks Need More Experts: Dynamic Routing in MoE Models" (arXiv:2403.07652; there p = 0.4).
struct TopPGate {
  double p = 0.4;   ///< in (0, 1]
  Index least = 1;  ///< experts of a token at least, where so many are not masked; in [1, num_experts]
  Index most = 0;   ///< and at most, in [least, num_experts]; 0: num_experts
  Normalise normalise = Normalise::Off;
  ConstantWeights constant_weights = ConstantWeights::Refuse;  ///< in backward, with most = 1 and weights normalised

  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  /// Nothing is an expert's own; limits must not exceed the experts that are left, of which most = 0 takes any number.
  TopPGate take(std::span<const Index> ids, Index num_experts) const {
    validate(num_experts);
    validate(std::ssize(ids));
    return *this;
  }
  friend bool operator==(const TopPGate&, const TopPGate&) = default;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    if (!(p > 0 && p <= 1)) fail("moe::TopPGate: p is ", p, ", expected 0 < p <= 1");
    if (least < 1 || least > num_experts)
      fail("moe::TopPGate: least is ", least, ", expected 1 <= least <= num_experts = ", num_experts);
    if (most != 0 && (most < least || most > num_experts))
      fail("moe::TopPGate: most is ", most, ", expected 0, or least = ", least,
           " <= most <= num_experts = ", num_experts);
    detail::require_norm_without_p("moe::TopPGate", normalise);
  }

  bool makes_one_choice() const { return most == 1; }

  /// Throws std::invalid_argument where the router of several experts would learn nothing; see constant_weights.
  void require_backward(Index num_experts) const {
    if (num_experts > 1 && makes_one_choice() && normalise != Normalise::Off &&
        constant_weights == ConstantWeights::Refuse)
      detail::fail_constant_weights("moe::TopPGate::backward");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    route_tokens<S>("moe::TopPGate::route", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& out) const {
    token_probabilities<S>("moe::TopPGate::probabilities", rule<S>(logits), logits, context, out);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::TopPGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                TopPGate&) const {
    require_backward(logits.cols());
    backward_tokens<S>("moe::TopPGate::backward", rule<S>(logits), logits, context, routing, dweight, dprobability,
                       dlogits);
  }

 private:
  template <class S>
  detail::TopPRule<S, TopPGate> rule(const Logits<S>& logits) const {
    return {*this, logits.cols()};
  }
};

static_assert(DifferentiableGate<TopPGate, float> && DifferentiableGate<TopPGate, double>);

}  // namespace moe::inline MOE_ABI
