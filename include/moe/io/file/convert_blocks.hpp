// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>

#include "moe/core/simd.hpp"
#include "moe/core/simd_small_floats.hpp"
#include "moe/core/small_float.hpp"

namespace moe::inline MOE_ABI::detail {

/// Elements that share one scale of an MXFP4 weight, and the bytes that hold their codes.
inline constexpr Index kMxBlock = 32, kMxBytes = kMxBlock / 2;

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
