// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/gate/concept.hpp"

namespace moe::inline MOE_ABI {

/// What becomes of the weight of choices that are skipped: it is lost, or shared out among the others of the token in
/// proportion to theirs, so that its weights have the sum they had.
enum class SkippedWeight { Lost, Shared };

namespace detail {

template <class S>
S sum_of_weights(const Routing<S>& routing, Index t) {
  S sum = 0;
  for (const S weight : routing.weights(t)) sum += weight;  // those of dropped choices are 0
  return sum;
}

/// Gives the weights of token t the sum that they had before choices were skipped, unless they sum to nothing.
template <class S>
void share_out(Routing<S>& routing, Index t, S former_sum) {
  const S sum = sum_of_weights(routing, t);
  if (!(sum > 0) || sum == former_sum) return;
  for (S& weight : routing.weights(t)) weight *= former_sum / sum;
}

/// The weight below which choices of token t are skipped: never that of one of its `least` heaviest. `scratch`: memory.
template <class S>
S light_weight(double min_ratio, Index least, const Routing<S>& routing, Index t, std::vector<S>& scratch) {
  scratch.clear();
  for (std::size_t s = 0; s < routing.weights(t).size(); ++s)
    if (!routing.dropped(t)[s]) scratch.push_back(routing.weights(t)[s]);
  if (std::ssize(scratch) <= least) return -std::numeric_limits<S>::infinity();
  std::nth_element(scratch.begin(), scratch.begin() + (least - 1), scratch.end(), std::greater<>{});
  const S heaviest = *std::max_element(scratch.begin(), scratch.begin() + least);
  return std::min(static_cast<S>(min_ratio) * heaviest, scratch[static_cast<std::size_t>(least - 1)]);
}

inline void validate_skipping(const char* function, double min_ratio, Index least) {
  if (!(min_ratio >= 0 && min_ratio <= 1)) fail(function, ": min_ratio is ", min_ratio, ", expected a value in [0, 1]");
  if (least < 1) fail(function, ": least is ", least, ", expected at least 1");
}

}  // namespace detail

/// Drops every choice of a token that weighs less than min_ratio times its heaviest, but for the `least` heaviest: all
/// stay with 0, with 1 only those that weigh as much as the heaviest. Dropped choices are marked kDroppedBySkipping;
/// choices that were dropped before stay as they are, and do not count.
/// Throws std::invalid_argument unless min_ratio is in [0, 1] and least at least 1. O(assignments), serial; allocates
/// nothing when warm.
template <class S>
void skip_light_choices(double min_ratio, Index least, SkippedWeight skipped, Routing<S>& routing) {
  detail::validate_skipping("moe::skip_light_choices", min_ratio, least);
  struct Weights {
    std::vector<S> weights;
  };
  std::vector<S>& scratch = routing.scratch().template get<Weights>().weights;
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    const S light = detail::light_weight(min_ratio, least, routing, t, scratch);
    const S former_sum = detail::sum_of_weights(routing, t);
    for (Index a = routing.begin(t); a < routing.end(t); ++a)
      if (const auto at = static_cast<std::size_t>(a); !routing.dropped()[at] && routing.weights()[at] < light)
        routing.drop(a, kDroppedBySkipping);
    if (skipped == SkippedWeight::Shared) detail::share_out(routing, t, former_sum);
  }
}

template <class G>
struct WithSkipping;

namespace detail {
template <class G>
inline constexpr bool kHasSkipping = false;
template <class G>
  requires requires(const G& any) { any.gate; }
inline constexpr bool kHasSkipping<G> = kHasSkipping<std::remove_cvref_t<decltype(G::gate)>>;
template <class G>
inline constexpr bool kHasSkipping<WithSkipping<G>> = true;
}  // namespace detail

/// Any gate whose light choices are skipped: those that weigh less than min_ratio times the heaviest of their token, of
/// which at least `least` stay. It saves the work of experts that would hardly count, by what the weights themselves
/// say: Lu et al. skip the second of two experts so, "min-p" is the same rule. In training and in inference, so that
/// what is trained is what is served; weights depend on the choices of their own token alone.
///   moe::WithSkipping<moe::TopKGate> gate{.gate = {.k = 8}, .min_ratio = 0.2, .least = 2};
/// Trainable if the gate is, the drops frozen. Its parameters and their names are the gate's. Immutable, share freely;
/// cost and errors are the gate's, and replay and backward run its replay once more.
/// Lu et al., "Not All Experts are Equal: Efficient Expert Pruning and Skipping for Mixture-of-Experts Large Language
/// Models" (arXiv:2402.14800; there the ratio is the median over a calibration set).
template <class G>
struct WithSkipping {
  static_assert(StatesPerToken<G>,
                "moe::WithSkipping: a Gate needs `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");
  static_assert(!detail::kHasSkipping<G>,
                "moe::WithSkipping: one rule of skipping is enough; the drops of two cannot be told apart");

  G gate = {};
  double min_ratio = 0.5;  ///< in [0, 1]; 0: none is skipped
  Index least = 1;         ///< choices of a token that stay, if it has so many; >= 1
  SkippedWeight skipped = SkippedWeight::Lost;

  static constexpr bool kPerToken = G::kPerToken;

