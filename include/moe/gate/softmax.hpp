// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <limits>
#include <numeric>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/weights.hpp"
#include "moe/numeric/softmax.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// One token of a softmax gate.
struct SoftmaxRule {
  template <class S>
  void probabilities(const Token<S>& token, std::span<S> p) const {
    softmax(token.logits.data(), std::ssize(token.logits), p.data());
  }
  template <class S>
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    probabilities(token, token.scratch);
    detail::weigh<S>(token.scratch.data(), experts, {}, weights);
  }
  template <class S>
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    probabilities(token, token.scratch);
    weigh_backward<S>(token.scratch.data(), choices, {}, d.data());
    softmax_backward(token.scratch.data(), d.data(), std::ssize(d), d.data());
  }
};

/// Routes every token to every expert, where none is masked and no token is padding: what a softmax gate does nearly
/// always, with one look at each logit. Returns whether that was so; the routing means nothing if not, which costs the
/// time until then and room for all choices.
template <class S>
bool route_to_all(const ConstMatrixRef<S>& logits, const Context& context, Routing<S>& routing) {
  if (!context.step.valid.empty()) return false;
  const Index num_tokens = logits.rows(), num_experts = logits.cols();
  routing.resize(num_tokens, num_experts);
  std::atomic<bool> all_finite{true};
  parallel_ranges(num_tokens, token_blocks(num_tokens).size, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t) {
      const S* row = logits.data() + t * logits.outerStride();
      if (count_finite(row, num_experts) < num_experts) {
        all_finite.store(false, std::memory_order_relaxed);
        return;
      }
      std::iota(routing.experts(t).begin(), routing.experts(t).end(), Index{0});
      softmax(row, num_experts, routing.weights(t).data());
    }
  });
  return all_finite;
}

/// Gives every valid token as many choices as it has finite logits. The counts lie in the routing itself until then.
template <class S>
void resize_to_finite(const ConstMatrixRef<S>& logits, const Context& context, Routing<S>& routing) {
  const Index num_tokens = logits.rows();
  routing.resize(num_tokens, 1);
  parallel_ranges(num_tokens, token_blocks(num_tokens).size, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t)
      routing.experts(t)[0] =
          context.step.is_valid(t) ? count_finite(logits.data() + t * logits.outerStride(), logits.cols()) : 0;
  });
  routing.resize_ragged(num_tokens, [&](Index t) { return routing.experts()[static_cast<std::size_t>(t)]; });
}

}  // namespace detail

/// Dense gate: every token goes to every expert with weight softmax(logits), experts in ascending order. An expert
/// whose logit is -infinity is not sent the token; at least one logit of a token must be finite.
///   dL/dlogits_i = p_i (a_i - sum_j a_j p_j),   a = dL/dweight + dL/dprobability
/// Immutable, share freely. Every call is O(num_tokens * num_experts) and allocates nothing when warm. All members
/// throw std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Jacobs, Jordan, Nowlan & Hinton, "Adaptive mixtures of local experts", Neural Computation 1991.
struct SoftmaxGate {
  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  SoftmaxGate take(std::span<const Index>, Index) const { return *this; }  // nothing is an expert's own
  /// Copies of an expert share its weight.
  SoftmaxGate duplicate(Index, Index) const { return *this; }
  friend bool operator==(const SoftmaxGate&, const SoftmaxGate&) = default;

  /// Throws std::invalid_argument unless there is an expert.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::SoftmaxGate: num_experts is ", num_experts, ", expected at least 1");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::SoftmaxGate::route";
    const Index num_experts = logits.cols();
    validate(num_experts);
    context.step.validate(kName, logits.rows());
    if (detail::route_to_all<S>(logits, context, routing)) return;
    detail::resize_to_finite<S>(logits, context, routing);
    detail::for_each_token<S>(kName, logits, context, 1, [&](const Token<S>& token) {
      const std::span<Index> experts = routing.experts(token.index);
      const std::span<S> weights = routing.weights(token.index), p = token.scratch;
      detail::SoftmaxRule{}.probabilities(token, p);
      std::size_t filled = 0;
      for (std::size_t e = 0; e < token.logits.size(); ++e) {
        if (token.logits[e] == -std::numeric_limits<S>::infinity()) continue;
        experts[filled] = static_cast<Index>(e);
        weights[filled++] = p[e];
      }
      return filled > 0;
    });
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::SoftmaxGate::probabilities", detail::SoftmaxRule{}, logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::SoftmaxGate::replay", detail::SoftmaxRule{}, logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                SoftmaxGate& /*gradient*/) const {
    backward_tokens<S>("moe::SoftmaxGate::backward", detail::SoftmaxRule{}, logits, context, routing, dweight,
                       dprobability, dlogits);
  }
};

static_assert(DifferentiableGate<SoftmaxGate, float> && DifferentiableGate<SoftmaxGate, double>);

}  // namespace moe::inline MOE_ABI
