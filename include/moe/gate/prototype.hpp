// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/score_weights.hpp"
#include "moe/gate/rule/taken_groups.hpp"
#include "moe/numeric/top_k.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a prototype gate.
template <class S>
class PrototypeRule {
 public:
  PrototypeRule(Index groups, Index k, Index num_experts) : groups_(groups), k_(k), size_(num_experts / groups) {}

  Index choices(Index) const { return groups_ * k_; }

  Index select(const Token<S>& token, std::span<Index> chosen) const {
    for (Index g = 0; g < groups_; ++g) {
      const std::span<Index> own = chosen.subspan(static_cast<std::size_t>(g * k_), static_cast<std::size_t>(k_));
      const S* z = token.logits.data() + g * size_;
      top_k(z, size_, own);
      if (z[own.back()] == -std::numeric_limits<S>::infinity()) return -1;
      for (Index& e : own) e += g * size_;
    }
    return std::ssize(chosen);
  }

  void probabilities(const Token<S>& token, std::span<S> p) const {
    for (Index first = 0; first < std::ssize(p); first += size_)
      softmax(token.logits.data() + first, size_, p.data() + first);
  }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    const std::span<S> p = token.scratch.first(token.logits.size());
    probabilities(token, p);
    detail::weigh<S>(p.data(), experts, {}, weights);
  }
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    const std::span<S> p = token.scratch.first(token.logits.size());
    probabilities(token, p);
    weigh_backward<S>(p.data(), choices, {}, d.data());
    for (Index first = 0; first < std::ssize(d); first += size_)
      softmax_backward(p.data() + first, d.data() + first, size_, d.data() + first);
  }

 private:
  Index groups_, k_, size_;
};

}  // namespace detail

/// Splits the experts into prototypes, each with a gate of its own: every token goes to the k best experts of each
/// prototype, prototype after prototype, ties to the lower expert. Prototype g has the num_experts / groups experts
/// from g * num_experts / groups on.
///   weight_i = softmax of the logits of i's prototype at i
/// so that a token has groups * k choices, whose weights sum to at most `groups`. With one prototype it is TopKGate{.k
/// = k, .normalise = Normalise::Off}, bit for bit. More choices than k at the price of small top-ks, and loads that are
/// even between prototypes. probabilities() are those softmaxes: a row sums to `groups`.
/// Gradients, selection frozen, are those of a softmax in each prototype: all logits learn, but those of prototypes of
/// one expert, whose weight is always 1. A logit of -infinity masks an expert; each prototype needs k that are not.
/// Immutable, share freely. O(k num_experts / lanes) per token; allocates nothing when warm. All members throw
/// std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Yang et al., "M6-T: Exploring Sparse Expert Models and Beyond" (arXiv:2105.15082; there k = 1).
struct PrototypeGate {
  Index groups = 1;                                            ///< divides num_experts
  Index k = 1;                                                 ///< in [1, num_experts / groups]
  ConstantWeights constant_weights = ConstantWeights::Refuse;  ///< in backward, where a capacity normalises weights

  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  /// The ids of each prototype stand together, equally many of each: prototypes are then those of the same experts.
  /// Throws std::invalid_argument otherwise, and where fewer than k are left of each.
  PrototypeGate take(std::span<const Index> ids, Index num_experts) const {
    constexpr const char* kFunction = "moe::PrototypeGate::take";
    validate(num_experts);
    detail::require_ids(kFunction, ids, num_experts);
    const PrototypeGate gate{detail::count_taken_groups(kFunction, ids, num_experts / groups), k, constant_weights};
    gate.validate(std::ssize(ids));
    return gate;
  }
  /// The prototypes of this gate, then those of `other`. Throws std::invalid_argument unless k, the size of
  /// prototypes and constant_weights are the same.
  PrototypeGate concatenate(const PrototypeGate& other, Index num_experts, Index other_num_experts) const {
    constexpr const char* kFunction = "moe::PrototypeGate::concatenate";
    validate(num_experts);
    other.validate(other_num_experts);
    detail::require_equal_option(kFunction, "k", k, other.k);
    detail::require_equal_option(kFunction, "the size of prototypes", num_experts / groups,
                                 other_num_experts / other.groups);
    detail::require_equal_option(kFunction, "constant_weights", constant_weights, other.constant_weights);
    return {groups + other.groups, k, constant_weights};
  }
  /// All copies of the k best experts of each prototype are chosen, each with its share of the weight.
  PrototypeGate duplicate(Index times, Index num_experts) const {
    constexpr const char* kFunction = "moe::PrototypeGate::duplicate";
    validate(num_experts);
    detail::require_times(kFunction, times);
    return {groups, detail::checked_product(kFunction, k, times), constant_weights};
  }
  friend bool operator==(const PrototypeGate&, const PrototypeGate&) = default;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    if (groups < 1 || groups > num_experts || num_experts % groups != 0)
      fail("moe::PrototypeGate: groups is ", groups, ", expected a divisor of num_experts = ", num_experts);
    if (k < 1 || k > num_experts / groups)
      fail("moe::PrototypeGate: k is ", k, ", expected 1 <= k <= experts of a prototype = ", num_experts / groups);
  }

  bool makes_one_choice() const { return groups == 1 && k == 1; }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    route_tokens<S>("moe::PrototypeGate::route", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::PrototypeGate::probabilities", rule<S>(logits), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::PrototypeGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                PrototypeGate&) const {
    backward_tokens<S>("moe::PrototypeGate::backward", rule<S>(logits), logits, context, routing, dweight, dprobability,
                       dlogits);
  }

 private:
  template <class S>
  detail::PrototypeRule<S> rule(const Logits<S>& logits) const {
    validate(logits.cols());
    return {groups, k, logits.cols()};
  }
};

static_assert(DifferentiableGate<PrototypeGate, float> && DifferentiableGate<PrototypeGate, double>);

}  // namespace moe::inline MOE_ABI
