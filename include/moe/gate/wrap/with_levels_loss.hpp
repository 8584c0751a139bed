// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/gate/wrap/with_levels.hpp"
#include "moe/routing/gradient.hpp"

namespace moe::inline MOE_ABI {

/// What choices are expected to cost under a WithLevels: the mean over those that are kept of sum_l s_l bits_l, with
/// the noise of the step; 0 without choices.
///   bits             [levels], of a weight, or any other price
///   logits, routing  of a pass with the gate (tape.logits, tape.routing)
/// Returns the loss before `weight`; adds weight * dL/du to gradient.logits. Throws std::invalid_argument as the gate,
/// for another number of prices and on shapes that differ, before it writes anything. O(assignments), serial.
///   moe::mean_bits_loss(layer.gate(), bits, tape.logits, tape.routing, {tape.step, tape.scratch}, 0.05, tape.losses);
template <class G, class Temperature, class S>
double mean_bits_loss(const WithLevels<G, Temperature>& gate, std::span<const double> bits, const MatrixView<S>& logits,
                      const Routing<S>& routing, const Context& context, double weight, RoutingGradient<S>& gradient) {
  constexpr const char* kFunction = "moe::mean_bits_loss";
  if (std::ssize(bits) != gate.levels)
    fail(kFunction, ": bits of ", bits.size(), " levels, expected levels = ", gate.levels);
  context.step.validate(kFunction, logits.rows());
  const auto for_each = [&](const auto& f) {
    gate.template for_each_choice<S>(kFunction, logits, context, routing, [&](Index t, Index e, std::span<const S> s) {
      double mean = 0;
      for (std::size_t l = 0; l < s.size(); ++l) mean += static_cast<double>(s[l]) * bits[l];
      f(t, e, s, mean);
    });
  };
  double sum = 0;
  Index count = 0;
  for_each([&](Index, Index, std::span<const S>, double mean) { sum += mean, ++count; });
  const Index scores = gate.template gate_logits<S>(kFunction, logits);
  Matrix<S>& dlogits = detail::accumulator(kFunction, "gradient.logits", gradient.logits, logits.rows(), logits.cols());
  if (count == 0) return 0;
  const double slope = weight / static_cast<double>(count) / gate.tau(context.step);
  for_each([&](Index t, Index e, std::span<const S> s, double mean) {
    for (std::size_t l = 0; l < s.size(); ++l)
      dlogits(t, scores + e * gate.levels + static_cast<Index>(l)) +=
          static_cast<S>(slope * static_cast<double>(s[l]) * (bits[l] - mean));
  });
  return sum / static_cast<double>(count);
}

}  // namespace moe::inline MOE_ABI
