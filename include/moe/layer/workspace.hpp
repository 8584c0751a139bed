// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/aligned.hpp"
#include "moe/core/exclusive.hpp"
#include "moe/core/scratch.hpp"
#include "moe/layer/routed_experts.hpp"

namespace moe::inline MOE_ABI {

/// Everything that a forward pass produces on the way, reused call after call: it grows and never shrinks, so a warm
/// forward does not allocate. Any layer of the same scalar may use it. One per calling thread: a forward pass that
/// finds it in use throws std::invalid_argument.
///
/// Bytes that a forward pass needs, for T tokens, E experts, A assignments (T * k) and output_dim columns of scalars S:
///   logits      T * E * sizeof(S)
///   routing     8 * T + 13 * A, plan 24 * A + 8 * E * (workers + 1), for S = float; 264 * E * workers more where the
///               numbers of rows of the experts are such that they share a few sets of the caches
///   rows        of the experts: A * output_dim * sizeof(S); with WeightOn::Input A * input_dim * sizeof(S) and a plan
///               more
///   scratch     with panel experts: for each layer of weights a block of hidden activations per worker, max(2 MiB, 16
///               tiles of rows), and a list of shares, 24 * (E + 300 * workers); with other experts their rows, and
///               what each of them keeps; with more experts than some hundred 10 * E * sizeof(S) per worker for gates
///   token_id    8 * max_tokens, in chunks
/// rows of logits, experts and hidden activations being padded to an odd number of cache lines. max_tokens bounds T,
/// and so every one of them.
template <class S>
struct BasicWorkspace {
  /// Most tokens that go through a layer at once; 0: all of them. More go in chunks of so many, which gives the same
  /// bits, and leaves the routing of the last chunk below. For gates that decide token by token only, and experts of
  /// one process.
  Index max_tokens = 0;

  RowBuffer<S> logits;                 ///< [num_tokens, num_logits]
  Routing<S> routing;                  ///< what the gate decided
  Scratch scratch;                     ///< of router, gate and mixture
  std::vector<std::int64_t> token_id;  ///< of the tokens of a chunk
  detail::Exclusive use;               ///< by one thread at a time

  /// The routing sorted by expert, by the last forward pass of RoutedExperts; empty in a copy of the workspace, and
  /// where no such pass was made.
  const DispatchPlan& plan() { return scratch.get<detail::RoutedRows<S>>().plan; }
};

using Workspace = BasicWorkspace<float>;

}  // namespace moe::inline MOE_ABI
