// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <type_traits>

#include "moe/gate/activation.hpp"
#include "moe/gate/dense_to_sparse.hpp"
#include "moe/gate/scored.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/gaussian/model/gate_score.hpp"

namespace moe::inline MOE_ABI {

/// The scores of a gate as a likelihood sees them, u_j = beta_1j . x:
///   z_j = (inner(u_j + beta_0j)) / tau             bias == Inside
///   z_j = (inner(u_j) + beta_0j) / tau             bias == Outside
/// with weights softmax(z) on the `active` experts of highest rank, exactly 0 elsewhere. Ranks are those of
/// u_j + beta_0j or of u_j alone; ties go to the lower expert.
/// u_j is another score of x and beta_1j where `score` says so, and z_j another function of it where its link does.
/// Another unit of x is another beta_1. Another origin of x is another beta_0 as long as beta_0 is added to u_j
/// wherever u_j is used: Inside or a linear inner, and ranks with the bias. Otherwise the models of x and of x - c
/// differ, and far from 0 they are poor (act(u_j) is nearly constant, the ranks are the same for all rows): centre x,
/// or put the bias inside. A fit says so with FitFlags::far_origin.
struct GateForm {
  Index active = 1;        ///< experts with a weight, per row; num_experts for a dense gate
  bool ranks_bias = true;  ///< does beta_0 count in the selection?
  BiasPlace bias = BiasPlace::Inside;
  GateScore score = {};  ///< what u_j is; other kinds than Product are dense, with the bias outside
};

/// Says how a gate enters a likelihood; specialise it for a gate of your own, with these members:
///   using Inner                            an Activation: the function between u and z
///   static constexpr bool kTempered        has the gate a temperature?
///   static constexpr bool kFreeTemperature is it estimated?
///   static GateForm form(const G&, Index num_experts)      throws std::invalid_argument for a gate whose weights are
///                                                          not softmax(z) on its active experts
///   static double temperature(const G&)                    where estimation starts, or the constant
///   static G with(G, const Eigen::RowVectorXd& bias, double temperature)   the gate that routes: the same
///                                                          weights from the logits that gate_logits() gives it
///   static bool bias_in_gate(const G&)                     is beta_0 a number of the gate, or of the router before it?
template <class G>
struct GateModel;

template <>
struct GateModel<SoftmaxGate> {
  using Inner = Identity;
  static constexpr bool kTempered = false, kFreeTemperature = false;

  static GateForm form(const SoftmaxGate& gate, Index num_experts) {
    gate.validate(num_experts);
    return {.active = num_experts};
  }
  static double temperature(const SoftmaxGate&) { return 1; }
  static bool bias_in_gate(const SoftmaxGate&) { return false; }
  static SoftmaxGate with(SoftmaxGate gate, const Eigen::RowVectorXd&, double) { return gate; }
};

/// A TopKGate that has a weight_bias (zeros will do) ranks beta_1j . x alone, and beta_0 is that bias; else it ranks
/// beta_1j . x + beta_0j.
template <>
struct GateModel<TopKGate> {
  using Inner = Identity;
  static constexpr bool kTempered = false, kFreeTemperature = false;

  static GateForm form(const TopKGate& gate, Index num_experts) {
    gate.validate(num_experts);
    if (gate.score != Score::Softmax || gate.normalise != Normalise::Sum || gate.epsilon != 0 || gate.floor != 0 ||
        gate.scale != 1 || gate.selection_bias.size() != 0 || gate.groups.kept != gate.groups.count)
      fail(
          "moe::GaussianMoe: the TopKGate has another score, norm, epsilon, scale, selection_bias or groups than the "
          "default, expected one whose weights are the softmax of the k best scores");
    return {.active = gate.k, .ranks_bias = !bias_in_gate(gate)};
  }
  static double temperature(const TopKGate&) { return 1; }
  static bool bias_in_gate(const TopKGate& gate) { return gate.weight_bias.size() != 0; }
  static TopKGate with(TopKGate gate, const Eigen::RowVectorXd& bias, double) {
    if (bias_in_gate(gate)) gate.weight_bias = bias;
    return gate;
  }
};

namespace detail {

/// A schedule that stays at `tau`: the given one if it is learnable or has a value, else its two ends.
template <Schedule T>
T with_temperature(T schedule, double tau) {
  if constexpr (LearnableSchedule<T>) {
    schedule = T::starting_at(tau, std::min(schedule.minimum, 0.5 * tau));
  } else if constexpr (requires { schedule.value; }) {
    schedule.value = tau;
  } else {
    schedule.start = schedule.end = tau;
  }
  return schedule;
}

template <Schedule Temperature>
DenseToSparseGate<Temperature> dense_with_temperature(DenseToSparseGate<Temperature> gate, double tau) {
  gate.temperature = with_temperature(gate.temperature, tau);
  gate.at_inference = AtInference::Dense;
  return gate;
}

template <Schedule Temperature>
void require_plain_softmax(const DenseToSparseGate<Temperature>& gate) {
  if (gate.gumbel != 0) fail("moe::GaussianMoe: gumbel is ", gate.gumbel, ", expected 0: a likelihood has no noise");
  if (gate.weights != WeightLogits::Selection)
    fail("moe::GaussianMoe: the weights of the gate are Clean, expected Selection, softmax(z / tau)");
}

}  // namespace detail

/// The temperature at the end of the schedule, constant unless it is LearnableTemperature. at_inference and threshold
/// are ignored: the likelihood is that of the dense weights.
template <Schedule Temperature>
struct GateModel<DenseToSparseGate<Temperature>> {
  using G = DenseToSparseGate<Temperature>;
  using Inner = Identity;
  static constexpr bool kTempered = true, kFreeTemperature = LearnableSchedule<Temperature>;

