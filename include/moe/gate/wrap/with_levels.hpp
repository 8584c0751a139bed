// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/temperature.hpp"

// Long, as levels are drawn, replayed and differentiated by one rule.
namespace moe::inline MOE_ABI {

/// Any gate whose choices also get a level, as of precision (dual routing): expert e at level l is the virtual expert
/// e * levels + l of the layer, as nested_experts() makes them. A router that is learned says which level, per token
/// and expert: num_experts = experts * levels more columns of the logits, behind those of the gate, are u(e, l), so
/// that the router of the layer scores experts and levels alike.
///   training    s = softmax((u(e, .) + g) / tau), g ~ Gumbel(0, 1) per token, expert and level: a choice of weight w
///               becomes `levels` choices of weights w s_l
///   inference   l = argmax u(e, .), ties to the lower: one choice of weight w
/// Trained around experts that may be Frozen, with the loss of the model and a price of bits, mean_bits_loss().
///   moe::WithLevels<moe::TopKGate> gate{.gate = {.k = 2}, .levels = 3, .temperature = {.start = 1, .end = 0.2}};
/// Gradients pass the noise unchanged; at inference levels are frozen and u gets none from weights. With s = softmax,
///   dL/du_l = w s_l (dL/dw_l - sum_j s_j dL/dw_j) / tau
/// Probabilities are those of the gate times s. A level of -infinity is excluded; all of a choice, a NaN or +infinity
/// of a valid token are refused by std::invalid_argument. Parameters and other errors are the gate's. Immutable, share
/// freely. O(assignments) on top of the gate, serial, O(T num_experts) for probabilities; replay and backward run its
/// replay once more. No allocation when warm. WithCapacity goes
/// inside, as a limit per expert; WithLevelCapacity is this with one per level.
/// "D2MoE: dual routing and dynamic scheduling for efficient on-device MoE-based LLM serving" (arXiv:2504.15299).
template <class G, Schedule Temperature = ExponentialSchedule>
struct WithLevels {
  static_assert(StatesPerToken<G>,
                "moe::WithLevels: a Gate needs `static constexpr bool kPerToken` (see moe/gate/concept.hpp)");
  static_assert(!HasParameters<Temperature>, "moe::WithLevels: the temperature is a schedule that does not learn");

  G gate = {};
  Index levels = 2;  ///< >= 1
  Temperature temperature = {};

  static constexpr bool kPerToken = G::kPerToken;

  void validate(Index num_experts) const {
    if (levels < 1 || num_experts % levels != 0)
      fail("moe::WithLevels: ", num_experts, " virtual experts, expected a multiple of levels = ", levels,
           ", at least 1");
    if constexpr (requires { gate.validate(num_experts); }) gate.validate(num_experts / levels);
    detail::validate_temperature("moe::WithLevels", temperature);
  }
  /// Those of the gate, then one per virtual expert.
  Index num_logits(Index num_experts) const {
    if (levels < 1) fail("moe::WithLevels: levels = ", levels, ", expected at least 1");
    return detail::num_logits(gate, num_experts / levels) + num_experts;
  }
  /// Throws std::invalid_argument where the gate does; see TopKGate::constant_weights.
  void require_backward(Index num_experts) const {
    if constexpr (requires { gate.require_backward(num_experts); }) gate.require_backward(num_experts / levels);
  }
  /// The temperature that a step is routed with.
  double tau(const Step& step) const { return temperature(step.training() ? step.update : kFinished); }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kFunction = "moe::WithLevels::route";
    const Index scores = gate_logits(kFunction, logits), each = choices_per_choice(context.step);
    Routing<S>& chosen = context.scratch.template get<Memory<S>>().routing;
    gate.route(logits.leftCols(scores), context, chosen);
    if (chosen.choices_per_token() >= 0)
      routing.resize(chosen.num_tokens(), chosen.choices_per_token() * each);
    else
      routing.resize_ragged(chosen.num_tokens(), [&](Index t) { return (chosen.end(t) - chosen.begin(t)) * each; });
    for (Index t = 0; t < chosen.num_tokens(); ++t)
      for (Index a = chosen.begin(t); a < chosen.end(t); ++a) {
        const auto at = static_cast<std::size_t>(a);
        const Index e = chosen.experts()[at];
        const bool is_kept = chosen.dropped()[at] == 0 && context.step.is_valid(t);
        const Index level = is_kept && each == 1 ? best<S>(kFunction, logits, scores, t, e) : 0;
        for (Index l = 0; l < each; ++l) {
          const auto to = static_cast<std::size_t>(a * each + l);
          routing.experts()[to] = e * levels + level + l;
          routing.dropped()[to] = chosen.dropped()[at];
        }
        weigh(kFunction, logits, context, scores, t, a, chosen, routing);
      }
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& out) const {
    constexpr const char* kFunction = "moe::WithLevels::probabilities";
    const Index scores = gate_logits(kFunction, logits);
    Matrix<S>& p = context.scratch.template get<Memory<S>>().probability;
    gate.probabilities(logits.leftCols(scores), context, p);
    out.resize(logits.rows(), logits.cols() - scores);
    for (Index t = 0; t < logits.rows(); ++t)
      for (Index e = 0; e < p.cols(); ++e) {
        const std::vector<S>& s = shares<S>(kFunction, logits, context, scores, t, e);
        for (Index l = 0; l < levels; ++l) out(t, e * levels + l) = p(t, e) * s[static_cast<std::size_t>(l)];
      }
  }

