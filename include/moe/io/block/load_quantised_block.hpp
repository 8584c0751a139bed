// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/io/block/load_block.hpp"
#include "moe/io/checkpoint/load_codes.hpp"

namespace moe::inline MOE_ABI {

/// Loads the MoE block of a published model with the weights of its experts, shared ones included, in few bits. Router,
/// gates and biases are floats, as in load_moe_block().
///   options.format  none: every matrix keeps the format in which the file has it, codes and scales bit for bit, in all
///                   layouts of WeightSource. The block then computes the bits of load_moe_block()'s.
///                   else: every matrix is read as floats and rounded to this, as quantise(load_moe_block(...)) does it
///   rounding        how, instead of round_to_nearest(): a Quantiser such as RoundBlocks
///   const auto block = moe::load_quantised_block(checkpoint, config, {.layer = 3});
///   const auto small = moe::load_quantised_block(checkpoint, config, {.format = moe::WeightFormat::int4()});
/// Throws as load_moe_block(), and std::invalid_argument without a format for weights in F32 and F64 (nothing is
/// rounded that nobody asked to round), for gates and ups in different formats, and for scales that go across the
/// inputs of an expert; std::runtime_error naming the weight for a number that the format cannot hold. Memory: the
/// block, and while loading one matrix of floats per worker where there is a format. What a kept format takes beyond
/// the file: scales of 128 x 128 blocks are stored for every output (FP8 with F32 scales: 1/32 more), a panel is padded
/// to lines, the last one to a whole one, and routers are floats; see memory_bytes().
template <class = detail::WhenUsed>
QuantisedMoeBlock load_quantised_block(const Checkpoint& checkpoint, const MoeConfig& config,
                                              const LoadOptions& options = {}, const MatrixRounding& rounding = {}) {
  CodeLoader codes(options.format, rounding);
  return detail::load_block<Quantised>(checkpoint, config, options, [&](const auto& tensors, const auto& sources) {
    WeightLoader floats;
    for (std::vector<WeightSlice>& slices : detail::slices_of(tensors, sources))
      if (slices.front().to_codes)
        codes.add(std::move(slices));
      else
        floats.add(std::move(slices));
    detail::load_numbers(tensors, sources);
    floats.run();
    codes.run(options.progress);
  });
}

}  // namespace moe::inline MOE_ABI
