// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <type_traits>

#include "moe/gate/activation.hpp"

namespace moe::inline MOE_ABI {

/// The cosine of token and expert, or with shifts > 0 the perturbed one,
///   beta_j . x / ((|beta_j| + weight_shift) (|x| + input_shift))
/// The cosine does not know the length of beta_j, which therefore no data identify. With a weight_shift > 0 it does,
/// but a softmax knows the vectors beta_j / (|beta_j| + weight_shift) only up to a common shift, and up to a factor
/// where the temperature is free. An input_shift > 0 makes it continuous at x = 0. Nguyen et al., "Statistical
/// advantages of perturbing cosine router in sparse mixture of experts" (arXiv:2405.14131).
struct CosineScore {
  double weight_shift = 0, input_shift = 0;  ///< >= 0, in the units of beta_j and x

  void validate(const char* function) const {
    if (!(weight_shift >= 0 && std::isfinite(weight_shift) && input_shift >= 0 && std::isfinite(input_shift)))
      fail(function, ": weight_shift and input_shift are ", weight_shift, " and ", input_shift,
           ", expected finite numbers >= 0");
  }
  friend bool operator==(const CosineScore&, const CosineScore&) = default;
};

/// -|x - beta_j|: Laplace gating, whose experts have centres.
/// Han et al., "FuseMoE: mixture-of-experts transformers for fleximodal fusion" (arXiv:2402.03226).
struct DistanceScore {
  void validate(const char*) const {}
  friend bool operator==(const DistanceScore&, const DistanceScore&) = default;
};

/// A gate for logits that are cosines or distances instead of inner products: weights are softmax((logit + bias) /
/// tau), as ActivationGate<Identity> has it, by whose rule it routes. What makes the logits in a layer is the router
/// (CosineRouter); in a likelihood (moe/gaussian), where the gate has to say what its logits are, it is `score`, with
/// beta_1 as directions or centres. Without a bias of the inputs: another origin of x is another cosine.
template <class Score, Schedule Temperature = ConstantSchedule>
struct ScoredGate : ActivationGate<Identity, Temperature> {
  Score score = {};

  void validate(Index num_experts) const {
    score.validate("moe::ScoredGate");
    ActivationGate<Identity, Temperature>::validate(num_experts);
  }
};

/// beta_j . x.
struct ProductScore {
  void validate(const char*) const {}
  friend bool operator==(const ProductScore&, const ProductScore&) = default;
};

/// The normalised sigmoid of a score over a temperature:
///   weight_j = e^bias_j sigmoid(s_j / tau) / sum_l e^bias_l sigmoid(s_l / tau)
/// Its logits are s_j / tau, which the router makes; in a likelihood (moe/gaussian) the gate says what they are,
/// `score` and `temperature`. It routes as ActivationGate<LogSigmoid> with its bias outside, where `sparse` may not
/// have a temperature of its own: 1.
/// ProductScore: s_j = beta_j . x. The derivative tau d/dtau + sum_j beta_j . d/dbeta_j of every weight, and so of the
/// density, is 0: only beta_j / tau is known. A free tau never converges, and what depends on it converges slower than
/// any power of n.
/// DistanceScore: s_j = -|x - beta_j|. The derivative of s_j / tau by tau is |x - beta_j| / tau^2, that by beta_j is
/// (x - beta_j) / (|x - beta_j| tau): as functions of x they are linearly independent, and tau is known to n^-1/2.
/// With the bias in the sigmoid, sigmoid((s_j + bias_j) / tau), the identity of products holds with bias d/dbias beside
/// it. Two experts that are one have e^bias that add up; hence the bias outside.
/// Pham et al., "Rethinking multinomial logistic mixture of experts with sigmoid gating function" (arXiv:2602.01466).
template <class Score, Schedule Temperature = ConstantSchedule>
struct SigmoidGate : ActivationGate<LogSigmoid, ConstantSchedule> {
  static_assert(std::is_same_v<Score, ProductScore> || std::is_same_v<Score, DistanceScore>,
                "moe::SigmoidGate: the score is a ProductScore or a DistanceScore");

  Score score = {};
  Temperature temperature = {};

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(Index num_experts) const {
    detail::validate_temperature("moe::SigmoidGate", temperature);
    ActivationGate<LogSigmoid, ConstantSchedule>::validate(num_experts);
    if (bias_place != BiasPlace::Outside)
      fail("moe::SigmoidGate: the bias is inside of the sigmoid, expected Outside (ActivationGate<LogSigmoid> has it)");
    if (sparse.temperature.value != 1)
      fail("moe::SigmoidGate: sparse has temperature ", sparse.temperature.value,
           ", expected 1: `temperature` divides the scores");
  }
};

template <Schedule Temperature = ConstantSchedule>
using CosineGate = ScoredGate<CosineScore, Temperature>;
template <Schedule Temperature = ConstantSchedule>
using LaplaceGate = ScoredGate<DistanceScore, Temperature>;

}  // namespace moe::inline MOE_ABI
