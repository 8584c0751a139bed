// SPDX-License-Identifier: MIT
#pragma once

#include "moe/routing/routing.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// Drops the choices of padding tokens, so that none reaches an expert whatever the gate did. Returns the number of
/// choices of valid tokens. O(assignments), no allocation. Throws if step.valid has another length.
template <class S>
Index drop_padding(const Step& step, Routing<S>& routing) {
  step.validate("moe::drop_padding", routing.num_tokens());
  Index valid_choices = routing.num_assignments();
  if (step.valid.empty()) return valid_choices;
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    if (step.is_valid(t)) continue;
    for (Index a = routing.begin(t); a < routing.end(t); ++a) routing.drop(a, kDroppedByGate);
    valid_choices -= routing.end(t) - routing.begin(t);
  }
  return valid_choices;
}

}  // namespace moe::inline MOE_ABI
