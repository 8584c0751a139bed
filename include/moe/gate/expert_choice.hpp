// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/routing/capacity/capacity_options.hpp"
#include "moe/routing/token_groups.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Working memory of ExpertChoiceGate.
template <class S>
struct ExpertChoices {
  RowBuffer<S> p;
  TokenGroups groups;
  std::vector<std::uint8_t> taken;         // [num_tokens, num_experts]: 1 where the expert takes the token
  std::vector<std::vector<Index>> chosen;  // per worker
};

}  // namespace detail

/// Experts choose: every expert takes the tokens that give it the largest probability, so that all experts are equally
/// busy. A token gets any number of experts from none to all of them, in ascending order.
///   p = softmax(logits), token by token      weight of a token that expert e takes: p_e as it is
/// Tokens compete within their step.group_id; ties go to the lower token. Of the T valid tokens of a group an expert
/// takes min(T, capacity), or with capacity = 0 min(T, ceil(factor * T / num_experts)). Masked experts (logit
/// -infinity) are not sent the token. What a token gets depends on the others, later ones too: not for autoregressive
/// inference. Gradients, selection frozen: those of SoftmaxGate with the chosen entries. Needs no balance loss.
/// Immutable, share freely. In parallel, O(num_tokens * num_experts * capacity / lanes), or with log capacity
/// for more than 512 places and 1024 tokens. Working memory, num_tokens * num_experts probabilities and bytes, is kept
/// in the context: warm calls do not allocate.
/// All members throw std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Zhou et al., "Mixture-of-experts with expert choice routing" (arXiv:2202.09368).
struct ExpertChoiceGate {
  double factor = 2;   ///< experts per token on average; > 0
  Index capacity = 0;  ///< tokens per expert and group; 0: by the factor

  static constexpr bool kPerToken = false;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  ExpertChoiceGate take(std::span<const Index>, Index) const { return *this; }  // nothing is an expert's own
  /// Every copy of an expert takes as many tokens as the expert did, each with its share of the weight.
  ExpertChoiceGate duplicate(Index times, Index) const {
    ExpertChoiceGate gate = *this;
    gate.factor *= static_cast<double>(times);
    return gate;
  }
  friend bool operator==(const ExpertChoiceGate&, const ExpertChoiceGate&) = default;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::ExpertChoiceGate: num_experts is ", num_experts, ", expected at least 1");
    if (!(factor > 0)) fail("moe::ExpertChoiceGate: factor is ", factor, ", expected > 0");
    if (capacity < 0) fail("moe::ExpertChoiceGate: capacity is ", capacity, ", expected at least 0");
  }

  /// Tokens that each expert takes of a group of num_tokens.
  Index places(Index num_tokens, Index num_experts) const {
    if (capacity > 0) return std::min(capacity, num_tokens);
    const auto tokens = static_cast<double>(num_tokens);
    const double share = detail::ceil_of(factor * tokens / static_cast<double>(num_experts));
    return share < tokens ? static_cast<Index>(share) : num_tokens;
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::ExpertChoiceGate::route";
    const Index num_tokens = logits.rows(), num_experts = logits.cols();
    validate(num_experts);
    auto& choices = context.scratch.get<detail::ExpertChoices<S>>();
    choices.p.resize(num_tokens, num_experts);
    detail::for_each_token<S>(kName, logits, context, 1, [&](const Token<S>& token) {
      softmax(token.logits.data(), num_experts, choices.p.row(token.index));
    });
    choose<S>(logits, context.step, choices);
    const auto takes = [&](Index t, Index e) {
      return choices.taken[static_cast<std::size_t>(t * num_experts + e)] != 0;
    };
    routing.resize_ragged(num_tokens, [&](Index t) {
      Index count = 0;
      for (Index e = 0; e < num_experts; ++e) count += takes(t, e) ? 1 : 0;
      return count;
    });
    parallel_ranges(num_tokens, detail::token_blocks(num_tokens).size, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        std::size_t slot = 0;
        for (Index e = 0; e < num_experts; ++e) {
          if (!takes(t, e)) continue;
          routing.experts(t)[slot] = e;
          routing.weights(t)[slot++] = choices.p.row(t)[e];
        }
      }
    });
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::ExpertChoiceGate::probabilities", detail::SoftmaxRule{}, logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::ExpertChoiceGate::replay", detail::SoftmaxRule{}, logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                ExpertChoiceGate& /*gradient*/) const {
    constexpr const char* kName = "moe::ExpertChoiceGate::backward";
    backward_tokens<S>(kName, detail::SoftmaxRule{}, logits, context, routing, dweight, dprobability, dlogits);
  }

 private:
  /// Fills choices.taken by choices.p.
  template <class S>
  void choose(const ConstMatrixRef<S>& logits, const Step& step, detail::ExpertChoices<S>& choices) const {
    const Index num_experts = logits.cols();
    choices.groups.build(logits.rows(), step);
    choices.taken.assign(static_cast<std::size_t>(logits.size()), 0);
    // Room for every worker, whichever tasks it will get: warm calls do not allocate.
    Index most = 0;
    for (Index g = 0; g < choices.groups.count(); ++g)
      most = std::max(most, places(std::ssize(choices.groups[g]), num_experts));
    choices.chosen.resize(std::max(choices.chosen.size(), static_cast<std::size_t>(num_workers())));
    for (std::vector<Index>& chosen : choices.chosen) chosen.reserve(static_cast<std::size_t>(most));
    parallel_for(num_experts * choices.groups.count(), [&](Index task, Index worker) {
      const Index e = task % num_experts;
      const std::span<const Index> token = choices.groups[task / num_experts];
      const auto token_of = [&](Index i) { return token[static_cast<std::size_t>(i)]; };
      const auto num_tokens = static_cast<Index>(token.size());
      std::vector<Index>& chosen = choices.chosen[static_cast<std::size_t>(worker)];
      chosen.resize(static_cast<std::size_t>(places(num_tokens, num_experts)));
      const auto score = [&](Index i) {
        const bool masked = logits(token_of(i), e) == -std::numeric_limits<S>::infinity();
        return masked ? -std::numeric_limits<S>::infinity() : choices.p.row(token_of(i))[e];
      };
      top_k(score, num_tokens, chosen);
      for (const Index i : chosen)
        if (score(i) >= 0) choices.taken[static_cast<std::size_t>(token_of(i) * num_experts + e)] = 1;
    });
  }
};

static_assert(DifferentiableGate<ExpertChoiceGate, float> && DifferentiableGate<ExpertChoiceGate, double>);

}  // namespace moe::inline MOE_ABI
