// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "moe/core/simd.hpp"

namespace moe::inline MOE_ABI::detail {

/// Rows and columns that share one scale of an FP8 weight.
inline constexpr Index kScaleBlock = 128;
/// Elements that share one scale of an MXFP4 weight, and the bytes that hold their codes.
inline constexpr Index kMxBlock = 32, kMxBytes = kMxBlock / 2;

inline constexpr std::array<float, 16> kMxValues{0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

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

/// A block of MXFP4: two codes (E2M1) in a byte, the even element in its low half.
inline void decode_mx(const std::byte* bytes, float scale, float* values) {
#if defined(__AVX2__)
  // A value is a bfloat16 of two bytes, both looked up among sixteen.
  const __m128i upper = _mm_setr_epi8(0, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40, -0x80, -0x41, -0x41, -0x41, -0x40,
                                      -0x40, -0x40, -0x40);
  const __m128i lower =
      _mm_setr_epi8(0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40, 0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40);
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)), nibble = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(pairs, nibble), odd = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
  const auto put = [&](__m128i bfloats, float* to) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloats), 16);
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(scale)));
  };
  const auto put_sixteen = [&](__m128i codes, float* to) {
    const __m128i high = _mm_shuffle_epi8(upper, codes), low = _mm_shuffle_epi8(lower, codes);
    put(_mm_unpacklo_epi8(low, high), to);
    put(_mm_unpackhi_epi8(low, high), to + 8);
  };
  put_sixteen(_mm_unpacklo_epi8(even, odd), values);
  put_sixteen(_mm_unpackhi_epi8(even, odd), values + 16);
#else
  for (std::size_t i = 0; i < static_cast<std::size_t>(kMxBytes); ++i) {
    const auto pair = std::to_integer<std::size_t>(bytes[i]);
    values[2 * i] = kMxValues[pair % 16] * scale;
    values[2 * i + 1] = kMxValues[pair / 16] * scale;
  }
#endif
}

}  // namespace moe::inline MOE_ABI::detail
