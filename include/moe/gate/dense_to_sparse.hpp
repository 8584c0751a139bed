// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/tempered.hpp"

namespace moe::inline MOE_ABI {

/// Starts as a dense mixture and ends with one expert per token, by a falling temperature.
///   g = softmax((logits + gumbel * q) / tau)     q ~ Gumbel(0, 1) per token and expert, in training only
///   training, update < hard_from    all experts with g_i > threshold, and the best one
///   training from hard_from on      the best one; ties go to the lower expert
///   inference                       tau = temperature(kFinished), no noise; the best one, or all with g_i > 0
///   weight_i = g_i (Selection, continuous where experts drop out), or softmax(logits)_i (Clean); not renormalised
/// Experts of a token are in ascending order. A logit of -infinity masks an expert; one of each token must be finite.
/// The selection is frozen in backward. With p = g and a_i = dL/dg_i:
///   dL/dlogits_i = p_i (a_i - sum_j a_j p_j) / tau
///   dL/dtau      = -sum_i dL/dlogits_i (logits_i + gumbel q_i) / tau
/// tau is learnt when `Temperature` is LearnableTemperature. It is a scale of the logits, so with a router that can
/// rescale them it is not identifiable: see ActivationGate.
/// Immutable, share freely. route is O(num_experts) per token, done twice where the number of experts varies, and
/// allocates nothing when warm. All members throw std::invalid_argument for a NaN or +infinity in
/// the logits of a valid token.
/// Nie et al., "EvoMoE: an evolutional mixture-of-experts training framework via dense-to-sparse gate"
/// (arXiv:2112.14397; there gumbel = 1).
template <Schedule Temperature = ExponentialSchedule>
struct DenseToSparseGate {
  static_assert(
      LearnableSchedule<Temperature> ||
          !requires(const Temperature& schedule, Temperature& gradient) { schedule.backward(0.0, gradient); },
      "moe::DenseToSparseGate: a temperature with `backward` needs visit, or it would never move "
      "(see moe/gate/rule/temperature.hpp)");

  Temperature temperature = {};
  double threshold = 1e-3;              ///< in [0, 1)
  std::uint64_t hard_from = kFinished;  ///< first update that trains one expert per token
  double gumbel = 0;                    ///< size of the noise in training; >= 0
  WeightLogits weights = WeightLogits::Selection;
  AtInference at_inference = AtInference::TopOne;

  static constexpr bool kPerToken = true;

  /// Throws std::invalid_argument, naming the first number that is out of range. `gate`: who complains, as a gate may
  /// be part of another.
  void validate(Index num_experts, const char* gate = "moe::DenseToSparseGate") const {
    if (num_experts < 1) fail(gate, ": num_experts is ", num_experts, ", expected at least 1");
    detail::validate_temperature(gate, temperature);
    if (!(threshold >= 0 && threshold < 1)) fail(gate, ": threshold is ", threshold, ", expected a value in [0, 1)");
    if (!(gumbel >= 0 && std::isfinite(gumbel))) fail(gate, ": gumbel is ", gumbel, ", expected a finite number >= 0");
  }

  /// The temperature that a step is routed with.
  double tau(const Step& step) const { return temperature(step.training() ? step.update : kFinished); }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    const detail::TemperedRule<S, DenseToSparseGate> rule("moe::DenseToSparseGate", *this, context.step, logits);
    detail::route_tempered<S>("moe::DenseToSparseGate::route", rule, logits, context, routing);
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    const detail::TemperedRule<S, DenseToSparseGate> rule("moe::DenseToSparseGate", *this, context.step, logits);
    token_probabilities<S>("moe::DenseToSparseGate::probabilities", rule, logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    const detail::TemperedRule<S, DenseToSparseGate> rule("moe::DenseToSparseGate", *this, context.step, logits);
    replay_tokens<S>("moe::DenseToSparseGate::replay", rule, logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                DenseToSparseGate& gradient) const {
    detail::TemperedRule<S, DenseToSparseGate> rule("moe::DenseToSparseGate", *this, context.step, logits);
    backward_tokens<S>("moe::DenseToSparseGate::backward", rule, logits, context, routing, dweight, dprobability,
                       dlogits);
    if constexpr (LearnableSchedule<Temperature>) temperature.backward(rule.dtau(), gradient.temperature);
  }

  DenseToSparseGate take(std::span<const Index>, Index) const { return *this; }  // nothing is an expert's own
  friend bool operator==(const DenseToSparseGate&, const DenseToSparseGate&) = default;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "temperature", self.temperature...);
  }
};

static_assert(DifferentiableGate<DenseToSparseGate<>, float> && DifferentiableGate<DenseToSparseGate<>, double>);
static_assert(DifferentiableGate<DenseToSparseGate<LearnableTemperature>>);

}  // namespace moe::inline MOE_ABI