  void validate(Index num_experts) const {
    if constexpr (requires { gate.validate(num_experts); }) gate.validate(num_experts);
    detail::validate_skipping("moe::WithSkipping", min_ratio, least);
  }

  /// As many as the gate wants.
  Index num_logits(Index num_experts) const
    requires detail::StatesNumLogits<G>
  {
    return gate.num_logits(num_experts);
  }

  /// Throws std::invalid_argument where the gate does; see TopKGate::constant_weights.
  void require_backward(Index num_experts) const {
    if constexpr (requires { gate.require_backward(num_experts); }) gate.require_backward(num_experts);
  }

  /// The gate's, with the same rule.
  WithSkipping take(std::span<const Index> ids, Index num_experts) const
    requires detail::TakesGate<G>
  {
    return {detail::take_gate(gate, ids, num_experts), min_ratio, least, skipped};
  }
  std::vector<Index> logits_of(std::span<const Index> ids, Index num_experts) const
    requires requires(const G& any) { any.logits_of(ids, num_experts); }
  {
    return gate.logits_of(ids, num_experts);
  }
  /// The gate's. Throws std::invalid_argument unless the rules are equal, too.
  WithSkipping concatenate(const WithSkipping& other, Index num_experts, Index other_num_experts) const
    requires detail::ConcatenatesGate<G>
  {
    constexpr const char* kFunction = "moe::WithSkipping::concatenate";
    detail::require_equal_option(kFunction, "min_ratio", min_ratio, other.min_ratio);
    detail::require_equal_option(kFunction, "least", least, other.least);
    detail::require_equal_option(kFunction, "skipped", skipped, other.skipped);
    return {detail::concatenate_gates(gate, other.gate, num_experts, other_num_experts), min_ratio, least, skipped};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    detail::validate_skipping("moe::WithSkipping::route", min_ratio, least);
    gate.route(logits, context, routing);
    skip_light_choices(min_ratio, least, skipped, routing);
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& out) const {
    gate.probabilities(logits, context, out);
  }

  /// Weights anew for the same choices with the same drops.
  template <class S>
    requires DifferentiableGate<G, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    const Routing<S>& chosen = before_skipping(logits, context, routing);
    for (std::size_t a = 0; a < chosen.weights().size(); ++a)
      routing.weights()[a] = routing.dropped()[a] ? S{0} : chosen.weights()[a];
    for (Index t = 0; skipped == SkippedWeight::Shared && t < routing.num_tokens(); ++t)
      detail::share_out(routing, t, detail::sum_of_weights(chosen, t));
  }

  /// The gate's backward for dL/d(weights before skipping); replays the gate.
  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                WithSkipping& gradient) const {
    if (dweight.size() != routing.weights().size())
      fail("moe::WithSkipping::backward: dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    const Routing<S>& chosen = before_skipping(logits, context, routing);
    std::vector<S>& dchosen = context.scratch.get<BeforeSkipping<S>>().dweight;
    dchosen.resize(dweight.size());
    for (Index t = 0; t < routing.num_tokens(); ++t) chosen_gradient<S>(t, chosen, routing, dweight, dchosen);
    gate.backward(logits, context, chosen, std::span<const S>(dchosen), dprobability, dlogits, gradient.gate);
  }

 private:
  template <class S>
  struct BeforeSkipping {
    Routing<S> routing;
    std::vector<S> dweight;
  };

  /// The gate's own routing: what has been skipped is back, with the weight that it had.
  template <class S>
  const Routing<S>& before_skipping(const Logits<S>& logits, const Context& context, const Routing<S>& routing) const {
    Routing<S>& chosen = context.scratch.get<BeforeSkipping<S>>().routing;
    chosen = routing;
    for (std::uint8_t& dropped : chosen.dropped())
      if (dropped == kDroppedBySkipping) dropped = 0;
    gate.replay(logits, context, chosen);
    return chosen;
  }

  /// dL/dw from dL/dw' of token t, where w'_i = w_i for choices that stay, and with Shared w_i B / K: B the sum of w
  /// over the gate's choices, K over those that stay. With M = sum of dL/dw'_j w_j / K over those that stay,
  ///   dL/dw_i = [i stays] (dL/dw'_i - M) B / K + M
  template <class S>
  void chosen_gradient(Index t, const Routing<S>& chosen, const Routing<S>& routing, std::span<const S> dweight,
                       std::vector<S>& result) const {
    const auto first = static_cast<std::size_t>(routing.begin(t)), last = static_cast<std::size_t>(routing.end(t));
    const auto weight = chosen.weights();
    S former_sum = 0, sum = 0, product = 0;
    for (std::size_t a = first; a < last; ++a) {
      const bool stays = !routing.dropped()[a];
      former_sum += weight[a];
      sum += stays ? weight[a] : S{0};
      product += stays ? dweight[a] * weight[a] : S{0};
      result[a] = stays ? dweight[a] : S{0};
    }
    if (skipped == SkippedWeight::Lost || !(sum > 0)) return;
    for (std::size_t a = first; a < last; ++a)
      result[a] = (routing.dropped()[a] ? S{0} : (dweight[a] - product / sum) * (former_sum / sum)) + product / sum;
  }
};

template <class G>
WithSkipping(G) -> WithSkipping<G>;
template <class G>
WithSkipping(G, double) -> WithSkipping<G>;

}  // namespace moe::inline MOE_ABI