  static GateForm form(const G& gate, Index num_experts) {
    gate.validate(num_experts);
    detail::require_plain_softmax(gate);
    return {.active = num_experts};
  }
  static double temperature(const G& gate) { return gate.temperature(kFinished); }
  static bool bias_in_gate(const G&) { return false; }
  static G with(const G& gate, const Eigen::RowVectorXd&, double tau) {
    return detail::dense_with_temperature(gate, tau);
  }
};

/// As for DenseToSparseGate; beta_0 is the bias of the gate, outside or inside of the activation as the gate says.
template <Activation Act, Schedule Temperature>
struct GateModel<ActivationGate<Act, Temperature>> {
  using G = ActivationGate<Act, Temperature>;
  using Inner = Act;
  static constexpr bool kTempered = true, kFreeTemperature = LearnableSchedule<Temperature>;

  static GateForm form(const G& gate, Index num_experts) {
    gate.validate(num_experts);
    detail::require_plain_softmax(gate.sparse);
    return {.active = num_experts, .bias = gate.bias_place};
  }
  static double temperature(const G& gate) { return gate.sparse.temperature(kFinished); }
  static bool bias_in_gate(const G&) { return true; }
  static G with(G gate, const Eigen::RowVectorXd& bias, double tau) {
    gate.bias = bias;
    gate.sparse = detail::dense_with_temperature(gate.sparse, tau);
    return gate;
  }
};

namespace detail {

inline GateScore gate_score(const CosineScore& score) {
  return {GateScoreKind::Cosine, score.weight_shift, score.input_shift};
}
inline GateScore gate_score(const ProductScore&) { return {}; }
inline GateScore gate_score(const DistanceScore&) { return {GateScoreKind::Distance}; }

}  // namespace detail

/// beta_1 are directions or centres, of all experts (LastSlope::Free), beta_0 the bias of the gate, up to a common
/// number. A fit takes the same unit for all x that the gate reads, as there is no other scale in a length; cosines
/// keep the origin.
template <class Score, Schedule Temperature>
struct GateModel<ScoredGate<Score, Temperature>> {
  using G = ScoredGate<Score, Temperature>;
  using Inner = std::conditional_t<std::is_same_v<Score, DistanceScore>, detail::DistanceInner, detail::CosineInner>;
  static constexpr bool kTempered = true, kFreeTemperature = LearnableSchedule<Temperature>;

  static GateForm form(const G& gate, Index num_experts) {
    gate.validate(num_experts);
    detail::require_plain_softmax(gate.sparse);
    return {.active = num_experts, .bias = BiasPlace::Outside, .score = detail::gate_score(gate.score)};
  }
  static double temperature(const G& gate) { return gate.sparse.temperature(kFinished); }
  static bool bias_in_gate(const G&) { return true; }
  static G with(G gate, const Eigen::RowVectorXd& bias, double tau) {
    gate.bias = bias;
    gate.sparse = detail::dense_with_temperature(gate.sparse, tau);
    return gate;
  }
};

/// beta_1 of all experts as above; the temperature divides the score alone, and the bias is outside of the sigmoid. The
/// model is the gate's whatever `sparse` says, whose temperature has to be 1.
template <class Score, Schedule Temperature>
struct GateModel<SigmoidGate<Score, Temperature>> {
  using G = SigmoidGate<Score, Temperature>;
  using Inner = std::conditional_t<std::is_same_v<Score, DistanceScore>, detail::SigmoidDistanceInner,
                                   detail::SigmoidProductInner>;
  static constexpr bool kTempered = true, kFreeTemperature = LearnableSchedule<Temperature>;

  static GateForm form(const G& gate, Index num_experts) {
    gate.validate(num_experts);
    detail::require_plain_softmax(gate.sparse);
    GateScore score = detail::gate_score(gate.score);
    score.link = ScoreLink::LogSigmoid;
    return {.active = num_experts, .bias = BiasPlace::Outside, .score = score};
  }
  static double temperature(const G& gate) { return gate.temperature(kFinished); }
  static bool bias_in_gate(const G&) { return true; }
  static G with(G gate, const Eigen::RowVectorXd& bias, double tau) {
    gate.bias = bias;
    gate.temperature = detail::with_temperature(gate.temperature, tau);
    gate.sparse = detail::dense_with_temperature(gate.sparse, 1);
    return gate;
  }
};

/// A gate that says how it enters a likelihood: a Gate for logits of type double, with a specialisation of GateModel.
template <class G>
concept LikelihoodGate = Gate<G, double> && requires(const G& gate, Index num_experts) {
  typename GateModel<G>::Inner;
  { GateModel<G>::form(gate, num_experts) } -> std::same_as<GateForm>;
  { GateModel<G>::temperature(gate) } -> std::same_as<double>;
};

static_assert(LikelihoodGate<SoftmaxGate> && LikelihoodGate<TopKGate> && LikelihoodGate<DenseToSparseGate<>> &&
              LikelihoodGate<ActivationGate<>> && LikelihoodGate<CosineGate<>> && LikelihoodGate<LaplaceGate<>> &&
              LikelihoodGate<SigmoidGate<ProductScore>> && LikelihoodGate<SigmoidGate<DistanceScore>>);

}  // namespace moe::inline MOE_ABI
