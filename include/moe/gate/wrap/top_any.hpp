// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/temperature.hpp"
#include "moe/gate/wrap/with_skipping.hpp"

// Long, as masks are drawn, replayed and differentiated by one rule.
namespace moe::inline MOE_ABI {

template <class G, Schedule Temperature>
struct TopAnyGate;

namespace detail {
template <class G>
inline constexpr bool kHasTopAny = false;
template <class G>
  requires requires(const G& any) { any.gate; }
inline constexpr bool kHasTopAny<G> = kHasTopAny<std::remove_cvref_t<decltype(G::gate)>>;
template <class G, class Temperature>
inline constexpr bool kHasTopAny<TopAnyGate<G, Temperature>> = true;
}  // namespace detail

/// Any gate of at most k choices, of which each token keeps as many as it needs: a router that is learned says how many
/// (online top-any pruning). It is k more columns of the logits, so that the router of the layer scores experts and
/// numbers of choices alike: column j = 1, ..., k behind those of the gate is u_j, for the first j choices of a token
/// in the gate's order, which is best first of TopKGate.
///   training    s = softmax((u + g) / tau), g ~ Gumbel(0, 1) per token, over as many j as the token has choices
///               m_i = sum_{j >= i} s_j      weight_i of the gate times m_i: all choices run
///   inference   j = argmax u, ties to the lower: choices behind the first j are dropped (kDroppedByMask)
/// What becomes of the weight that is lost says `skipped`. A token with choices keeps one at least, which m_1 = 1 says;
/// its first if that was not dropped by the gate. Trained with a loss that compares with the layer of all choices, as
/// squared_error() or distillation_loss(), and kept_choices_loss(), around a trained layer that may be Frozen:
///   moe::TopAnyGate<moe::TopKGate> gate{.gate = {.k = 2}, .k = 2, .temperature = {.start = 1, .end = 0.1}};
/// Gradients pass the noise unchanged; at inference the drops are frozen and u gets none. With s = softmax,
///   dL/du_j = s_j (a_j - sum_l s_l a_l) / tau      a_j = sum_{i <= j} dL/dm_i
/// A mask of -infinity excludes a number of choices; all of them, a NaN or +infinity of a valid token that has choices
/// are refused by std::invalid_argument, as is a token with more than k. Probabilities, parameters and other errors are
/// the gate's. Immutable, share freely. O(assignments) on top of the gate, serial; replay and backward run its replay
/// once more. No allocation when warm. A limit goes inside. A rule without a router: WithSkipping.
/// Huang et al., "MC#: Mixture compressor for mixture-of-experts large models" (arXiv:2510.10962).
template <class G, Schedule Temperature = ExponentialSchedule>
struct TopAnyGate {
  static_assert(StatesPerToken<G>,
                "moe::TopAnyGate: a Gate needs `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");
  static_assert(!HasParameters<Temperature>, "moe::TopAnyGate: the temperature is a schedule that does not learn");
  static_assert(!detail::kHasTopAny<G>, "moe::TopAnyGate: one mask is enough; the drops of two cannot be told apart");

  G gate = {};
  Index k = 2;  ///< most choices of a token; >= 1
  Temperature temperature = {};
  SkippedWeight skipped = SkippedWeight::Lost;

  static constexpr bool kPerToken = G::kPerToken;

  void validate(Index num_experts) const {
    if constexpr (requires { gate.validate(num_experts); }) gate.validate(num_experts);
    if (k < 1) fail("moe::TopAnyGate: k is ", k, ", expected at least 1");
    detail::validate_temperature("moe::TopAnyGate", temperature);
  }

  /// Those of the gate, then k of numbers of choices.
  Index num_logits(Index num_experts) const { return detail::num_logits(gate, num_experts) + k; }

  /// Throws std::invalid_argument where the gate does; see TopKGate::constant_weights.
  void require_backward(Index num_experts) const {
    if constexpr (requires { gate.require_backward(num_experts); }) gate.require_backward(num_experts);
  }

  /// The temperature that a step is routed with.
  double tau(const Step& step) const { return temperature(step.training() ? step.update : kFinished); }

