// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/token_rule.hpp"
#include "moe/numeric/activation.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a ReLU gate.
struct ReluRule {
  template <class S>
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    std::size_t found = 0;
    for (std::size_t e = 0; e < token.logits.size(); ++e)
      if (token.logits[e] > S{0}) chosen[found++] = static_cast<Index>(e);
    return static_cast<Index>(found);
  }
  template <class S>
  void probabilities(const Token<S>& token, std::span<S> p) const {
    for (std::size_t e = 0; e < p.size(); ++e) p[e] = Relu::value(token.logits[e]);
  }
  template <class S>
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    for (std::size_t s = 0; s < experts.size(); ++s)
      weights[s] = Relu::value(token.logits[static_cast<std::size_t>(experts[s])]);
  }
  template <class S>
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    for (std::size_t s = 0; s < choices.size(); ++s)
      d[static_cast<std::size_t>(choices.expert(s))] += choices.dweight(s);
    for (std::size_t e = 0; e < d.size(); ++e)
      if (!(token.logits[e] > S{0})) d[e] = S{0};
  }
};

}  // namespace detail

/// Sends every token to all experts of positive logit, in ascending order, and nowhere if there is none: its output is
/// then zero.
///   weight_i = score_i = max(logits_i, 0)        dL/dlogits_i = [logits_i > 0] (dL/dweight_i + dL/dscore_i)
/// Weights are continuous where an expert starts or stops being chosen, and nothing is frozen but zeros: the router is
/// trained by the true gradient of what it does. How many experts a token takes is left to training: activation_loss()
/// with a coefficient that update_sparsity_coefficient() controls. For even loads, load_balancing_loss() on
/// probabilities(), which are the scores and do not sum to one, is the refined penalty of ReMoE up to a factor: what it
/// pulls down most is what is chosen most. A logit of -infinity masks an expert.
/// Immutable, share freely. O(num_experts) per token, done twice; allocates nothing when warm. All members throw
/// std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Wang, Zhu & Chen, "ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing" (arXiv:2412.14711).
struct ReluGate {
  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  ReluGate take(std::span<const Index>, Index) const { return *this; }  // nothing is an expert's own
  friend bool operator==(const ReluGate&, const ReluGate&) = default;

  /// Throws std::invalid_argument unless there is an expert.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::ReluGate: num_experts is ", num_experts, ", expected at least 1");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    validate(logits.cols());
    route_tokens<S>("moe::ReluGate::route", detail::ReluRule{}, logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::ReluGate::probabilities", detail::ReluRule{}, logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::ReluGate::replay", detail::ReluRule{}, logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                ReluGate&) const {
    backward_tokens<S>("moe::ReluGate::backward", detail::ReluRule{}, logits, context, routing, dweight, dprobability,
                       dlogits);
  }
};

static_assert(DifferentiableGate<ReluGate, float> && DifferentiableGate<ReluGate, double>);

}  // namespace moe::inline MOE_ABI
