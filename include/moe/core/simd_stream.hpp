// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/simd_batch.hpp"

// Stores that go past the caches. A plain store first reads the line that it is about to overwrite; when what is
// written does not fit the caches anyway, that read is a third of the traffic.
namespace moe::inline MOE_ABI::simd {

/// store() to an address aligned to a register, past the caches where the instruction set can.
template <class S>
void stream(S* to, const Batch<S>& value) {
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
  value.store_unaligned(to);
#endif
}

/// To be called by the thread that streamed, before others may read: streamed stores are not ordered with later ones.
inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace moe::inline MOE_ABI::simd