  /// The gate's, with the same mask.
  TopAnyGate take(std::span<const Index> ids, Index num_experts) const
    requires detail::TakesGate<G>
  {
    return {detail::take_gate(gate, ids, num_experts), k, temperature, skipped};
  }
  std::vector<Index> logits_of(std::span<const Index> ids, Index num_experts) const {
    std::vector<Index> columns = detail::logits_of("moe::TopAnyGate::logits_of", gate, ids, num_experts);
    for (Index j = 0; j < k; ++j) columns.push_back(detail::num_logits(gate, num_experts) + j);
    return columns;
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kFunction = "moe::TopAnyGate::route";
    require_logits(kFunction, logits);
    gate.route(logits.leftCols(logits.cols() - k), context, routing);
    require_choices(kFunction, routing);
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      if (!is_masked(context.step, routing, t)) continue;
      if (context.step.training()) {
        mask(kFunction, logits, context, t, routing);
        continue;
      }
      const auto kept = static_cast<Index>(best(kFunction, logits, context, t, routing));
      const S former_sum = detail::sum_of_weights(routing, t);
      for (Index a = routing.begin(t) + kept; a < routing.end(t); ++a)
        if (!routing.dropped()[static_cast<std::size_t>(a)]) routing.drop(a, kDroppedByMask);
      if (skipped == SkippedWeight::Shared) detail::share_out(routing, t, former_sum);
    }
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& out) const {
    require_logits("moe::TopAnyGate::probabilities", logits);
    gate.probabilities(logits.leftCols(logits.cols() - k), context, out);
  }

