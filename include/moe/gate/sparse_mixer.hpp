// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cmath>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/top_k_rule.hpp"

namespace moe::inline MOE_ABI {

struct SparseMixerGate;

namespace detail {

/// One token of the SparseMixer gate.
template <class S>
class SparseMixerRule {
 public:
  SparseMixerRule(S threshold, Index num_experts) : threshold_(threshold), num_experts_(num_experts) {}

  Index choices(Index) const { return 2; }

  Index select(const Token<S>& token, std::span<Index> chosen) const {
    const S* row = token.logits.data();
    top_k(row, num_experts_, chosen);
    return row[chosen.back()] > kMasked ? std::ssize(chosen) : -1;
  }

  void probabilities(const Token<S>& token, std::span<S> p) const {
    softmax(token.logits.data(), num_experts_, p.data());
  }

  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    S* scratch = token.scratch.data();
    for (std::size_t s = 0; s < experts.size(); ++s) {
      softmax_of_pass(token.logits.data(), experts, s, scratch);
      weights[s] = scratch[experts[s]];
    }
  }

  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d_of_experts) const {
    const S* row = token.logits.data();
    S *d = d_of_experts.data(), *scratch = token.scratch.data();
    softmax(row, num_experts_, scratch);
    softmax_backward(scratch, d, num_experts_, d);
    for (std::size_t s = 0; s < choices.size(); ++s) {
      softmax_of_pass(row, choices.experts, s, scratch);
      const Index chosen = choices.expert(s);
      const S slope = choices.dweight(s) * scratch[chosen];
      for (Index e = 0; e < num_experts_; ++e) d[e] += slope * ((e == chosen ? S{1} : S{0}) - scratch[e]);
    }
  }

 private:
  static constexpr S kMasked = -std::numeric_limits<S>::infinity();

  /// p = softmax of the logits that pass `s` leaves unmasked, p[experts[s]] being its weight.
  void softmax_of_pass(const S* row, std::span<const Index> experts, std::size_t s, S* p) const {
    const S best = row[experts[s]];
    for (Index e = 0; e < num_experts_; ++e) {
      const S scale = std::max(std::abs(row[e]), best);
      const bool is_far = scale > 0 && (best - row[e]) / scale > threshold_;
      p[e] = is_far ? kMasked : row[e];
    }
    for (std::size_t earlier = 0; earlier < s; ++earlier) p[experts[earlier]] = kMasked;
    softmax(p, num_experts_, p);
  }

  S threshold_;
  Index num_experts_;
};

}  // namespace detail

/// Sends every token to its two best experts in two passes, as Phi-3.5-MoE does in inference; ties go to the lower
/// expert.
///   pass 1   i1 = argmax z,                 w1 = softmax of z at i1 over the experts with
///                                           (z_i1 - z_e) / max(|z_e|, z_i1) <= 2 * jitter
///   pass 2   i2 = argmax z without i1,      w2 the same with i2, without i1
/// The weights are not normalised against each other: both are near 1 where few experts come close. With the sets
/// frozen the gradient is that of two softmaxes; the sampling and the estimator of the training of SparseMixer are not
/// part of it. probabilities() is the softmax over all experts. Needs num_experts >= 2.
/// Immutable, share freely. O(num_experts) per token; allocates nothing when warm.
/// All members throw std::invalid_argument for a NaN or +infinity in the logits of a valid token.
/// Liu, Gao & Chen, "Sparse Backpropagation for MoE Training" (arXiv:2310.00811); Phi-3 (arXiv:2404.14219).
struct SparseMixerGate {
  double jitter = 0.01;  ///< >= 0: how far below the best a logit may be, relative, to stay in the softmax (half of it)

  static constexpr bool kPerToken = true;
  static constexpr Index kChoices = 2;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  SparseMixerGate take(std::span<const Index>, Index) const { return *this; }  // nothing is an expert's own
  friend bool operator==(const SparseMixerGate&, const SparseMixerGate&) = default;

  /// Throws std::invalid_argument unless num_experts >= 2 and jitter is finite and at least 0.
  void validate(Index num_experts) const {
    if (num_experts < kChoices) fail("moe::SparseMixerGate: num_experts is ", num_experts, ", expected at least 2");
    if (!(jitter >= 0 && std::isfinite(jitter)))
      fail("moe::SparseMixerGate: jitter is ", jitter, ", expected a finite number >= 0");
  }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    route_tokens<S>("moe::SparseMixerGate::route", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::SparseMixerGate::probabilities", rule<S>(logits), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::SparseMixerGate::replay", rule<S>(logits), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                SparseMixerGate&) const {
    backward_tokens<S>("moe::SparseMixerGate::backward", rule<S>(logits), logits, context, routing, dweight,
                       dprobability, dlogits);
  }

 private:
  template <class S>
  detail::SparseMixerRule<S> rule(const Logits<S>& logits) const {
    validate(logits.cols());
    return {static_cast<S>(2 * jitter), logits.cols()};
  }
};

static_assert(DifferentiableGate<SparseMixerGate, float> && DifferentiableGate<SparseMixerGate, double>);

}  // namespace moe::inline MOE_ABI
