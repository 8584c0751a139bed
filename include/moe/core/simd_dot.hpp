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
/// Not __m512i, which is of integers of 64 bits: g++ 12 then keeps sums on the stack.
using Integers [[gnu::vector_size(64)]] = std::int32_t;
inline Integers of_register(__m512i value) { return reinterpret_cast<Integers>(value); }
inline __m512i to_register(Integers value) { return reinterpret_cast<__m512i>(value); }
inline Integers integers(std::int32_t value) { return of_register(_mm512_set1_epi32(value)); }
inline Integers load_integers(const std::byte* from) { return of_register(_mm512_loadu_si512(from)); }
inline void store_integers(std::byte* to, const Integers& value) { _mm512_storeu_si512(to, to_register(value)); }
inline Batch<float> to_floats(const Integers& value) { return _mm512_maskz_cvtepi32_ps(0xFFFF, to_register(value)); }
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
  return of_register(_mm512_dpbusd_epi32(to_register(sum), to_register(a), _mm512_set1_epi32(b)));
#elif defined(__AVX512BW__)  // pairs in 16 bits do not saturate: 128 * 127 * 2 < 2^15
  const __m512i ones = _mm512_set1_epi16(1), factor = _mm512_set1_epi32(b);
  __m512i first = to_register(a), second = factor;
  if constexpr (kFirst == FirstFactor::Signed) {
    second = _mm512_mask_sub_epi8(factor, _mm512_movepi8_mask(first), _mm512_setzero_si512(), factor);
    first = _mm512_abs_epi8(first);
  }
  return sum + of_register(_mm512_madd_epi16(_mm512_maddubs_epi16(first, second), ones));
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
  // Four registers of inputs in one; words of four outputs of one input side by side, then turned.
  const auto row = [&](Index i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * stride)); };
  __m512i rows = _mm512_castsi128_si512(row(0));
  rows = _mm512_maskz_inserti32x4(0xFFFF, rows, row(1), 1);
  rows = _mm512_maskz_inserti32x4(0xFFFF, rows, row(2), 2);
  rows = _mm512_maskz_inserti32x4(0xFFFF, rows, row(3), 3);
  const __m512i beside = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i turned =
      _mm512_maskz_broadcast_i32x4(0xFFFF, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return of_register(_mm512_shuffle_epi8(_mm512_maskz_permutexvar_epi32(0xFFFF, beside, rows), turned));
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
  return of_register(_mm512_xor_si512(to_register(bytes), _mm512_set1_epi8(-128)));
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
  const __m512i odd = _mm512_maskz_srli_epi32(0xFFFF, codes, 4);
  return {of_register(_mm512_shuffle_epi8(values, _mm512_and_si512(codes, mask))),
          of_register(_mm512_shuffle_epi8(values, _mm512_and_si512(odd, mask)))};
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

/// The sum of signed integers of 8 bits; `count` is a multiple of 8.
inline std::int32_t sum_of_bytes(const std::int8_t* bytes, Index count) {
#if defined(__SSE2__)  // as unsigned ones plus 128
  const __m128i highest = _mm_set1_epi8(-128), zero = _mm_setzero_si128();
  __m128i sum = zero;
  Index i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i));
    sum = _mm_add_epi32(sum, _mm_sad_epu8(_mm_xor_si128(sixteen, highest), zero));
  }
  std::int32_t result = _mm_cvtsi128_si32(sum) + _mm_cvtsi128_si32(_mm_srli_si128(sum, 8));
  if (i < count) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + i));
    result += _mm_cvtsi128_si32(_mm_sad_epu8(_mm_xor_si128(eight, highest), zero));
  }
  return result - 128 * static_cast<std::int32_t>(count);
#else
  std::int32_t result = 0;
  for (Index i = 0; i < count; ++i) result += bytes[i];
  return result;
#endif
}

/// Of every eight bytes the even ones, then the odd ones; `count` is a multiple of 8.
inline void set_pairs_apart(std::int8_t* bytes, Index count) {
  Index i = 0;
#if defined(__SSSE3__)
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  for (; i + 16 <= count; i += 16) {
    auto* const at = reinterpret_cast<__m128i*>(bytes + i);
    _mm_storeu_si128(at, _mm_shuffle_epi8(_mm_loadu_si128(at), order));
  }
#endif
  for (; i < count; i += 8) {
    std::array<std::int8_t, 8> eight;
    std::memcpy(eight.data(), bytes + i, 8);
    for (std::size_t j = 0; j < 4; ++j) {
      bytes[i + static_cast<Index>(j)] = eight[2 * j];
      bytes[i + static_cast<Index>(j) + 4] = eight[2 * j + 1];
    }
  }
}

/// Nearest BF16 of `count` floats, ties to even; NaN stays NaN. As VCVTNEPS2BF16, but subnormals are kept.
inline void store_bfloats(const float* from, Index count, std::uint16_t* to) {
  const auto rounded = [](float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    if (std::isnan(x)) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
  };
  Index i = 0;
#if defined(__AVX512BW__)
  for (; i + 16 <= count; i += 16) {
    const __m512i bits = _mm512_loadu_si512(from + i);
    const __m512i lowest = _mm512_and_si512(_mm512_maskz_srli_epi32(0xFFFF, bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(_mm512_castsi512_ps(bits), _mm512_castsi512_ps(bits), _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x00400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm512_maskz_cvtepi32_epi16(0xFFFF, _mm512_maskz_srli_epi32(0xFFFF, result, 16)));
  }
#endif
  for (; i < count; ++i) to[i] = rounded(from[i]);
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
