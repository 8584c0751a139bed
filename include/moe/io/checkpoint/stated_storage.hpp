// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// How the weights of a checkpoint are stored: as a configuration says, or as a file has it.
enum class QuantMethod : std::uint8_t {
  Unstated,    ///< nothing is said; of a file: plain floats
  Fp8Blocks,   ///< F8_E4M3 or F8_E5M2 with a scale per block of outputs and inputs
  Fp8,         ///< the same with a scale per matrix or per output
  Mxfp4,       ///< E2M1, a power of two per 32 inputs
  Nvfp4,       ///< E2M1, an F8_E4M3 scale per 16 inputs times a float per matrix
  PackedInts,  ///< integers of 1 to 8 bits in words, as compressed-tensors "pack-quantized"
  Ints,        ///< integers of 8 bits, as compressed-tensors "int-quantized"
  Gptq,
  Awq,
  GgufBlocks,  ///< of llama.cpp, but MXFP4
};

/// What the shapes of a file leave open, as a configuration says it. A plain value.
struct StatedStorage {
  Index block_outputs = 128, block_inputs = 128;  ///< that share a scale of Fp8Blocks
  std::optional<Index> group = {};  ///< inputs that share a scale of integers; 0: all of them. Else as shapes say
  std::optional<int> bits = {};     ///< of integers
  bool zeros_less_one = true;       ///< GPTQ stores zero points less 1: in its first format, not in "gptq_v2"

  /// Throws std::invalid_argument for blocks without values and negative groups.
  void validate() const {
    if (block_outputs < 1 || block_inputs < 1)
      fail("moe::StatedStorage: blocks of ", block_outputs, " x ", block_inputs, ", expected 1 x 1 or larger");
    if (group && *group < 0) fail("moe::StatedStorage: group is ", *group, ", expected 0 for all inputs, or more");
  }

  friend bool operator==(const StatedStorage&, const StatedStorage&) = default;
};

namespace detail {

/// Modules that the lists of a configuration may name together: models have up to 10^5 matrices.
inline constexpr std::size_t kMostModules = std::size_t{1} << 18;

}  // namespace detail

}  // namespace moe::inline MOE_ABI