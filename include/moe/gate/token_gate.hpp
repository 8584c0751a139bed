// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/token_rule.hpp"

namespace moe::inline MOE_ABI {

/// A gate made of the rule of one token, which is all that one writes: it routes, replays and trains.
///   moe::MoeLayer layer(router, moe::TokenGate{MyRule{.k = 2}}, experts);
/// The rule holds numbers and has nothing to learn; a gate with parameters calls the functions of
/// moe/gate/rule/token_rule.hpp itself. Optional: `void validate(Index num_experts) const` of the rule, and `take` and
/// `concatenate` as of gates (see moe/gate/concept.hpp). Immutable, share freely; allocates nothing when warm.
template <class Rule>
struct TokenGate {
  static_assert(TokenRule<Rule, float> || TokenRule<Rule, double>,
                "moe::TokenGate: a TokenRule needs `probabilities(token, p)`, `select(token, chosen)`, "
                "`weigh(token, experts, weights)` and `backward(token, choices, d)` "
                "(see moe/gate/rule/token_rule.hpp)");

  static_assert(!detail::HasVisitMember<Rule> && !HasState<Rule>,
                "moe::TokenGate: a rule with numbers to learn or to keep needs a gate of its own, which names them "
                "(see moe/gate/rule/token_rule.hpp)");

  Rule rule = {};

  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  /// The gate of the rule of those experts: what the rule's own take(ids, num_experts) gives, or the rule itself.
  TokenGate take(std::span<const Index> ids, Index num_experts) const
    requires detail::TakesGate<Rule>
  {
    return {detail::take_gate(rule, ids, num_experts)};
  }
  /// Likewise: the rule's own concatenate(), or the rule, which needs == and to be equal.
  TokenGate concatenate(const TokenGate& other, Index num_experts, Index other_num_experts) const
    requires detail::ConcatenatesGate<Rule>
  {
    return {detail::concatenate_gates(rule, other.rule, num_experts, other_num_experts)};
  }

  /// Throws std::invalid_argument where the rule does, and unless it chooses from 1 to num_experts experts.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::TokenGate: num_experts is ", num_experts, ", expected at least 1");
    if constexpr (requires { rule.validate(num_experts); }) rule.validate(num_experts);
    if constexpr (requires { rule.choices(num_experts); })
      if (const Index k = rule.choices(num_experts); k < 1 || k > num_experts)
        fail("moe::TokenGate: the rule makes ", k, " choices, expected 1 to num_experts = ", num_experts);
  }

  template <class S>
    requires TokenRule<Rule, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    validate(logits.cols());
    route_tokens<S>("moe::TokenGate::route", rule, logits, context, routing);
  }
  template <class S>
    requires TokenRule<Rule, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::TokenGate::probabilities", rule, logits, context, p);
  }
  template <class S>
    requires TokenRule<Rule, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::TokenGate::replay", rule, logits, context, routing);
  }
  template <class S>
    requires TokenRule<Rule, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                TokenGate& /*gradient*/) const {
    backward_tokens<S>("moe::TokenGate::backward", rule, logits, context, routing, dweight, dprobability, dlogits);
  }
};

template <class Rule>
TokenGate(Rule) -> TokenGate<Rule>;

}  // namespace moe::inline MOE_ABI
