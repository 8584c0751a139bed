// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "moe/core/simd_batch.hpp"

// Numbers of 16, 8 and 4 bits in memory, anywhere aligned, as floats; exact. widen_eight() is there only where
// kWidensSmallFloats says so; others go number by number.
namespace moe::inline MOE_ABI::simd {

enum class FloatCode { Half, Bfloat, E5M2, E4M3 };

#if defined(__AVX2__) && defined(__F16C__)

inline constexpr bool kWidensSmallFloats = true;

/// Eight consecutive numbers.
template <FloatCode kType>
void widen_eight(const std::byte* from, float* to) {
  const auto widened = [&] {
    if constexpr (kType == FloatCode::Half) {
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    } else if constexpr (kType == FloatCode::Bfloat) {
      const __m256i codes = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      return _mm256_castsi256_ps(_mm256_slli_epi32(codes, 16));
    } else if constexpr (kType == FloatCode::E5M2) {  // the upper halves of Half
      const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
      return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(codes), 8));
    } else {  // as halves of another bias: multiplying subnormal floats instead is slow on some processors
      const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
      const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7F));
      const __m128i sign = _mm_slli_epi16(_mm_andnot_si128(_mm_set1_epi16(0x7F), codes), 8);
      const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F)), _mm_set1_epi16(0x7E00));
      const __m128i half = _mm_or_si128(_mm_or_si128(sign, nan), _mm_slli_epi16(magnitude, 7));
      return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(0x1p8f));
    }
  };
  _mm256_storeu_ps(to, widened());
}

#else

inline constexpr bool kWidensSmallFloats = false;

template <FloatCode kType>
void widen_eight(const std::byte*, float*) = delete;

#endif

/// 32 numbers E2M1, two in a byte, the even one in its low half, times a scale.
inline void widen_e2m1(const std::byte* from, float scale, float* to) {
#if defined(__AVX2__)
  // A value is a bfloat16 of two bytes, both looked up among sixteen.
  const __m128i upper = _mm_setr_epi8(0, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40, -0x80, -0x41, -0x41, -0x41, -0x40,
                                      -0x40, -0x40, -0x40);
  const __m128i lower =
      _mm_setr_epi8(0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40, 0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40);
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), nibble = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(pairs, nibble), odd = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
  const auto put = [&](__m128i bfloats, float* eight) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloats), 16);
    _mm256_storeu_ps(eight, _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(scale)));
  };
  const auto put_sixteen = [&](__m128i codes, float* sixteen) {
    const __m128i high = _mm_shuffle_epi8(upper, codes), low = _mm_shuffle_epi8(lower, codes);
    put(_mm_unpacklo_epi8(low, high), sixteen);
    put(_mm_unpackhi_epi8(low, high), sixteen + 8);
  };
  put_sixteen(_mm_unpacklo_epi8(even, odd), to);
  put_sixteen(_mm_unpackhi_epi8(even, odd), to + 16);
#else
  constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  for (std::size_t i = 0; i < 16; ++i) {
    const auto pair = std::to_integer<std::size_t>(from[i]);
    to[2 * i] = kValues[pair % 16] * scale;
    to[2 * i + 1] = kValues[pair / 16] * scale;
  }
#endif
}

}  // namespace moe::inline MOE_ABI::simd
