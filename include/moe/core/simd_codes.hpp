// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "moe/core/simd_bfloat.hpp"
#include "moe/core/small_float.hpp"

// Codes of weights in memory, anywhere aligned, as registers of floats; all exact. A lane's code lies at the place of
// the lane: codes of 16 and 8 bits one after the other, smaller ones in words of 32 bits, several inputs to a lane.
namespace moe::inline MOE_ABI::simd {

static_assert(std::endian::native == std::endian::little, "moe: codes of weights are read in words of 32 bits");

namespace detail {

/// f(element of a lane), lane by lane: where there is no instruction.
template <class Stored, class F>
Batch<float> map_lanes(const std::byte* from, const F& f) {
  constexpr auto kCount = static_cast<std::size_t>(kLanes<float>);
  std::array<Stored, kCount> stored;
  alignas(64) std::array<float, kCount> lane;
  std::memcpy(stored.data(), from, sizeof stored);
  for (std::size_t i = 0; i < kCount; ++i) lane[i] = f(stored[i]);
  return Batch<float>::load_aligned(lane.data());
}

/// The same of words in a register.
template <class F>
Batch<float> map_words(const Batch<float>& words, const F& f) {
  constexpr auto kCount = static_cast<std::size_t>(kLanes<float>);
  alignas(64) std::array<float, kCount> lane;
  words.store_aligned(lane.data());
  for (float& value : lane) value = f(std::bit_cast<std::uint32_t>(value));
  return Batch<float>::load_aligned(lane.data());
}

#if defined(__AVX512F__)
using Bytes = __m128i;   // a byte per lane
using Shorts = __m256i;  // two
inline Bytes load_bytes(const std::byte* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
inline Batch<float> of_halves(Shorts halves) { return _mm512_maskz_cvtph_ps(0xFFFF, halves); }
inline Shorts extended(Bytes bytes) { return _mm256_cvtepi8_epi16(bytes); }
#elif defined(__AVX2__) && defined(__F16C__)
using Bytes = __m128i;
using Shorts = __m128i;
inline Bytes load_bytes(const std::byte* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); }
inline Batch<float> of_halves(Shorts halves) { return _mm256_cvtph_ps(halves); }
inline Shorts extended(Bytes bytes) { return _mm_cvtepi8_epi16(bytes); }
#endif

}  // namespace detail

/// A register as it is: words of codes.
inline Batch<float> load_words(const std::byte* from) {
#if defined(__SSE2__)  // whose loads take any address
  return load(reinterpret_cast<const float*>(from));
#else
  return detail::map_lanes<float>(from, [](float word) { return word; });
#endif
}

/// Numbers of type F16.
inline Batch<float> load_halves(const std::byte* from) {
#if defined(__AVX512F__)
  return detail::of_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && defined(__F16C__)
  return detail::of_halves(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  return detail::map_lanes<std::uint16_t>(from, moe::detail::half_to_float);
#endif
}

/// Numbers of type BF16.
inline Batch<float> load_bfloats(const std::byte* from) {
#if defined(__AVX512F__)  // the masked forms: see low_bits_to_exponent
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, words, 16));
#elif defined(__AVX2__)
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
#else
  return detail::map_lanes<std::uint16_t>(from, moe::detail::bfloat_to_float);
#endif
}

/// Signed integers of 8 bits.
inline Batch<float> load_int8(const std::byte* from) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtepi32_ps(0xFFFF, _mm512_maskz_cvtepi8_epi32(0xFFFF, detail::load_bytes(from)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return detail::map_lanes<std::int8_t>(from, [](std::int8_t code) { return static_cast<float>(code); });
#endif
}

/// Scales of type E8M0; 255 is NaN.
inline Batch<float> load_e8m0(const std::byte* from) {
#if defined(__AVX512F__)
  const __m512i codes = _mm512_maskz_cvtepu8_epi32(0xFFFF, detail::load_bytes(from));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(codes, _mm512_set1_epi32(255));
  const __m512i words = _mm512_maskz_max_epu32(0xFFFF, _mm512_maskz_slli_epi32(0xFFFF, codes, 23),
                                               _mm512_set1_epi32(0x00400000));  // 2^-127 is subnormal
  return _mm512_castsi512_ps(_mm512_mask_or_epi32(words, nan, words, _mm512_set1_epi32(0x00400000)));
#elif defined(__AVX2__)
  const __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  const __m256i quiet = _mm256_set1_epi32(0x00400000);
  const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi32(codes, _mm256_set1_epi32(255)), quiet);
  const __m256i words = _mm256_max_epu32(_mm256_slli_epi32(codes, 23), quiet);  // 2^-127 is subnormal
  return _mm256_castsi256_ps(_mm256_or_si256(words, nan));
#else
  return detail::map_lanes<std::uint8_t>(from, moe::detail::e8m0_to_float);
#endif
}