  /// Weights anew for the same choices with the same drops.
  template <class S>
    requires DifferentiableGate<G, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kFunction = "moe::TopAnyGate::replay";
    const Routing<S>& chosen = before_masking(kFunction, logits, context, routing);
    for (std::size_t a = 0; a < chosen.weights().size(); ++a)
      routing.weights()[a] = routing.dropped()[a] ? S{0} : chosen.weights()[a];
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      if (!is_masked(context.step, routing, t)) continue;
      if (context.step.training())
        mask(kFunction, logits, context, t, routing);
      else if (skipped == SkippedWeight::Shared)
        detail::share_out(routing, t, detail::sum_of_weights(chosen, t));
    }
  }

  /// The gate's backward for dL/d(weights before masking), and dL/du; replays the gate.
  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                TopAnyGate& gradient) const {
    constexpr const char* kFunction = "moe::TopAnyGate::backward";
    if (dweight.size() != routing.weights().size())
      fail(kFunction, ": dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    const Routing<S>& chosen = before_masking(kFunction, logits, context, routing);
    auto& memory = context.scratch.template get<Memory<S>>();
    memory.dweight.resize(dweight.size());
    memory.dmask.setZero(logits.rows(), k);
    for (Index t = 0; t < routing.num_tokens(); ++t)
      masked_gradient<S>(kFunction, logits, context, t, routing, dweight, memory);
    gate.backward(logits.leftCols(logits.cols() - k), context, chosen, std::span<const S>(memory.dweight), dprobability,
                  memory.dlogits, gradient.gate);
    detail::require_shape(kFunction, "dlogits of the gate", memory.dlogits, logits.rows(), logits.cols() - k);
    dlogits.resize(logits.rows(), logits.cols());
    dlogits.leftCols(logits.cols() - k) = memory.dlogits;
    dlogits.rightCols(k) = memory.dmask;
  }

  /// Throws std::invalid_argument unless every token has at most k choices and masks that route() takes.
  template <class S>
  void require_masks(const char* function, const ConstMatrixRef<S>& logits, const Context& context,
                     const Routing<S>& routing) const {
    require_choices(function, routing);
    for (Index t = 0; t < routing.num_tokens(); ++t)
      if (is_masked(context.step, routing, t)) best(function, logits, context, t, routing);
  }

  /// What a token's number of choices is expected to be, as kept_choices_loss() has it; adds `slope` times its gradient
  /// to dlogits. 0 for a token without choices. Of a routing that require_masks() has let pass.
  template <class S>
  S expected_choices(const Logits<S>& logits, const Context& context, Index t, const Routing<S>& routing, S slope,
                     Matrix<S>& dlogits) const {
    if (!is_masked(context.step, routing, t)) return 0;
    const std::vector<S>& s = shares("moe::kept_choices_loss", logits, context, t, routing);
    S mean = 0;
    for (std::size_t j = 0; j < s.size(); ++j) mean += s[j] * static_cast<S>(j + 1);
    for (std::size_t j = 0; j < s.size(); ++j)
      dlogits(t, logits.cols() - k + static_cast<Index>(j)) +=
          slope / static_cast<S>(tau(context.step)) * s[j] * (static_cast<S>(j + 1) - mean);
    return mean;
  }

  /// Throws std::invalid_argument unless logits have more than k columns, and k and the temperature are in range.
  template <class S>
  void require_logits(const char* function, const ConstMatrixRef<S>& logits) const {
    if (k < 1 || logits.cols() <= k)
      fail(function, ": logits have ", logits.cols(), " columns, expected more than k = ", k, ", which is at least 1");
    detail::validate_temperature(function, temperature);
  }

 private:
  template <class S>
  struct Memory {
    Routing<S> routing;
    std::vector<S> shares, mask, dweight;
    Matrix<S> dlogits, dmask;
  };

  /// Whether token t has choices that the mask may keep or not.
  template <class S>
  static bool is_masked(const Step& step, const Routing<S>& routing, Index t) {
    return step.is_valid(t) && routing.begin(t) != routing.end(t);
  }

  template <class S>
  void require_choices(const char* function, const Routing<S>& routing) const {
    for (Index t = 0; t < routing.num_tokens(); ++t)
      if (routing.end(t) - routing.begin(t) > k)
        fail(function, ": token ", t, " has ", routing.end(t) - routing.begin(t), " choices, expected at most k = ", k);
  }

  /// The largest mask of token t. Throws unless that is finite, and for a NaN.
  template <class S>
  std::size_t best(const char* function, const ConstMatrixRef<S>& logits, const Context&, Index t,
                   const Routing<S>& routing) const {
    const S* const u = logits.data() + t * logits.outerStride() + logits.cols() - k;
    const Index count = routing.end(t) - routing.begin(t);
    Index most = 0;
    for (Index j = 0; j < count; ++j) {
      if (std::isnan(u[j])) fail(function, ": mask ", j + 1, " of token ", t, " is nan, expected a number");
      if (u[j] > u[most]) most = j;
    }
    if (!std::isfinite(u[most]))
      fail(function, ": the largest mask of token ", t, " is ", u[most], ", expected a finite one");
    return static_cast<std::size_t>(most + 1);
  }

  /// s of token t.
  template <class S>
  const std::vector<S>& shares(const char* function, const ConstMatrixRef<S>& logits, const Context& context, Index t,
                               const Routing<S>& routing) const {
    best(function, logits, context, t, routing);
    const S* const u = logits.data() + t * logits.outerStride() + logits.cols() - k;
    std::vector<S>& s = context.scratch.template get<Memory<S>>().shares;
    s.resize(static_cast<std::size_t>(routing.end(t) - routing.begin(t)));
    const RandomField random = context.step.random(Purpose::Gumbel);
    S most = -std::numeric_limits<S>::infinity(), sum = 0;
    for (std::size_t j = 0; j < s.size(); ++j) {
      // Columns behind those of the experts, which a gate inside may draw for.
      const auto column = logits.cols() - k + static_cast<Index>(j);
      const double noise = context.step.training() ? random.gumbel(context.step.id(t), column) : 0.0;
      s[j] = u[j] + static_cast<S>(noise);
      most = std::max(most, s[j]);
    }
    for (S& share : s) sum += share = std::exp((share - most) / static_cast<S>(tau(context.step)));
    for (S& share : s) share /= sum;
    return s;
  }

  /// m of token t in memory.mask.
  template <class S>
  const std::vector<S>& soft_mask(const char* function, const ConstMatrixRef<S>& logits, const Context& context,
                                  Index t, const Routing<S>& routing) const {
    const std::vector<S>& s = shares(function, logits, context, t, routing);
    std::vector<S>& m = context.scratch.template get<Memory<S>>().mask;
    m.resize(s.size());
    S sum = 0;
    for (std::size_t j = s.size(); j-- > 0;) m[j] = sum += s[j];
    m[0] = 1;
    return m;
  }

  /// Weighs the choices of token t by its soft mask.
  template <class S>
  void mask(const char* function, const ConstMatrixRef<S>& logits, const Context& context, Index t,
            Routing<S>& routing) const {
    const std::vector<S>& m = soft_mask(function, logits, context, t, routing);
    const S former_sum = detail::sum_of_weights(routing, t);
    for (std::size_t i = 0; i < m.size(); ++i) routing.weights(t)[i] *= m[i];
    if (skipped == SkippedWeight::Shared) detail::share_out(routing, t, former_sum);
  }

  /// The gate's own routing: what has been dropped by the mask is back, with the weight that it had.
  template <class S>
  const Routing<S>& before_masking(const char* function, const ConstMatrixRef<S>& logits, const Context& context,
                                   const Routing<S>& routing) const {
    require_logits(function, logits);
    require_choices(function, routing);
    Routing<S>& chosen = context.scratch.template get<Memory<S>>().routing;
    chosen = routing;
    for (std::uint8_t& dropped : chosen.dropped())
      if (dropped == kDroppedByMask) dropped = 0;
    gate.replay(logits.leftCols(logits.cols() - k), context, chosen);
    return chosen;
  }

  /// dL/dw and dL/du of token t from dL/dw', where w'_i = q_i B / K with Shared and q_i else, q_i = w_i m_i, B the sum
  /// of w, K that of q. With M = sum of dL/dw'_i q_i / K,
  ///   dL/dq_i = (dL/dw'_i - M) B / K      dL/dw_i = dL/dq_i m_i + M      dL/dm_i = dL/dq_i w_i
  template <class S>
  void masked_gradient(const char* function, const ConstMatrixRef<S>& logits, const Context& context, Index t,
                       const Routing<S>& routing, std::span<const S> dweight, Memory<S>& memory) const {
    const auto first = static_cast<std::size_t>(routing.begin(t)), count = routing.weights(t).size();
    std::fill_n(memory.dweight.begin() + routing.begin(t), count, S{0});
    if (!is_masked(context.step, routing, t)) return;
    const bool training = context.step.training();
    std::vector<S>& m = memory.mask;
    if (training)
      soft_mask(function, logits, context, t, routing);
    else
      m.assign(count, S{1});
    const auto weight = memory.routing.weights(t);
    S former_sum = 0, sum = 0, product = 0;
    for (std::size_t i = 0; i < count; ++i) {
      if (routing.dropped(t)[i]) m[i] = 0;  // weighs nothing, whatever the mask
      former_sum += weight[i];
      sum += weight[i] * m[i];
      product += routing.dropped(t)[i] ? S{0} : dweight[first + i] * weight[i] * m[i];
    }
    const bool shared = skipped == SkippedWeight::Shared && sum > 0;
    const S mean = shared ? product / sum : S{0}, scale = shared ? former_sum / sum : S{1};
    S slope = 0, expected = 0;  // a_j, and the mean of them
    for (std::size_t i = 0; i < count; ++i) {
      const S dmasked = routing.dropped(t)[i] ? S{0} : (dweight[first + i] - mean) * scale;
      memory.dweight[first + i] = dmasked * m[i] + mean;
      if (!training) continue;
      if (i > 0) slope += dmasked * weight[i];  // m_1 is 1
      memory.dmask(t, static_cast<Index>(i)) = slope;
      expected += memory.shares[i] * slope;
    }
    for (std::size_t i = 0; i < count && training; ++i) {
      S& du = memory.dmask(t, static_cast<Index>(i));
      du = memory.shares[i] * (du - expected) / static_cast<S>(tau(context.step));
    }
  }
};

}  // namespace moe::inline MOE_ABI
