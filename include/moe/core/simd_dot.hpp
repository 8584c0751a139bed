// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/core/simd_codes.hpp"

// Products of integers of 8 bits, four to a lane, summed up in 32 bits: exact, so the same on every instruction set.
namespace moe::inline MOE_ABI::simd {

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
inline constexpr bool kMultipliesUnsigned = true;  ///< unsigned by signed without saturation
#elif defined(__AVX2__) && !defined(__AVX512F__) && defined(__AVXVNNI__)
inline constexpr bool kMultipliesUnsigned = true;
#else
inline constexpr bool kMultipliesUnsigned = false;
#endif

/// As many integers of 32 bits as a register has floats.
#if defined(__AVX512BW__)
using Integers = __m512i;
inline Integers integers(std::int32_t value) { return _mm512_set1_epi32(value); }
inline Integers load_integers(const std::byte* from) { return _mm512_loadu_si512(from); }
inline void store_integers(std::byte* to, const Integers& value) { _mm512_storeu_si512(to, value); }
inline Batch<float> to_floats(const Integers& value) { return _mm512_maskz_cvtepi32_ps(0xFFFF, value); }
#elif defined(__AVX2__) && !defined(__AVX512F__)
using Integers = __m256i;
inline Integers integers(std::int32_t value) { return _mm256_set1_epi32(value); }
inline Integers load_integers(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store_integers(std::byte* to, const Integers& value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}
inline Batch<float> to_floats(const Integers& value) { return _mm256_cvtepi32_ps(value); }
#else
using Integers = std::array<std::int32_t, static_cast<std::size_t>(kLanes<float>)>;
inline Integers integers(std::int32_t value) {
  Integers result;
  result.fill(value);
  return result;
}
inline Integers load_integers(const std::byte* from) {
  Integers result;
  std::memcpy(result.data(), from, sizeof result);
  return result;
}
inline void store_integers(std::byte* to, const Integers& value) { std::memcpy(to, value.data(), sizeof value); }
inline Batch<float> to_floats(const Integers& value) {
  alignas(64) std::array<float, static_cast<std::size_t>(kLanes<float>)> lane;
  for (std::size_t i = 0; i < lane.size(); ++i) lane[i] = static_cast<float>(value[i]);
  return Batch<float>::load_aligned(lane.data());
}
#endif

/// Whether the first factors have a sign.
enum class FirstFactor { Unsigned, Signed };

/// sum + a[0] * b[0] + ... + a[3] * b[3] in every lane: four integers of 8 bits of a register, times those of `b`, from
/// -127 to 127. Signed ones are there where kMultipliesUnsigned is not; unsigned ones are then below 128.
template <FirstFactor kFirst>
Integers add_products(const Integers& sum, const Integers& a, std::int32_t b) {
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
  static_assert(kFirst == FirstFactor::Unsigned);
  return _mm512_dpbusd_epi32(sum, a, _mm512_set1_epi32(b));
#elif defined(__AVX512BW__)  // pairs in 16 bits do not saturate: 128 * 127 * 2 < 2^15
  const __m512i ones = _mm512_set1_epi16(1), factor = _mm512_set1_epi32(b);
  if constexpr (kFirst == FirstFactor::Unsigned) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, factor), ones));
  } else {
    const __mmask64 negative = _mm512_movepi8_mask(a);
    const __m512i turned = _mm512_mask_sub_epi8(factor, negative, _mm512_setzero_si512(), factor);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(a), turned), ones));
  }
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i factor = _mm256_set1_epi32(b);
#if defined(__AVXVNNI__)
  static_assert(kFirst == FirstFactor::Unsigned);
  return _mm256_dpbusd_avx_epi32(sum, a, factor);
#else
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kFirst == FirstFactor::Unsigned)
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, factor), ones));
  else  // pairs in 16 bits do not saturate: 128 * 127 * 2 < 2^15
    return _mm256_add_epi32(
        sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(factor, a)), ones));
#endif
#else
  Integers result = sum;
  for (std::size_t lane = 0; lane < result.size(); ++lane) {
    const auto word = static_cast<std::uint32_t>(a[lane]), other = static_cast<std::uint32_t>(b);
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t byte = word >> 8 * i & 255u;
      const int first = kFirst == FirstFactor::Unsigned ? static_cast<int>(byte) : static_cast<std::int8_t>(byte);
      result[lane] += first * static_cast<std::int8_t>(other >> 8 * i & 255u);
    }
  }
  return result;
#endif
}