  /// Weights anew for the same choices at the same levels.
  template <class S>
    requires DifferentiableGate<G, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kFunction = "moe::WithLevels::replay";
    const Index scores = gate_logits(kFunction, logits);
    const Routing<S>& chosen = without_levels(kFunction, logits, context, scores, routing);
    for (Index t = 0; t < chosen.num_tokens(); ++t)
      for (Index a = chosen.begin(t); a < chosen.end(t); ++a)
        weigh(kFunction, logits, context, scores, t, a, chosen, routing);
  }

  /// The gate's backward for dL/dw, and dL/du; replays the gate.
  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                WithLevels& gradient) const {
    constexpr const char* kFunction = "moe::WithLevels::backward";
    if (dweight.size() != routing.weights().size())
      fail(kFunction, ": dweight has ", dweight.size(),
           " entries, expected num_assignments = ", routing.num_assignments());
    const Index scores = gate_logits(kFunction, logits), each = choices_per_choice(context.step);
    const Routing<S>& chosen = without_levels(kFunction, logits, context, scores, routing);
    auto& memory = context.scratch.template get<Memory<S>>();
    memory.dlevel.setZero(logits.rows(), logits.cols() - scores);
    memory.dweight.assign(chosen.weights().size(), S{0});
    for (Index t = 0; t < chosen.num_tokens(); ++t)
      for (Index a = chosen.begin(t); a < chosen.end(t); ++a) {
        const auto at = static_cast<std::size_t>(a);
        if (chosen.dropped()[at] != 0 || !context.step.is_valid(t)) continue;
        const auto first = static_cast<std::size_t>(a * each);
        memory.slope.assign(dweight.begin() + a * each, dweight.begin() + (a + 1) * each);
        for (std::size_t l = 0; l < memory.slope.size(); ++l)
          if (routing.dropped()[first + l] != 0) memory.slope[l] = 0;
        const S* const dw = memory.slope.data();
        memory.dweight[at] = each == 1 ? dw[0]
                                       : add_gradient<S>(kFunction, logits, context, scores, t, chosen.experts()[at],
                                                         chosen.weights()[at], dw, memory);
      }
    if (dprobability.size() > 0) probabilities_backward<S>(kFunction, logits, context, scores, dprobability, memory);
    const Matrix<S> none, &of_gate = memory.dprobability;
    gate.backward(logits.leftCols(scores), context, chosen, std::span<const S>(memory.dweight),
                  dprobability.size() > 0 ? of_gate : none, memory.dlogits, gradient.gate);
    detail::require_shape(kFunction, "dlogits of the gate", memory.dlogits, logits.rows(), scores);
    dlogits.resize(logits.rows(), logits.cols());
    dlogits.leftCols(scores) = memory.dlogits;
    dlogits.rightCols(logits.cols() - scores) = memory.dlevel;
  }

  /// Calls f(t, e, s) for the choices that are kept of a routing of this gate: s are the shares of levels, with the
  /// noise of the step. What mean_bits_loss() looks at. Throws std::invalid_argument for another routing.
  template <class S, class F>
  void for_each_choice(const char* function, const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                       const F& f) const {
    const Index scores = gate_logits(function, logits), each = choices_per_choice(context.step);
    if (routing.num_tokens() != logits.rows())
      fail(function, ": routing has ", routing.num_tokens(), " tokens, expected num_tokens = ", logits.rows());
    for (Index t = 0; t < routing.num_tokens(); ++t) {
      require_whole(function, routing, t, each);
      for (Index a = routing.begin(t); a < routing.end(t); a += each) {
        const auto at = static_cast<std::size_t>(a);
        if (are_dropped(routing, a, each) || !context.step.is_valid(t)) continue;
        const Index e = routing.experts()[at] / levels;
        f(t, e, std::span<const S>(shares<S>(function, logits, context, scores, t, e)));
      }
    }
  }

  /// Columns of logits that are the gate's. Throws std::invalid_argument unless those behind are of whole experts, and
  /// levels and the temperature are in range.
  template <class S>
  Index gate_logits(const char* function, const ConstMatrixRef<S>& logits) const {
    detail::validate_temperature(function, temperature);
    for (Index experts = levels < 1 ? 0 : logits.cols() / (levels + 1); experts > 0; --experts)
      if (const Index scores = detail::num_logits(gate, experts); scores + experts * levels == logits.cols())
        return scores;
    fail(function, ": logits have ", logits.cols(), " columns, expected those of the gate and ", levels,
         " levels, at least 1, of each expert");
  }

 private:
  template <class S>
  struct Memory {
    Routing<S> routing;
    std::vector<S> shares, dweight, slope;
    Matrix<S> probability, dprobability, dlogits, dlevel;
  };

  /// All levels of the choice that begins there: that of the gate is dropped only with the last of them.
  template <class S>
  static bool are_dropped(const Routing<S>& routing, Index first, Index each) {
    const auto flags = routing.dropped().subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(each));
    return std::ranges::all_of(flags, [](auto flag) { return flag != 0; });
  }
  Index choices_per_choice(const Step& step) const { return step.training() ? levels : 1; }

  /// The level with the largest score. Throws unless that is finite, and for a NaN.
  template <class S>
  Index best(const char* function, const ConstMatrixRef<S>& logits, Index scores, Index t, Index e) const {
    const S* const u = logits.data() + t * logits.outerStride() + scores + e * levels;
    Index most = 0;
    for (Index l = 0; l < levels; ++l) {
      if (std::isnan(u[l]))
        fail(function, ": level ", l, " of expert ", e, " of token ", t, " is nan, expected a number");
      if (u[l] > u[most]) most = l;
    }
    if (!std::isfinite(u[most]))
      fail(function, ": the largest level of expert ", e, " of token ", t, " is ", u[most], ", expected a finite one");
    return most;
  }

  /// s of token t and expert e; alike for padding.
  template <class S>
  const std::vector<S>& shares(const char* function, const ConstMatrixRef<S>& logits, const Context& context,
                               Index scores, Index t, Index e) const {
    std::vector<S>& s = context.scratch.template get<Memory<S>>().shares;
    s.assign(static_cast<std::size_t>(levels), S{1} / static_cast<S>(levels));
    if (!context.step.is_valid(t)) return s;
    best(function, logits, scores, t, e);
    const Index first = scores + e * levels;  // columns behind those of the gate, which may draw for its own
    const RandomField random = context.step.random(Purpose::Gumbel);
    S most = -std::numeric_limits<S>::infinity(), sum = 0;
    for (Index l = 0; l < levels; ++l) {
      const double noise = context.step.training() ? random.gumbel(context.step.id(t), first + l) : 0.0;
      S& share = s[static_cast<std::size_t>(l)] = logits(t, first + l) + static_cast<S>(noise);
      most = std::max(most, share);
    }
    for (S& share : s) sum += share = std::exp((share - most) / static_cast<S>(tau(context.step)));
    for (S& share : s) share /= sum;
    return s;
  }

  /// The weights of what choice a of the gate has become.
  template <class S>
  void weigh(const char* function, const ConstMatrixRef<S>& logits, const Context& context, Index scores, Index t,
             Index a, const Routing<S>& chosen, Routing<S>& routing) const {
    const auto at = static_cast<std::size_t>(a);
    const auto each = static_cast<std::size_t>(choices_per_choice(context.step));
    const auto to = routing.weights().subspan(at * each, each);
    if (chosen.dropped()[at] != 0) {
      std::ranges::fill(to, S{0});
    } else if (each == 1) {
      to[0] = chosen.weights()[at];
    } else {
      const std::vector<S>& s = shares<S>(function, logits, context, scores, t, chosen.experts()[at]);
      for (std::size_t l = 0; l < each; ++l) to[l] = chosen.weights()[at] * s[l];
    }
    for (std::size_t l = 0; l < each; ++l)
      if (routing.dropped()[at * each + l] != 0) to[l] = 0;
  }

  template <class S>
  void require_whole(const char* function, const Routing<S>& routing, Index t, Index each) const {
    const Index count = routing.end(t) - routing.begin(t);
    bool is_whole = count % each == 0;
    for (Index a = routing.begin(t); is_whole && each > 1 && a < routing.end(t); ++a) {
      const auto at = static_cast<std::size_t>(a), first = static_cast<std::size_t>(a - (a - routing.begin(t)) % each);
      is_whole = routing.experts()[at] == routing.experts()[first] + static_cast<Index>(at - first) &&
                 routing.experts()[first] % levels == 0;
    }
    if (!is_whole)
      fail(function, ": the ", count, " choices of token ", t, " are not those of ", levels,
           " levels each, expected a routing of this gate in training");
  }

  /// The gate's own routing.
  template <class S>
  const Routing<S>& without_levels(const char* function, const ConstMatrixRef<S>& logits, const Context& context,
                                   Index scores, const Routing<S>& routing) const {
    const Index each = choices_per_choice(context.step);
    for (Index t = 0; t < routing.num_tokens(); ++t) require_whole(function, routing, t, each);
    Routing<S>& chosen = context.scratch.template get<Memory<S>>().routing;
    if (routing.choices_per_token() >= 0)
      chosen.resize(routing.num_tokens(), routing.choices_per_token() / each);
    else
      chosen.resize_ragged(routing.num_tokens(), [&](Index t) { return (routing.end(t) - routing.begin(t)) / each; });
    for (std::size_t a = 0; a < chosen.experts().size(); ++a) {
      const std::size_t from = a * static_cast<std::size_t>(each);
      chosen.experts()[a] = routing.experts()[from] / levels;
      chosen.dropped()[a] =
          are_dropped(routing, static_cast<Index>(from), each) ? routing.dropped()[from] : std::uint8_t{0};
    }
    gate.replay(logits.leftCols(scores), context, chosen);
    return chosen;
  }

  /// Adds dL/du of what multiplies s; returns sum of s_l dL/d(factor s_l).
  template <class S>
  S add_gradient(const char* function, const ConstMatrixRef<S>& logits, const Context& context, Index scores, Index t,
                 Index e, S factor, const S* slope, Memory<S>& memory) const {
    const std::vector<S>& s = shares<S>(function, logits, context, scores, t, e);
    S mean = 0;
    for (std::size_t l = 0; l < s.size(); ++l) mean += s[l] * slope[l];
    for (std::size_t l = 0; l < s.size(); ++l)
      memory.dlevel(t, e * levels + static_cast<Index>(l)) +=
          factor * s[l] * (slope[l] - mean) / static_cast<S>(tau(context.step));
    return mean;
  }

  template <class S>
  void probabilities_backward(const char* function, const ConstMatrixRef<S>& logits, const Context& context,
                              Index scores, const ConstMatrixRef<S>& dprobability, Memory<S>& memory) const {
    detail::require_shape(function, "dprobability", dprobability, logits.rows(), logits.cols() - scores);
    gate.probabilities(logits.leftCols(scores), context, memory.probability);
    memory.dprobability.setZero(memory.probability.rows(), memory.probability.cols());
    for (Index t = 0; t < logits.rows(); ++t)
      for (Index e = 0; e < memory.probability.cols() && context.step.is_valid(t); ++e)
        memory.dprobability(t, e) =
            add_gradient<S>(function, logits, context, scores, t, e, memory.probability(t, e),
                            dprobability.data() + t * dprobability.outerStride() + e * levels, memory);
  }
};

}  // namespace moe::inline MOE_ABI
