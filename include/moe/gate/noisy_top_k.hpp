// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/top_k.hpp"

namespace moe::inline MOE_ABI {

/// Noise on logits. With Gumbel noise of scale 1 the choice of k experts is a draw of k without replacement from the
/// softmax of the logits.
enum class LogitNoise { Gaussian, Gumbel };

namespace detail {

/// One token of a noisy top-K gate: that of a top-K gate on other logits.
template <class S, class G>
class NoisyTopKRule {
 public:
  NoisyTopKRule(const G& gate, const Step& step, Index num_experts)
      : gate_(gate),
        step_(step),
        num_experts_(num_experts),
        rule_(gate.top_k, num_experts),
        random_(step.random(gate.noise == LogitNoise::Gumbel ? Purpose::Gumbel : Purpose::Noise)) {}

  /// Without noise it is the top-K gate on the logits as they are.
  bool is_clean() const { return !step_.training() || gate_.scale == 0; }
  const TopKRule<S, TopKGate>& clean() const { return rule_; }

  Index choices(Index) const { return gate_.top_k.k; }
  Index select(const Token<S>& token, std::span<Index> chosen) const { return rule_.select(noisy(token), chosen); }
  void probabilities(const Token<S>& token, std::span<S> p) const { rule_.probabilities(weighed(token), p); }
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    rule_.weigh(weighed(token), experts, weights);
  }
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    rule_.backward(weighed(token), choices, d);
  }

 private:
  /// The token with noise on its logits, which take the first row of its scratch.
  Token<S> noisy(const Token<S>& token) const {
    const auto size = static_cast<std::size_t>(num_experts_);
    const std::span<S> rest = token.scratch.subspan(size);
    if (is_clean()) return {token.index, token.logits, rest};
    const std::int64_t id = step_.id(token.index);
    const std::span<S> out = token.scratch.first(size);
    for (Index e = 0; e < num_experts_; ++e) {
      const double noise = gate_.noise == LogitNoise::Gumbel ? random_.gumbel(id, e) : random_.normal(id, e);
      const auto at = static_cast<std::size_t>(e);
      out[at] = token.logits[at] + static_cast<S>(gate_.scale * noise);
    }
    return {token.index, out, rest};
  }
  /// The one that the weights come from.
  Token<S> weighed(const Token<S>& token) const {
    if (gate_.weights == WeightLogits::Selection) return noisy(token);
    return {token.index, token.logits, token.scratch.subspan(static_cast<std::size_t>(num_experts_))};
  }

  const G& gate_;
  const Step& step_;
  Index num_experts_;
  TopKRule<S, TopKGate> rule_;
  RandomField random_;
};

}  // namespace detail

/// TopKGate that explores: in training it selects on logits + scale * noise, drawn per token and expert. The weights
/// are taken from the noisy logits (Shazeer et al., arXiv:1701.06538) or from the clean ones (DeepSpeed's "RSample").
/// Noise whose size is learnt is the router's business (Shazeer's H(x)); a fixed one of 1 / num_experts is V-MoE's
/// (arXiv:2106.05974). At inference it is the plain TopKGate, bit for bit. The noise is a function of the step and of
/// the token's id, hence kPerToken. Gradients pass the noise unchanged; `probabilities` are those that the weights come
/// from. Threads, cost and errors as for TopKGate.
struct NoisyTopKGate {
  TopKGate top_k = {};
  LogitNoise noise = LogitNoise::Gaussian;
  double scale = 1;  ///< standard deviation of Gaussian noise, factor of Gumbel noise; >= 0
  WeightLogits weights = WeightLogits::Selection;

  static constexpr bool kPerToken = true;

  /// Experts sampled without replacement from softmax(logits), weighed by the clean logits: Gumbel-top-K.
  /// Kool, van Hoof & Welling, "Stochastic beams and where to find them" (arXiv:1903.06059).
  static NoisyTopKGate gumbel(TopKGate top_k = {}) {
    return {.top_k = std::move(top_k), .noise = LogitNoise::Gumbel, .weights = WeightLogits::Clean};
  }

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    top_k.validate(num_experts);
    if (!(scale >= 0 && scale <= std::numeric_limits<float>::max()))
      fail("moe::NoisyTopKGate: scale is ", scale, ", expected >= 0 and finite in float");
  }

  /// As TopKGate::require_backward(): noise does not make weights of one choice vary.
  void require_backward(Index num_experts) const { top_k.require_backward(num_experts); }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::NoisyTopKGate::route";
    const auto noisy = rule<S>(logits, context.step);
    if (noisy.is_clean()) return detail::route_top_k_blocks<S>(kName, noisy.clean(), top_k.k, logits, context, routing);
    route_tokens<S>(kName, noisy, logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::NoisyTopKGate::probabilities", rule<S>(logits, context.step), logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::NoisyTopKGate::replay", rule<S>(logits, context.step), logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                NoisyTopKGate& gradient) const {
    constexpr const char* kName = "moe::NoisyTopKGate::backward";
    require_backward(logits.cols());
    backward_tokens<S>(kName, rule<S>(logits, context.step), logits, context, routing, dweight, dprobability, dlogits);
    if (top_k.weight_bias.size() != 0) detail::add_column_sums(kName, dlogits, gradient.top_k.weight_bias);
  }

  /// As TopKGate::take(). The noise on expert i is drawn for the number i, not for ids[i].
  NoisyTopKGate take(std::span<const Index> ids, Index num_experts) const {
    NoisyTopKGate gate = *this;
    gate.top_k = top_k.take(ids, num_experts);
    return gate;
  }
  /// As TopKGate::concatenate(), the noise being equal.
  NoisyTopKGate concatenate(const NoisyTopKGate& other, Index num_experts, Index other_num_experts) const {
    constexpr const char* kFunction = "moe::NoisyTopKGate::concatenate";
    detail::require_equal_option(kFunction, "noise", noise, other.noise);
    detail::require_equal_option(kFunction, "scale", scale, other.scale);
    detail::require_equal_option(kFunction, "weights", weights, other.weights);
    NoisyTopKGate gate = *this;
    gate.top_k = top_k.concatenate(other.top_k, num_experts, other_num_experts);
    return gate;
  }
  /// As TopKGate::duplicate(), at inference: in training the noise sets copies apart.
  NoisyTopKGate duplicate(Index times, Index num_experts) const {
    NoisyTopKGate gate = *this;
    gate.top_k = top_k.duplicate(times, num_experts);
    return gate;
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.top_k...);
  }

 private:
  template <class S>
  detail::NoisyTopKRule<S, NoisyTopKGate> rule(const Logits<S>& logits, const Step& step) const {
    validate(logits.cols());
    return {*this, step, logits.cols()};
  }
};

static_assert(DifferentiableGate<NoisyTopKGate, float> && DifferentiableGate<NoisyTopKGate, double>);

}  // namespace moe::inline MOE_ABI
