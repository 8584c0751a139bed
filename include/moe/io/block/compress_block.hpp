// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <variant>

#include "moe/compress/calibration.hpp"
#include "moe/compress/merge.hpp"
#include "moe/io/block/moe_block.hpp"

// Blocks of published models with fewer experts: with this header prune(), merge() and merge_in_subspace() take a
// MoeBlock, whose configuration then says how many experts are left.
namespace moe::inline MOE_ABI {

/// calibrate() of the routed experts of a block, at inference: tokens [num_tokens, model_dim] as the block reads them,
/// behind the norm that stands before it in a model; options.stream is what its output is added to. Throws
/// std::invalid_argument as that; with moments on for a block with experts of two kinds (LongCat), too.
///   const auto calibration = moe::calibrate_experts(block, tokens, {.moments = moe::Gather::Off, .use =
///   moe::Gather::On});
template <class Codec>
Calibration calibrate_experts(const BasicMoeBlock<Codec>& block, const ConstMatrixRef<float>& tokens,
                              const CalibrationOptions& options = {}) {
  return std::visit([&](const auto& layer) { return calibrate(layer, tokens, options); }, block.layer());
}

namespace detail {

template <class Combine>
void merge_experts(const BasicMoeBlock<F32>& from, BasicMoeBlock<F32>& to, const ExpertPlan& plan,
                   const MergeOptions& options, const Combine& combine) {
  std::visit(
      [&](auto& layer) {
        using Layer = std::remove_cvref_t<decltype(layer)>;
        if constexpr (IsPanelPool<std::remove_cvref_t<decltype(innermost(layer).experts())>>::value)
          merge_experts(std::get<Layer>(from.layer()), layer, plan, options, combine);
        else
          fail("moe::merge: family '", from.config().family, "' has experts of two kinds, expected one");
      },
      to.layer());
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