/// Numbers of type E5M2: the upper bytes of F16.
inline Batch<float> load_e5m2(const std::byte* from) {
#if defined(__AVX512F__)
  return detail::of_halves(_mm256_slli_epi16(detail::extended(detail::load_bytes(from)), 8));
#elif defined(__AVX2__) && defined(__F16C__)
  return detail::of_halves(_mm_slli_epi16(detail::extended(detail::load_bytes(from)), 8));
#else
  return detail::map_lanes<std::uint8_t>(from,
                                         [](auto code) { return moe::detail::kFloatOfCode<moe::detail::E5M2>[code]; });
#endif
}

/// Numbers of type E4M3 times 2^-8, by which they are F16 of the same bits; NaN reads as 480 * 2^-8.
inline Batch<float> load_e4m3_as_halves(const std::byte* from) {
#if defined(__AVX512F__)  // the sign is extended into bit 14, too
  return detail::of_halves(_mm256_and_si256(_mm256_slli_epi16(detail::extended(detail::load_bytes(from)), 7),
                                            _mm256_set1_epi16(static_cast<short>(0xBFFF))));
#elif defined(__AVX2__) && defined(__F16C__)
  return detail::of_halves(_mm_and_si128(_mm_slli_epi16(detail::extended(detail::load_bytes(from)), 7),
                                         _mm_set1_epi16(static_cast<short>(0xBFFF))));
#else
  return detail::map_lanes<std::uint8_t>(from, [](std::uint8_t code) {
    return moe::detail::half_to_float(static_cast<std::uint16_t>((code & 0x80u) << 8 | (code & 0x7Fu) << 7));
  });
#endif
}

/// Numbers of type E4M3.
inline Batch<float> load_e4m3(const std::byte* from) {
  const Batch<float> value = load_e4m3_as_halves(from) * Batch<float>(256.0f);
  return select(simd::abs(value) == Batch<float>(480.0f), Batch<float>(std::numeric_limits<float>::quiet_NaN()), value);
}

namespace detail {

/// Bits [4 i, 4 i + 4) of every word, in the lowest bits (other bits stay); i may be a constant.
template <class I>
auto words_from(const Batch<float>& words, I i) {
  constexpr bool kConstant = !std::is_integral_v<I>;
#if defined(__AVX512F__)
  if constexpr (kConstant)
    return _mm512_maskz_srli_epi32(0xFFFF, _mm512_castps_si512(words), static_cast<unsigned>(4 * I::value));
  else
    return _mm512_maskz_srl_epi32(0xFFFF, _mm512_castps_si512(words), _mm_cvtsi32_si128(4 * i));
#elif defined(__AVX2__)
  if constexpr (kConstant)
    return _mm256_srli_epi32(_mm256_castps_si256(words), 4 * I::value);
  else
    return _mm256_srl_epi32(_mm256_castps_si256(words), _mm_cvtsi32_si128(4 * i));
#else
  (void)kConstant;
  (void)i;
  return words;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
/// Bits [4 i, 4 i + 4) of every word, in the highest bits.
template <class I>
__m256i words_up_from(const Batch<float>& words, I i) {
  if constexpr (!std::is_integral_v<I>)
    return _mm256_slli_epi32(_mm256_castps_si256(words), 28 - 4 * I::value);
  else
    return _mm256_sll_epi32(_mm256_castps_si256(words), _mm_cvtsi32_si128(28 - 4 * i));
}
#endif

inline constexpr std::array<float, 16> kFloatOfInt4{0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};

/// The value of the i-th of eight codes of every word by a table of sixteen.
template <class I>
Batch<float> look_up(const Batch<float>& words, I i, const std::array<float, 16>& table) {
#if defined(__AVX512F__)
  return _mm512_maskz_permutexvar_ps(0xFFFF, words_from(words, i), _mm512_loadu_ps(table.data()));
#else
  return map_words(words, [&](std::uint32_t word) { return table[word >> 4 * static_cast<int>(i) & 15u]; });
#endif
}

}  // namespace detail

/// The i-th of eight signed integers of 4 bits in every word; i is an int or an integral constant.
template <class I>
Batch<float> int4_of_words(const Batch<float>& words, I i) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(detail::words_up_from(words, i), 28));
#else
  return detail::look_up(words, i, detail::kFloatOfInt4);
