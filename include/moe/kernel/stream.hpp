// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/core/aligned.hpp"
#include "moe/core/simd.hpp"
#include "moe/core/simd_stream.hpp"

// Which results are stored past the caches, and copies that may be.
namespace moe::inline MOE_ABI::kernel {

/// Outputs of this many bytes and more are written past the caches: the last-level cache of the machine that this was
/// measured on (Zen 5, 32 MiB). There both kinds of stores cost the same; at 4 MiB plain ones are 1.6 times as fast, at
/// 256 MiB the others.
inline constexpr Index kStreamFrom = Index{32} << 20;

/// Whether an output of [rows, cols] scalars S should be written past the caches.
template <class S>
constexpr bool worth_streaming(Index rows, Index cols) {
  return rows * cols * static_cast<Index>(sizeof(S)) >= kStreamFrom;
}

/// store() or stream(), as a constant says.
template <bool kStream, class S>
void put(S* to, const simd::Batch<S>& value) {
  if constexpr (kStream)
    simd::stream(to, value);
  else
    simd::store(to, value);
}

/// Copies cols scalars; `to` starts a row of a RowBuffer.
template <bool kStream, class S>
void copy_row(const S* from, Index cols, S* to) {
  if constexpr (!kStream) {
    std::copy_n(from, cols, to);
  } else {
    simd::for_each<S>(
        cols, [&](Index c) { simd::stream(to + c, simd::load(from + c)); },
        [&](Index c, Index count) { std::copy_n(from + c, count, to + c); });
  }
}

}  // namespace moe::inline MOE_ABI::kernel
