// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/routing/balance/sinkhorn.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a Sinkhorn gate in training: the choices of a plan, the weights of a top-K gate.
template <class S>
class PlannedRule {
 public:
  PlannedRule(const TopKRule<S, TopKGate>& rule, const RowBuffer<S>& plan) : rule_(rule), plan_(plan) {}

  Index choices(Index num_experts) const { return rule_.choices(num_experts); }
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    constexpr S kMasked = -std::numeric_limits<S>::infinity();
    const auto score = [&](Index e) {
      return token.logits[static_cast<std::size_t>(e)] == kMasked ? kMasked : plan_.row(token.index)[e];
    };
    top_k(score, std::ssize(token.logits), chosen);
    return score(chosen.back()) > kMasked ? std::ssize(chosen) : -1;
  }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    rule_.weigh(token, experts, weights);
  }

 private:
  const TopKRule<S, TopKGate>& rule_;
  const RowBuffer<S>& plan_;
};

}  // namespace detail

/// S-BASE: in training a token goes to the k experts that have the largest share of it in the balanced plan of
/// sinkhorn(); at inference to those of its k largest logits. Weights and gradients are those of the top-K gate, of the
/// logits and never of the plan:
///   moe::SinkhornGate{}                                           // the best expert, by its softmax as it is
///   moe::SinkhornGate{.top_k = {.k = 1, .score = moe::Score::Sigmoid, .normalise = moe::Normalise::Off}}
///                                                                 // Megatron-LM, which has k = 2 with Softmax and Off
/// The plan is of all valid tokens of the batch, whatever their groups; what a token gets in training depends on the
/// others, later ones too. Loads are nearly, not exactly, equal, while the logits of experts lie within some 18
/// temperatures of each other (where the 1e-8 of sinkhorn() is small); BalancedGate makes them equal. Where shares are
/// as large, also where they underflow to 0 at low temperatures, the lower expert is taken. A logit of -infinity masks
/// an expert; a token needs k that are not masked. Immutable, share freely. In training as sinkhorn(); a warm call does
/// not allocate. All members throw std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Clark et al., "Unified scaling laws for routed language models" (arXiv:2202.01169).
struct SinkhornGate {
  TopKGate top_k = TopKGate::switch_transformer();  ///< without selection_bias and groups, as the plan selects
  SinkhornOptions balance = {};

  static constexpr bool kPerToken = false;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    top_k.validate(num_experts);
    balance.validate();
    if (top_k.selection_bias.size() != 0)
      fail("moe::SinkhornGate: selection_bias has ", top_k.selection_bias.size(),
           " entries, expected none, as the plan selects");
    if (top_k.groups.count != 1)
      fail("moe::SinkhornGate: groups.count is ", top_k.groups.count, ", expected 1, as the plan selects");
  }

  /// Throws std::invalid_argument where the top-K gate does; see TopKGate::constant_weights.
  void require_backward(Index num_experts) const { top_k.require_backward(num_experts); }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::SinkhornGate::route";
    validate(logits.cols());
    if (!context.step.training()) return top_k.route(logits, context, routing);
    auto& [workspace, plan] = context.scratch.get<Plan<S>>();
    sinkhorn<S>(logits, context.step, balance, workspace, plan);
    const detail::TopKRule<S, TopKGate> rule(top_k, logits.cols());
    route_tokens<S>(kName, detail::PlannedRule<S>(rule, plan), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    top_k.probabilities(logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    top_k.replay(logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                SinkhornGate& gradient) const {
    top_k.backward(logits, context, routing, dweight, dprobability, dlogits, gradient.top_k);
  }

  /// The top-K gate's.
  SinkhornGate take(std::span<const Index> ids, Index num_experts) const {
    return {top_k.take(ids, num_experts), balance};
  }
  /// The top-K gate's. Throws std::invalid_argument unless the options of the plan are equal, too.
  SinkhornGate concatenate(const SinkhornGate& other, Index num_experts, Index other_num_experts) const {
    detail::require_equal_option("moe::SinkhornGate::concatenate", "balance", balance, other.balance);
    return {top_k.concatenate(other.top_k, num_experts, other_num_experts), balance};
  }
  /// The top-K gate's, with which inference computes the same.
  SinkhornGate duplicate(Index times, Index num_experts) const {
    return {top_k.duplicate(times, num_experts), balance};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.top_k...);
  }

 private:
  template <class S>
  struct Plan {
    SinkhornWorkspace workspace;
    RowBuffer<S> plan;
  };
};

static_assert(DifferentiableGate<SinkhornGate, float> && DifferentiableGate<SinkhornGate, double>);

}  // namespace moe::inline MOE_ABI
