// SPDX-License-Identifier: MIT
// The auxiliary losses of published models, by the conventions of their code.
#pragma once

#include <moe/gate/top_k.hpp>
#include <moe/routing/balance/load_balancing.hpp>
#include <moe/routing/balance/z_loss.hpp>
#include <vector>

namespace check {

/// The loss of Mixtral and most others: E * sum_k sum_e f[k, e] P[e] over the k best of a softmax of the logits,
/// whatever the gate of the model does. It counts shares of tokens where ours counts shares of choices, hence k times
/// ours.
inline double hugging_face_balance(const moe::Matrix<float>& logits, moe::Index k) {
  const moe::TopKGate gate{.k = k};
  moe::Routing<float> routing;
  moe::Matrix<float> probability;
  moe::RoutingGradient<float> ignored;
  gate.route(logits, moe::Step{}, routing);
  gate.probabilities(logits, moe::Step{}, probability);
  return static_cast<double>(k) * moe::load_balancing_loss(probability, routing, moe::Step{}, 0, ignored);
}

/// The loss of Switch: ours in each sequence of `length` tokens, averaged; a dropped token counts for expert 0.
inline double switch_balance(const moe::Matrix<float>& probability, const moe::Routing<float>& routing,
                             moe::Index length) {
  double sum = 0;
  const moe::Index sequences = probability.rows() / length;
  for (moe::Index s = 0; s < sequences; ++s) {
    moe::Routing<float> part;
    moe::RoutingGradient<float> ignored;
    part.resize(length, 1);
    for (moe::Index t = 0; t < length; ++t) {
      const moe::Index token = s * length + t;
      part.experts(t)[0] = routing.dropped(token)[0] ? 0 : routing.experts(token)[0];
    }
    sum += moe::load_balancing_loss<float>(probability.middleRows(s * length, length), part, moe::Step{}, 0, ignored);
  }
  return sum / static_cast<double>(sequences);
}

}  // namespace check
