// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "moe/core/simd.hpp"

// Registers of floats of which only those that are not zero lie in memory, one behind the other.
namespace moe::inline MOE_ABI::simd {

/// One bit per lane of a register of floats, lane 0 lowest.
using LaneBits = std::conditional_t<(kLanes<float> > 8), std::uint16_t, std::uint8_t>;

namespace detail {

#if defined(__AVX2__)
/// For every set of eight lanes: which of the values that follow each other a lane gets, and a negative number for
/// none.
inline constexpr auto kPlacesOfLanes = [] {
  std::array<std::array<std::int8_t, 8>, 256> table{};
  for (unsigned set = 0; set < 256; ++set)
    for (unsigned lane = 0, next = 0; lane < 8; ++lane)
      table[set][lane] = static_cast<std::int8_t>(set >> lane & 1u ? static_cast<int>(next++) : -128);
  return table;
}();

[[gnu::always_inline]] inline __m256i places_of_lanes(unsigned set) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlacesOfLanes[set].data())));
}
#endif

}  // namespace detail

/// The values from `from` on in the lanes of `set`, in order, and +0 in the others. A whole register is read.
[[gnu::always_inline]] inline Batch<float> expand(const float* from, LaneBits set) {
#if defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    (defined(__znver3__) || defined(__znver4__) || defined(__znver5__))
  // AMD, also as compilers name it that do not know its AVX-512. vexpandps takes 1.9 ns there, whether its values are
  // in memory or in a register, and two permutations of halves 1.1 (guest of an EPYC with Zen 5, 2026-12-01; with
  // Zen 4 1.7 and 1.0). On Intel the former are two operations, the latter five.
  const auto half = [](const float* at, unsigned lanes) __attribute__((always_inline)) {
    return _mm256_maskz_permutexvar_ps(static_cast<__mmask8>(lanes), detail::places_of_lanes(lanes),
                                       _mm256_loadu_ps(at));
  };
  const unsigned low = set & 255u, high = static_cast<unsigned>(set) >> 8;
  return _mm512_insertf32x8(_mm512_castps256_ps512(half(from, low)), half(from + std::popcount(low), high), 1);
#elif defined(__AVX512F__)
  return _mm512_maskz_expand_ps(set, _mm512_loadu_ps(from));
#elif defined(__AVX2__)
  const __m256i place = detail::places_of_lanes(set);
  const __m256 none = _mm256_castsi256_ps(_mm256_srai_epi32(place, 31));
  return _mm256_andnot_ps(none, _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), place));
#else
  alignas(64) std::array<float, static_cast<std::size_t>(kLanes<float>)> lane;
  for (std::size_t i = 0; i < lane.size(); ++i) lane[i] = set >> i & 1u ? *from++ : 0.0f;
  return Batch<float>::load_aligned(lane.data());
#endif
}

}  // namespace moe::inline MOE_ABI::simd
