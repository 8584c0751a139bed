// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "moe/core/simd.hpp"
#include "moe/core/simd_small_floats.hpp"

namespace moe::inline MOE_ABI::detail {

/// Rows and columns that share one scale of an FP8 weight.
inline constexpr Index kScaleBlock = 128;
/// Elements that share one scale of an MXFP4 weight, and the bytes that hold their codes.
inline constexpr Index kMxBlock = 32, kMxBytes = kMxBlock / 2;

/// 2^(code - 127), the scale E8M0 of an MXFP4 block; 255 is NaN.
inline float mx_scale(std::uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(code == 0 ? 0x00400000u : std::uint32_t{code} << 23);
}

/// values *= scale
inline void scale_values(std::span<float> values, float scale) {
  float* const data = values.data();
  const simd::Batch<float> factor(scale);
  simd::for_each<float>(
      std::ssize(values), [&](Index i) { simd::store(data + i, simd::load(data + i) * factor); },
      [&](Index i, Index count) {
        for (Index j = i; j < i + count; ++j) data[j] *= scale;
      });
}

}  // namespace moe::inline MOE_ABI::detail
