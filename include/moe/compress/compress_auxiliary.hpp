// SPDX-License-Identifier: MIT
#pragma once

#include "moe/layer/compressed_experts.hpp"
#include "moe/layer/structure.hpp"

namespace moe::inline MOE_ABI {

/// The layer of which the first `main` choices of a token run, and the others scale what those read by vectors that are
/// to be learned: see CompressedExperts. They start at 1, with which it computes what its main choices compute. Router,
/// gate, experts and branches stay. Throws std::invalid_argument unless 1 <= main <= num_experts.
///   auto fast = moe::compress_auxiliary(layer, /*main=*/1);   // of a TopKGate with k = 2: half of the work
/// O(parameters).
template <class R, class G, ExpertSet X>
auto compress_auxiliary(const MoeLayer<R, G, X>& layer, Index main, SkippedWeight auxiliary = SkippedWeight::Lost) {
  return with_experts(layer, CompressedExperts<X>(layer.mixture(), main, auxiliary));
}
template <class Layer, class... Branches>
auto compress_auxiliary(const WithBranches<Layer, Branches...>& layer, Index main,
                        SkippedWeight auxiliary = SkippedWeight::Lost) {
  return detail::with_layer(layer, compress_auxiliary(layer.layer(), main, auxiliary));
}

}  // namespace moe::inline MOE_ABI
