// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/aligned.hpp"
#include "moe/core/scratch.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI {

/// Everything that a forward pass produces on the way, reused call after call: it grows and never shrinks, so a warm
/// forward does not allocate. Any layer of the same scalar may use it. One per calling thread.
template <class S>
struct BasicWorkspace {
  RowBuffer<S> logits;      ///< [num_tokens, num_experts]
  Routing<S> routing;       ///< what the gate decided
  DispatchPlan plan;        ///< the routing sorted by expert
  RowBuffer<S> expert_out;  ///< [plan.num_rows(), at least model_dim], unweighted, in plan order
  Scratch scratch;          ///< of the experts
};

using Workspace = BasicWorkspace<float>;

}  // namespace moe::inline MOE_ABI
