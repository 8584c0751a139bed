// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/simd.hpp"

// Two adjacent numbers of type bfloat16 in a lane of 32 bits, as little-endian memory holds them: each is the upper
// half of the float that it stands for, so widening is one operation, and turning a matrix may move pairs.
namespace moe::inline MOE_ABI::simd {

/// The first number of every pair, as a float; exact, whatever the bits.
template <class A>
xsimd::batch<float, A> first_of_pairs(const xsimd::batch<float, A>& pairs) {
#if defined(__AVX512F__)  // the masked form: see low_bits_to_exponent
  if constexpr (sizeof(pairs) == 64)
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, _mm512_castps_si512(pairs), 16));
  else
#endif
#if XSIMD_VERSION_MAJOR >= 11
    return xsimd::bitwise_cast<float>(xsimd::bitwise_cast<std::uint32_t>(pairs) << 16);
#else
  return xsimd::bitwise_cast<xsimd::batch<float, A>>(xsimd::bitwise_cast<xsimd::batch<std::uint32_t, A>>(pairs) << 16);
#endif
}

/// The second number of every pair, as a float.
template <class A>
xsimd::batch<float, A> second_of_pairs(const xsimd::batch<float, A>& pairs) {
  return pairs & xsimd::batch<float, A>(std::bit_cast<float>(0xFFFF0000u));
}

}  // namespace moe::inline MOE_ABI::simd
