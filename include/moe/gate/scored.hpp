// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

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

template <Schedule Temperature = ConstantSchedule>
using CosineGate = ScoredGate<CosineScore, Temperature>;
template <Schedule Temperature = ConstantSchedule>
using LaplaceGate = ScoredGate<DistanceScore, Temperature>;

}  // namespace moe::inline MOE_ABI
