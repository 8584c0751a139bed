// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/core/simd.hpp"

// Between floats in memory and registers of double: as many numbers as such a register has lanes.
namespace moe::inline MOE_ABI::simd {

/// Exact. Reads kLanes<double> floats, which lie on a multiple of 8 bytes.
inline Batch<double> load_widened(const float* from) {
#if defined(__AVX512F__)  // the masked form: see low_bits_to_exponent
  return _mm512_maskz_cvtps_pd(0xFF, _mm256_loadu_ps(from));
#elif defined(__AVX__)
  return _mm256_cvtps_pd(_mm_loadu_ps(from));
#elif defined(__SSE2__)
  return _mm_cvtps_pd(_mm_loadl_pi(_mm_setzero_ps(), reinterpret_cast<const __m64*>(from)));
#else
  alignas(64) std::array<double, static_cast<std::size_t>(kLanes<double>)> lane;
  for (std::size_t i = 0; i < lane.size(); ++i) lane[i] = static_cast<double>(from[i]);
  return Batch<double>::load_aligned(lane.data());
#endif
}

/// Rounds to the nearest float; beyond the largest one to infinity. To a multiple of 8 bytes.
inline void store_narrowed(float* to, const Batch<double>& value) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(to, _mm512_maskz_cvtpd_ps(0xFF, value));
#elif defined(__AVX__)
  _mm_storeu_ps(to, _mm256_cvtpd_ps(value));
#elif defined(__SSE2__)
  _mm_storel_pi(reinterpret_cast<__m64*>(to), _mm_cvtpd_ps(value));
#else
  alignas(64) std::array<double, static_cast<std::size_t>(kLanes<double>)> lane;
  value.store_aligned(lane.data());
  for (std::size_t i = 0; i < lane.size(); ++i) to[i] = static_cast<float>(lane[i]);
#endif
}

}  // namespace moe::inline MOE_ABI::simd