#endif
}

/// The i-th of eight numbers of type E2M1 in every word.
template <class I>
Batch<float> e2m1_of_words(const Batch<float>& words, I i) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // magnitudes by a table of eight, whose index is three bits
  const __m256 magnitude =
      _mm256_permutevar8x32_ps(_mm256_loadu_ps(moe::detail::kFloatOfE2M1.data()), detail::words_from(words, i));
  const __m256 sign = _mm256_and_ps(_mm256_castsi256_ps(detail::words_up_from(words, i)), _mm256_set1_ps(-0.0f));
  return _mm256_or_ps(magnitude, sign);
#else
  return detail::look_up(words, i, moe::detail::kFloatOfE2M1);
#endif
}

/// sum + (bit of every word ? value : 0)
template <int kBit>
Batch<float> add_where_bit(const Batch<float>& sum, const Batch<float>& words, const Batch<float>& value) {
#if defined(__AVX512F__)
  const __mmask16 is_set =
      _mm512_test_epi32_mask(_mm512_castps_si512(words), _mm512_set1_epi32(static_cast<int>(1u << kBit)));
  return _mm512_mask_add_ps(sum, is_set, sum, value);
#elif defined(__AVX2__)
  const __m256i all = _mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(words), 31 - kBit), 31);
  return _mm256_add_ps(sum, _mm256_and_ps(_mm256_castsi256_ps(all), value));
#else
  return sum + (value & detail::map_words(words, [](std::uint32_t word) {
                  return std::bit_cast<float>(word >> kBit & 1u ? 0xFFFFFFFFu : 0u);
                }));
#endif
}

/// codes | bits kFirst, kFirst + 4, ..., of every word, as bits `to`, to + 4, ...; both below 4.
template <int kFirst>
Batch<float> add_plane(const Batch<float>& codes, const Batch<float>& words, int to) {
  const auto ones = static_cast<std::int32_t>(0x11111111u << to);
#if defined(__AVX512F__)
  const __m512i turned = _mm512_maskz_rolv_epi32(0xFFFF, _mm512_castps_si512(words), _mm512_set1_epi32(to - kFirst));
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(_mm512_castps_si512(codes), turned, _mm512_set1_epi32(ones), 0xF8));
#elif defined(__AVX2__)
  const __m256i all = _mm256_castps_si256(words);
  const __m256i moved = to >= kFirst ? _mm256_sll_epi32(all, _mm_cvtsi32_si128(to - kFirst))
                                     : _mm256_srl_epi32(all, _mm_cvtsi32_si128(kFirst - to));
  return _mm256_or_ps(codes, _mm256_castsi256_ps(_mm256_and_si256(moved, _mm256_set1_epi32(ones))));
#else
  return codes | detail::map_words(words, [&](std::uint32_t word) {
           return std::bit_cast<float>(std::rotl(word, to - kFirst) & static_cast<std::uint32_t>(ones));
         });
#endif
}

/// first + step * c for every number c of four bits.
struct EvenlySpaced {
  constexpr EvenlySpaced(float first_value, float distance) : first(first_value), step(distance) {
    for (std::size_t c = 0; c < table.size(); ++c) table[c] = first + step * static_cast<float>(c);
  }

  float first, step;
  std::array<float, 16> table{};
};

/// The value of the i-th of eight codes of every word, i a constant; exact where the table is.
template <class I>
Batch<float> value_of_words(const Batch<float>& words, I i, const EvenlySpaced& values) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i code = _mm256_and_si256(detail::words_from(words, i), _mm256_set1_epi32(15));
  return simd::fma(Batch<float>(_mm256_cvtepi32_ps(code)), Batch<float>(values.step), Batch<float>(values.first));
#else
  return detail::look_up(words, i, values.table);
#endif
}

}  // namespace moe::inline MOE_ABI::simd
