// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/token_rule.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/softmax.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a gate whose last `own` logits weigh its own experts once more.
class SelfGateRule {
 public:
  SelfGateRule(Index num_logits, Index own)
      : num_experts_(static_cast<std::size_t>(num_logits - own)), own_(static_cast<std::size_t>(own)) {}

  Index num_experts(Index) const { return static_cast<Index>(num_experts_); }

  template <class S>
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const auto is_finite = [](S logit) { return logit > -std::numeric_limits<S>::infinity(); };
    if (std::ranges::none_of(token.logits.first(num_experts_), is_finite)) return -1;
    if (own_ > 1 && std::ranges::none_of(token.logits.last(own_), is_finite)) return -1;
    std::size_t found = 0;
    for (std::size_t e = 0; e < num_experts_; ++e)
      if (is_finite(token.logits[e]) || (e >= first_own() && is_finite(token.logits[e + own_])))
        chosen[found++] = static_cast<Index>(e);
    return static_cast<Index>(found);
  }
  template <class S>
  void probabilities(const Token<S>& token, std::span<S> p) const {
    softmax(token.logits.data(), std::ssize(p), p.data());
  }
  template <class S>
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    const std::span<S> p = scores(token);
    for (std::size_t s = 0; s < experts.size(); ++s) {
      const auto e = static_cast<std::size_t>(experts[s]);
      weights[s] = e >= first_own() ? p[e] + p[e + own_] : p[e];
    }
  }
  template <class S>
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    const std::span<S> p = scores(token);
    for (std::size_t s = 0; s < choices.size(); ++s) {
      const auto e = static_cast<std::size_t>(choices.expert(s));
      d[e] += choices.dweight(s);
      if (e >= first_own()) d[e + own_] = choices.dweight(s);
    }
    softmax_backward(p.data(), d.data(), static_cast<Index>(num_experts_), d.data());
    const std::span<S> of_self = p.last(own_), dself = d.last(own_);
    if (own_ == 1)
      dself[0] *= Sigmoid::derivative(token.logits.back());
    else if (own_ > 1)
      softmax_backward(of_self.data(), dself.data(), static_cast<Index>(own_), dself.data());
  }

 private:
  std::size_t first_own() const { return num_experts_ - own_; }

  /// The softmax over all experts, then the self gate of one's own: a sigmoid of one, a softmax of several.
  template <class S>
  std::span<S> scores(const Token<S>& token) const {
    const std::span<S> p = token.scratch.first(token.logits.size());
    softmax(token.logits.data(), static_cast<Index>(num_experts_), p.data());
    const S* of_self = token.logits.data() + num_experts_;
    if (own_ == 1)
      p[num_experts_] = Sigmoid::value(*of_self);
    else if (own_ > 1)
      softmax(of_self, static_cast<Index>(own_), p.data() + num_experts_);
    return p;
  }

  std::size_t num_experts_, own_;
};

}  // namespace detail

/// SoftmaxGate with a self gate: a residual path to the last `own` of its experts, those that no other gate has, by
/// which they learn however the softmax turns out.
///   logits    [num_tokens, num_experts + own], those of the self gate last
///   weight_e  softmax(logits of all experts)_e, and for the last `own` experts plus s_e, where s = sigmoid(logit) with
///             own = 1 and softmax(logits of the self gate) otherwise
/// The router scores num_logits(num_experts). Weights sum to 1 and the sum of s. probabilities() are the softmax over
/// all experts. With own = 0 it is SoftmaxGate, bit for bit. A logit of -infinity takes an expert out of the softmax
/// that it stands in, and an expert out of both is not sent the token; one logit of each softmax must be finite.
/// Immutable, share freely. O(num_experts + own) per token, done twice; allocates nothing when warm. All members throw
/// std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou" (arXiv:2408.05430).
struct SelfGate {
  Index own = 1;  ///< in [0, num_experts]

  static constexpr bool kPerToken = true;

  Index num_logits(Index num_experts) const { return num_experts + own; }

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  /// The self gate goes with its experts, which stay the last ones. Throws std::invalid_argument for an id of them
  /// before one of others, and where one of several is left, or several are made of one: the self gate would be a
  /// sigmoid where it was a softmax, or the other way about.
  SelfGate take(std::span<const Index> ids, Index num_experts) const {
    constexpr const char* kFunction = "moe::SelfGate::take";
    validate(num_experts);
    detail::require_ids(kFunction, ids, num_experts);
    SelfGate gate{.own = 0};
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const bool is_own = ids[i] >= num_experts - own;
      if (gate.own > 0 && !is_own)
        fail(kFunction, ": ids[", i, "] is ", ids[i], " behind an expert of the self gate, expected these last");
      gate.own += is_own ? 1 : 0;
    }
    if (gate.own == 1 && own > 1)
      fail(kFunction, ": 1 of ", own, " experts of the self gate is left, expected none, or at least 2");
    if (gate.own > 1 && own == 1)
      fail(kFunction, ": the only expert of the self gate is named ", gate.own, " times, expected once at most");
    return gate;
  }
  /// Those of the experts, then those of the self gate.
  std::vector<Index> logits_of(std::span<const Index> ids, Index num_experts) const {
    std::vector<Index> columns(ids.begin(), ids.end());
    for (const Index id : ids)
      if (id >= num_experts - own) columns.push_back(id + own);
    return columns;
  }
  friend bool operator==(const SelfGate&, const SelfGate&) = default;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::SelfGate: num_experts is ", num_experts, ", expected at least 1");
    if (own < 0 || own > num_experts)
      fail("moe::SelfGate: own is ", own, ", expected 0 <= own <= num_experts = ", num_experts);
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    route_tokens<S>("moe::SelfGate::route", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::SelfGate::probabilities", rule<S>(logits), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::SelfGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                SelfGate& /*gradient*/) const {
    backward_tokens<S>("moe::SelfGate::backward", rule<S>(logits), logits, context, routing, dweight, dprobability,
                       dlogits);
  }

 private:
  template <class S>
  detail::SelfGateRule rule(const Logits<S>& logits) const {
    if (logits.cols() <= own)
      fail("moe::SelfGate: logits have ", logits.cols(), " columns, expected more than own = ", own);
    validate(logits.cols() - own);
    return {logits.cols(), own};
  }
};

static_assert(DifferentiableGate<SelfGate, float> && DifferentiableGate<SelfGate, double>);

}  // namespace moe::inline MOE_ABI