/// Four rows of bytes, one of each for every lane, as words of four.
inline Integers words_of_bytes(const std::byte* from, Index stride) {
#if defined(__AVX512BW__)
  const auto row = [&](Index i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * stride)); };
  const __m128i lower = _mm_unpacklo_epi8(row(0), row(1)), upper = _mm_unpackhi_epi8(row(0), row(1));
  const __m128i lower2 = _mm_unpacklo_epi8(row(2), row(3)), upper2 = _mm_unpackhi_epi8(row(2), row(3));
  const __m256i first = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(lower, lower2)),
                                                _mm_unpackhi_epi16(lower, lower2), 1);
  const __m256i second = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(upper, upper2)),
                                                 _mm_unpackhi_epi16(upper, upper2), 1);
  return _mm512_maskz_inserti64x4(0xFF, _mm512_castsi256_si512(first), second, 1);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const auto row = [&](Index i) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i * stride)); };
  const __m128i pairs = _mm_unpacklo_epi8(row(0), row(1)), pairs2 = _mm_unpacklo_epi8(row(2), row(3));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(pairs, pairs2)),
                                 _mm_unpackhi_epi16(pairs, pairs2), 1);
#else
  Integers result{};
  for (std::size_t lane = 0; lane < result.size(); ++lane) {
    std::uint32_t word = 0;
    for (Index i = 0; i < 4; ++i)
      word |= std::to_integer<std::uint32_t>(from[i * stride + static_cast<Index>(lane)]) << 8 * i;
    result[lane] = static_cast<std::int32_t>(word);
  }
  return result;
#endif
}

/// Every byte with its highest bit turned: signed integers plus 128.
inline Integers plus_128(const Integers& bytes) {
#if defined(__AVX512BW__)
  return _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
#else
  Integers result = bytes;
  for (std::int32_t& word : result)
    word = std::bit_cast<std::int32_t>(std::bit_cast<std::uint32_t>(word) ^ 0x80808080u);
  return result;
#endif
}

/// The even, then the odd of eight codes of 4 bits in every lane, by a table of bytes.
struct TwoIntegers {
  Integers even, odd;
};
inline TwoIntegers look_up_bytes(const std::byte* words, const std::array<std::uint8_t, 16>& table) {
#if defined(__AVX512BW__)
  const __m512i codes = _mm512_loadu_si512(words), mask = _mm512_set1_epi8(15);
  const __m512i values =
      _mm512_maskz_broadcast_i32x4(0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data())));
  return {_mm512_shuffle_epi8(values, _mm512_and_si512(codes, mask)),
          _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_maskz_srli_epi32(0xFFFF, codes, 4), mask))};
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)), mask = _mm256_set1_epi8(15);
  const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data())));
  return {_mm256_shuffle_epi8(values, _mm256_and_si256(codes, mask)),
          _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi32(codes, 4), mask))};
#else
  TwoIntegers result{};
  for (std::size_t lane = 0; lane < result.even.size(); ++lane) {
    std::uint32_t even = 0, odd = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      const auto pair = std::to_integer<std::size_t>(words[4 * lane + i]);
      even |= std::uint32_t{table[pair & 15]} << 8 * i;
      odd |= std::uint32_t{table[pair >> 4]} << 8 * i;
    }
    result.even[lane] = std::bit_cast<std::int32_t>(even);
    result.odd[lane] = std::bit_cast<std::int32_t>(odd);
  }
  return result;
#endif
}

/// Nearest integers of a register of floats from -127 to 127, ties to even, a byte each.
inline void store_rounded(const Batch<float>& values, std::int8_t* to) {
#if defined(__AVX512BW__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm512_maskz_cvtsepi32_epi8(0xFFFF, _mm512_maskz_cvtps_epi32(0xFFFF, values)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i words = _mm256_cvtps_epi32(values);
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(shorts, shorts));
#else
  alignas(64) std::array<float, static_cast<std::size_t>(kLanes<float>)> lane;
  values.store_aligned(lane.data());
  for (std::size_t i = 0; i < lane.size(); ++i) to[i] = static_cast<std::int8_t>(std::nearbyint(lane[i]));
#endif
}

#if defined(__AVX512BW__) && defined(__AVX512BF16__)
inline constexpr bool kMultipliesBfloats = true;

/// sum + a[0] * b[0] + a[1] * b[1] in every lane of two bfloats, as the instruction VDPBF16PS rounds it.
inline Batch<float> add_bfloat_products(const Batch<float>& sum, const std::byte* a, std::uint32_t b) {
  const __m512i pairs = _mm512_loadu_si512(a), factor = _mm512_set1_epi32(std::bit_cast<std::int32_t>(b));
  return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(pairs), std::bit_cast<__m512bh>(factor));
}
#else
inline constexpr bool kMultipliesBfloats = false;
inline Batch<float> add_bfloat_products(const Batch<float>& sum, const std::byte*, std::uint32_t) { return sum; }
#endif

}  // namespace moe::inline MOE_ABI::simd
