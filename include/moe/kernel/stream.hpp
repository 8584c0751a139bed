// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/core/aligned.hpp"
#include "moe/core/simd.hpp"

// Stores that go past the caches. A plain store first reads the line that it is about to overwrite; when what is
// written does not fit the caches anyway, that read is a third of the traffic.
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

/// store() to an address aligned to a register, past the caches where the instruction set can.
template <class S>
void stream(S* to, const simd::Batch<S>& value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    _mm512_stream_ps(to, value);
  else
    _mm512_stream_pd(to, value);
#elif defined(__AVX__)
  if constexpr (sizeof(S) == 4)
    _mm256_stream_ps(to, value);
  else
    _mm256_stream_pd(to, value);
#elif defined(__SSE2__)
  if constexpr (sizeof(S) == 4)
    _mm_stream_ps(to, value);
  else
    _mm_stream_pd(to, value);
#else
  simd::store(to, value);
#endif
}

/// To be called by the thread that streamed, before others may read: streamed stores are not ordered with later ones.
inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

/// store() or stream(), as a constant says.
template <bool kStream, class S>
void put(S* to, const simd::Batch<S>& value) {
  if constexpr (kStream)
    stream(to, value);
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
        cols, [&](Index c) { stream(to + c, simd::load(from + c)); },
        [&](Index c, Index count) { std::copy_n(from + c, count, to + c); });
  }
}

}  // namespace moe::inline MOE_ABI::kernel
