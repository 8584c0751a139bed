// SPDX-License-Identifier: MIT
#pragma once

#include "moe/gate/wrap/top_any.hpp"
#include "moe/routing/gradient.hpp"

namespace moe::inline MOE_ABI {

/// How many choices a token is expected to keep under a TopAnyGate: the mean over valid tokens of sum_i m_i =
/// sum_j j s_j, with the noise of the step; 0 without valid tokens.
///   logits, routing  of a training pass with the gate (tape.logits, tape.routing)
/// Returns the loss before `weight`; adds weight * dL/du to gradient.logits. Throws std::invalid_argument as the gate,
/// and on shapes that differ, before it writes anything. O(assignments), serial.
///   moe::kept_choices_loss(layer.gate(), tape.logits, tape.routing, {tape.step, tape.scratch}, 0.05, tape.losses);
template <class G, class Temperature, class S>
double kept_choices_loss(const TopAnyGate<G, Temperature>& gate, const MatrixView<S>& logits, const Routing<S>& routing,
                         const Context& context, double weight, RoutingGradient<S>& gradient) {
  constexpr const char* kFunction = "moe::kept_choices_loss";
  gate.template require_logits<S>(kFunction, logits);
  if (routing.num_tokens() != logits.rows())
    fail(kFunction, ": routing has ", routing.num_tokens(), " tokens, expected num_tokens = ", logits.rows());
  context.step.validate(kFunction, logits.rows());
  gate.template require_masks<S>(kFunction, logits, context, routing);
  Matrix<S>& dlogits = detail::accumulator(kFunction, "gradient.logits", gradient.logits, logits.rows(), logits.cols());
  const auto num_valid = static_cast<double>(context.step.num_valid(logits.rows()));
  double sum = 0;
  for (Index t = 0; t < logits.rows(); ++t)
    sum += static_cast<double>(
        gate.template expected_choices<S>(logits, context, t, routing, static_cast<S>(weight / num_valid), dlogits));
  return num_valid == 0 ? 0 : sum / num_valid;
}

}  // namespace moe::inline MOE_ABI
