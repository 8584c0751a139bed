// SPDX-License-Identifier: MIT
#pragma once

#include <numeric>
#include <span>
#include <utility>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/token_rule.hpp"

namespace moe::inline MOE_ABI {

/// Who shares a random draw: all tokens of the batch, those of a group (Step::group_id), or nobody.
enum class DrawPer { Batch, Group, Token };

/// Whether passes over one batch (Step::pass) draw independently, or never the same expert twice.
enum class Passes { Independent, Distinct };

/// Routes at random: k distinct experts, uniformly drawn, each with weight 1 / k. Of the logits only the shape is used
/// (masks are not seen), and no gradient flows into them; probabilities are 1 / num_experts.
/// The draw is a function of the step and of the token's id or group alone, so a token is routed the same way in any
/// batch, also where it shares its draw with others: hence kPerToken. With Passes::Distinct, pass p takes the choices
/// [p k, (p + 1) k) of one random order of the experts.
/// Immutable, share freely. O(num_experts) per token, no allocation when warm.
/// Zuo et al., "Taming sparsely activated transformer with stochastic experts" (THOR, arXiv:2110.04260): k = 1, one
/// draw per batch in training, one per token at inference.
struct StochasticGate {
  Index k = 1;  ///< in [1, num_experts]
  DrawPer training = DrawPer::Batch;
  DrawPer inference = DrawPer::Token;
  Passes passes = Passes::Independent;

  static constexpr bool kPerToken = true;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  StochasticGate take(std::span<const Index>, Index) const { return *this; }  // nothing is an expert's own
  friend bool operator==(const StochasticGate&, const StochasticGate&) = default;

  /// Throws std::invalid_argument unless 1 <= k <= num_experts.
  void validate(Index num_experts) const {
    if (k < 1 || k > num_experts)
      fail("moe::StochasticGate: k is ", k, ", expected 1 <= k <= num_experts = ", num_experts);
  }

  /// Throws std::invalid_argument if distinct passes need more experts than there are.
  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::StochasticGate::route";
    const Step& step = context.step;
    const Index num_experts = logits.cols(), num_tokens = logits.rows();
    validate(num_experts);
    step.validate(kName, num_tokens);
    const bool distinct = passes == Passes::Distinct;
    const Index drawn = distinct ? (Index{step.pass} + 1) * k : k;
    if (drawn > num_experts)
      fail(kName, ": step.pass is ", step.pass, " and k is ", k, ", which takes ", drawn,
           " distinct experts, expected at most num_experts = ", num_experts);
    const RandomField random =
        distinct ? RandomField(Purpose::Draw, step.seed, step.update, step.layer) : step.random(Purpose::Draw);
    routing.resize_ragged(num_tokens, [&](Index t) { return step.is_valid(t) ? k : 0; });
    detail::RowScratch<Index, 1> scratch(num_experts, context.scratch);
    parallel_ranges(num_tokens, detail::token_blocks(num_tokens).size, [&](Index begin, Index end, Index worker) {
      detail::RowScratch<Index, 1>::Worker order(scratch, worker);
      for (Index t = begin; t < end; ++t) {
        if (!step.is_valid(t)) continue;
        draw(random, key(step, t), num_experts, drawn, order.data());
        std::copy_n(order.data() + drawn - k, k, routing.experts(t).data());
        std::ranges::fill(routing.weights(t), weight<S>());
      }
    });
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    context.step.validate("moe::StochasticGate::probabilities", logits.rows());
    p.resize(logits.rows(), logits.cols());
    for (Index t = 0; t < p.rows(); ++t)
      p.row(t).setConstant(context.step.is_valid(t) ? S{1} / static_cast<S>(p.cols()) : S{0});
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context&, Routing<S>& routing) const {
    detail::require_routing("moe::StochasticGate::replay", routing, logits.rows(), logits.cols());
    for (std::size_t a = 0; a < routing.weights().size(); ++a)
      routing.weights()[a] = routing.dropped()[a] ? S{0} : weight<S>();
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context&, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> /*dweight*/, const MatrixView<S>& /*dprobability*/,
                Matrix<S>& dlogits, StochasticGate& /*gradient*/) const {
    detail::require_routing("moe::StochasticGate::backward", routing, logits.rows(), logits.cols());
    dlogits.setZero(logits.rows(), logits.cols());
  }

 private:
  template <class S>
  S weight() const {
    return S{1} / static_cast<S>(k);
  }
  std::int64_t key(const Step& step, Index t) const {
    const DrawPer per = step.training() ? training : inference;
    return per == DrawPer::Token ? step.id(t) : per == DrawPer::Group ? step.group(t) : 0;
  }
  /// The first `drawn` places of a random order of the experts (Fisher-Yates).
  static void draw(const RandomField& random, std::int64_t key, Index num_experts, Index drawn, Index* order) {
    std::iota(order, order + num_experts, Index{0});
    for (Index i = 0; i < drawn; ++i)
      std::swap(order[i],
                order[i + static_cast<Index>(random.below(static_cast<std::uint64_t>(num_experts - i), key, i))]);
  }
};

static_assert(DifferentiableGate<StochasticGate, float> && DifferentiableGate<StochasticGate, double>);

}  // namespace moe::inline MOE_ABI
