// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "moe/gate/rule/token_loop.hpp"

namespace moe::inline MOE_ABI {

/// The choices that a token has made, with their gradients.
template <class S>
struct Choices {
  std::span<const Index> experts;
  std::span<const std::uint8_t> dropped;
  std::span<const S> dweights;

  std::size_t size() const { return experts.size(); }
  Index expert(std::size_t s) const { return experts[s]; }
  /// dL/dweight of choice s; 0 where it was dropped.
  S dweight(std::size_t s) const { return dropped[s] ? S{0} : dweights[s]; }
};

/// How a gate that decides each token by itself treats one token. Whoever writes it gets the loops over tokens, in
/// parallel and with the same bits in any batch, masks, padding, reports of NaN, replay and backward from the functions
/// below; TokenGate makes a gate of it. Pure functions, called by several threads at once:
///   probabilities(token, p)          p[e] = score of expert e before selection, which balance losses use
///   select(token, chosen) -> Index   writes the experts that the token goes to into `chosen`, in order of choice, and
///                                    returns how many, or -1 if the logits do not allow it, as with too many masks
///   weigh(token, experts, weights)   the weight of each of the given experts
///   backward(token, choices, d)      in: d[e] = dL/dp[e]; out: d[e] = dL/dlogits[e], with that of the weights of the
///                                    choices; selection frozen
/// where `const Token<S>& token` has the logits [num_experts], finite or -infinity for a mask. Optional:
/// `Index choices(Index num_experts) const`, the number of experts that every token goes to: `chosen` has then so many
/// places, and select must fill them. Without it `chosen` has a place per logit, and select is called twice per token.
/// `Index num_experts(Index num_logits) const`, where a token has more logits than there are experts to score and to
/// choose: p has then that many scores, and d as many entries as logits, those behind the experts being 0 at first.
template <class T, class S>
concept TokenRule = requires(const T& rule, const Token<S>& token, std::span<Index> chosen,
                             std::span<const Index> experts, std::span<S> values, const Choices<S>& choices) {
  rule.probabilities(token, values);
  { rule.select(token, chosen) } -> std::convertible_to<Index>;
  rule.weigh(token, experts, values);
  rule.backward(token, choices, values);
};

namespace detail {

/// Experts of a rule whose tokens have so many logits.
template <class Rule>
Index num_experts_of([[maybe_unused]] const Rule& rule, Index num_logits) {
  if constexpr (requires { rule.num_experts(num_logits); })
    return rule.num_experts(num_logits);
  else
    return num_logits;
}

/// Room for k choices of every valid token.
template <class S>
void resize_top_k(const char* function, Index k, Index num_tokens, const Step& step, Routing<S>& routing) {
  step.validate(function, num_tokens);
  if (step.valid.empty()) return routing.resize(num_tokens, k);
  routing.resize_ragged(num_tokens, [&](Index t) { return step.is_valid(t) ? k : 0; });
}

/// Throws std::invalid_argument unless select() has given `count` experts: what follows trusts it.
inline void require_selected(const char* function, Index token, std::span<const Index> chosen, Index found, Index count,
                             Index num_experts) {
  if (found != count) fail(function, ": select() chose ", found, " experts for token ", token, ", expected ", count);
  for (const Index e : chosen)
    if (e < 0 || e >= num_experts)
      fail(function, ": select() chose expert ", e, " for token ", token,
           ", expected 0 <= expert < num_experts = ", num_experts);
}

/// One token, whose choices have their room; false if its logits do not allow them. The rule is one of the library.
template <class S, class Rule>
bool route_token(const Rule& rule, const Token<S>& token, Routing<S>& routing) {
  if (rule.select(token, routing.experts(token.index)) < 0) return false;
  rule.weigh(token, routing.experts(token.index), routing.weights(token.index));
  return true;
}

}  // namespace detail

/// Routes every valid token by the rule; `function` names the caller in messages. Throws std::invalid_argument for
/// logits of NaN or +infinity, and for those that the rule refuses.
template <class S, class Rule>
void route_tokens(const char* function, const Rule& rule, const MatrixView<S>& logits, const Context& context,
                  Routing<S>& routing) {
  const Index num_tokens = logits.rows(), num_logits = logits.cols();
  const Index num_experts = detail::num_experts_of(rule, num_logits);
  const auto weigh = [&](const Token<S>& token, Index found) {
    const std::span<Index> experts = routing.experts(token.index);
    detail::require_selected(function, token.index, experts, found, std::ssize(experts), num_experts);
    rule.weigh(token, experts, routing.weights(token.index));
  };
  if constexpr (requires { rule.choices(num_experts); }) {
    const Index k = rule.choices(num_experts);
    detail::resize_top_k(function, k, num_tokens, context.step, routing);
    detail::for_each_token<S>(function, logits, context, k, [&](const Token<S>& token) {
      const Index found = rule.select(token, routing.experts(token.index));
      if (found >= 0) weigh(token, found);
      return found >= 0;
    });
  } else {
    // The counts lie in the routing itself until it is sized.
    routing.resize(num_tokens, 1);
    detail::RowScratch<Index, 1> places(num_logits, context.scratch);
    const auto select = [&](const Token<S>& token, Index worker, const auto& use) {
      typename detail::RowScratch<Index, 1>::Worker own(places, worker);
      const Index found = rule.select(token, std::span(own.data(), static_cast<std::size_t>(num_logits)));
      if (found > num_experts)
        fail(function, ": select() chose ", found, " experts, expected at most num_experts = ", num_experts);
      use(own.data(), found);
      return found >= 0;
    };
    detail::for_each_token<S>(function, logits, context, 1, [&](const Token<S>& token, Index worker) {
      return select(token, worker, [&](const Index*, Index found) { routing.experts(token.index)[0] = found; });
    });
    routing.resize_ragged(num_tokens, [&](Index t) {
      return context.step.is_valid(t) ? routing.experts()[static_cast<std::size_t>(t)] : 0;
    });
    detail::for_each_token<S>(function, logits, context, 1, [&](const Token<S>& token, Index worker) {
      return select(token, worker, [&](const Index* chosen, Index found) {
        const std::span<Index> experts = routing.experts(token.index);
        std::copy_n(chosen, std::min(found, std::ssize(experts)), experts.data());
        weigh(token, found);
      });
    });
  }
}

/// p[t] = the rule's probabilities of token t, [num_tokens, num_experts]; zero for padding.
template <class S, class Rule>
void token_probabilities(const char* function, const Rule& rule, const MatrixView<S>& logits, const Context& context,
                         Matrix<S>& p) {
  const Index num_experts = detail::num_experts_of(rule, logits.cols());
  detail::resize_rows<S>(function, logits, num_experts, context.step, p);
  detail::for_each_token<S>(function, logits, context, 1, [&](const Token<S>& token) {
    rule.probabilities(token, std::span(p.row(token.index).data(), static_cast<std::size_t>(num_experts)));
  });
}

/// Weighs the choices that `routing` names anew; dropped ones keep weight 0.
template <class S, class Rule>
void replay_tokens(const char* function, const Rule& rule, const MatrixView<S>& logits, const Context& context,
                   Routing<S>& routing) {
  detail::require_routing(function, routing, logits.rows(), detail::num_experts_of(rule, logits.cols()));
  detail::for_each_token<S>(function, logits, context, 1, [&](const Token<S>& token) {
    const std::span<S> weights = routing.weights(token.index);
    rule.weigh(token, std::as_const(routing).experts(token.index), weights);
    for (std::size_t s = 0; s < weights.size(); ++s)
      if (routing.dropped(token.index)[s]) weights[s] = S{0};
  });
}

/// dlogits from dweight [num_assignments] and dprobability [num_tokens, num_experts] or empty; see DifferentiableGate.
template <class S, class Rule>
void backward_tokens(const char* function, Rule&& rule, const MatrixView<S>& logits, const Context& context,
                     const Routing<S>& routing, std::type_identity_t<std::span<const S>> dweight,
                     const MatrixView<S>& dprobability, Matrix<S>& dlogits) {
  const Index num_experts = detail::num_experts_of(rule, logits.cols());
  detail::require_routing(function, routing, logits.rows(), num_experts);
  if (static_cast<Index>(dweight.size()) != routing.num_assignments())
    fail(function, ": dweight has ", dweight.size(),
         " entries, expected one per assignment = ", routing.num_assignments());
  if (dprobability.size() != 0)
    detail::require_shape(function, "dprobability", dprobability, logits.rows(), num_experts);
  detail::require_apart(function, "dlogits", dlogits, "dprobability", dprobability);
  detail::resize_rows<S>(function, logits, logits.cols(), context.step, dlogits);
  detail::for_each_token<S>(function, logits, context, 1, [&](const Token<S>& token) {
    const Index t = token.index;
    const std::span<S> d(dlogits.row(t).data(), token.logits.size());
    const Index copied = dprobability.size() == 0 ? 0 : num_experts;
    if (copied > 0) std::copy_n(dprobability.data() + t * dprobability.outerStride(), copied, d.data());
    std::fill(d.begin() + copied, d.end(), S{0});
    const auto first = static_cast<std::size_t>(routing.begin(t)), count = routing.experts(t).size();
    rule.backward(token, Choices<S>{routing.experts(t), routing.dropped(t), dweight.subspan(first, count)}, d);
  });
}

}  // namespace moe::inline MOE_ABI
