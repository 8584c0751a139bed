// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "moe/gate/rule/temperature.hpp"
#include "moe/gate/rule/weights.hpp"
#include "moe/numeric/softmax.hpp"

namespace moe::inline MOE_ABI {

/// What an annealed gate does at inference: the best expert alone, or every expert of positive probability.
enum class AtInference { TopOne, Dense };

namespace detail {

struct NoTransform {
  template <class S>
  void operator()(const S* row, Index num_experts, S* z) const {
    std::copy_n(row, num_experts, z);
  }
};

/// One token of a gate that anneals z = transform(logits).
template <class S, class G, class Transform = NoTransform>
class TemperedRule {
 public:
  /// `name`: of the gate, in messages.
  TemperedRule(const char* name, const G& gate, const Step& step, const ConstMatrixRef<S>& logits,
               Transform transform = {})
      : gate_(gate),
        step_(step),
        num_experts_(logits.cols()),
        transform_(transform),
        random_(step.random(Purpose::Gumbel)),
        dtau_(token_blocks(logits.rows())) {
    gate.validate(num_experts_, name);
    tau_ = gate.tau(step);
    require_temperature(name, tau_, " at this update");
  }

  bool chooses_one() const {
    return step_.training() ? step_.update >= gate_.hard_from : gate_.at_inference == AtInference::TopOne;
  }

  /// Number of experts the token is sent to, or 0 if all are masked.
  Index count(const Token<S>& token) const {
    Index count = 0;
    for_each_chosen(token, token.scratch.data(), [&](Index) { ++count; });
    return count;
  }

  /// Chooses as many experts as there is room for, which is what count() told, and weighs them.
  bool choose(const Token<S>& token, std::span<Index> experts, std::span<S> weights) const {
    std::size_t filled = 0;
    for_each_chosen(token, token.scratch.data(), [&](Index e) { experts[filled++] = e; });
    if (filled == 0) return false;
    if (gate_.weights == WeightLogits::Selection)
      detail::weigh<S>(token.scratch.data(), experts, {}, weights);
    else
      weigh(token, experts, weights);
    return true;
  }

  void probabilities(const Token<S>& token, std::span<S> p) const { probabilities(token, p.data()); }

  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    S* p = token.scratch.data() + num_experts_;
    if (gate_.weights == WeightLogits::Selection)
      probabilities(token, p);
    else
      clean_softmax(token, p);
    detail::weigh<S>(p, experts, {}, weights);
  }

  /// d becomes dL/dz; dL/dtau is added up for dtau().
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d_of_experts) {
    S *z = token.scratch.data(), *p = z + num_experts_, *dclean = z + 2 * num_experts_, *d = d_of_experts.data();
    const bool clean = gate_.weights == WeightLogits::Clean;
    probabilities(token, p);
    if (!clean) weigh_backward<S>(p, choices, {}, d);
    softmax_backward(p, d, num_experts_, d);
    for (Index e = 0; e < num_experts_; ++e) d[e] = static_cast<S>(static_cast<double>(d[e]) / tau_);
    if constexpr (LearnableSchedule<decltype(G::temperature)>) dtau_.of(token.index) += tau_gradient(z, d);
    if (!clean) return;
    clean_softmax(token, p);
    std::fill_n(dclean, num_experts_, S{0});
    weigh_backward<S>(p, choices, {}, dclean);
    softmax_backward(p, dclean, num_experts_, dclean);
    for (Index e = 0; e < num_experts_; ++e) d[e] += dclean[e];
  }

  /// dL/dtau over all tokens that went through backward().
  double dtau() const { return dtau_.total(); }

 private:
  static constexpr S kMasked = -std::numeric_limits<S>::infinity();

  /// Leaves z in the first row of the scratch.
  void probabilities(const Token<S>& token, S* p) const {
    perturbed(token, token.scratch.data());
    softmax_tempered(token.scratch.data(), num_experts_, tau_, p);
  }

  void perturbed(const Token<S>& token, S* z) const {
    transform_(token.logits.data(), num_experts_, z);
    if (!step_.training() || gate_.gumbel == 0) return;
    for (Index e = 0; e < num_experts_; ++e)
      z[e] += static_cast<S>(gate_.gumbel * random_.gumbel(step_.id(token.index), e));
  }

  void clean_softmax(const Token<S>& token, S* p) const {
    transform_(token.logits.data(), num_experts_, p);
    softmax(p, num_experts_, p);
  }

  /// Leaves the probabilities in `p`. The best expert is taken from z, as probabilities tie when they underflow.
  template <class F>
  void for_each_chosen(const Token<S>& token, S* p, F&& f) const {
    perturbed(token, p);
    const Index best = static_cast<Index>(std::max_element(p, p + num_experts_) - p);
    if (p[best] == kMasked) return;
    softmax_tempered(p, num_experts_, tau_, p);
    if (chooses_one()) return f(best);
    const S threshold = step_.training() ? static_cast<S>(gate_.threshold) : S{0};
    for (Index e = 0; e < num_experts_; ++e)
      if (p[e] > threshold || e == best) f(e);
  }

  /// As the dz of a token sum to zero, z may be taken from its maximum: no cancellation between large logits.
  double tau_gradient(const S* z, const S* dz) const {
    const double largest = static_cast<double>(*std::max_element(z, z + num_experts_));
    double sum = 0;
    for (Index e = 0; e < num_experts_; ++e)
      if (z[e] > kMasked) sum += static_cast<double>(dz[e]) * (static_cast<double>(z[e]) - largest);
    return -sum / tau_;
  }

  const G& gate_;
  const Step& step_;
  Index num_experts_;
  Transform transform_;
  RandomField random_;
  double tau_ = 1;
  BlockSum<kMostTokenBlocks> dtau_;
};

/// Counts, sizes, fills. The counts lie in the routing itself until it is sized.
template <class S, class Rule>
void route_tempered(const char* function, const Rule& rule, const ConstMatrixRef<S>& logits, const Context& context,
                    Routing<S>& routing) {
  context.step.validate(function, logits.rows());
  const bool one = rule.chooses_one();
  if (!one) {
    routing.resize(logits.rows(), 1);
    for_each_token<S>(function, logits, context, 1,
                      [&](const Token<S>& token) { return (routing.experts(token.index)[0] = rule.count(token)) > 0; });
  }
  routing.resize_ragged(logits.rows(), [&](Index t) {
    return !context.step.is_valid(t) ? 0 : one ? 1 : routing.experts()[static_cast<std::size_t>(t)];
  });
  for_each_token<S>(function, logits, context, 1, [&](const Token<S>& token) {
    return rule.choose(token, routing.experts(token.index), routing.weights(token.index));
  });
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
