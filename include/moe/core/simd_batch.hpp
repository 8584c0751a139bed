// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <xsimd/xsimd.hpp>

#include "moe/core/matrix.hpp"

static_assert(XSIMD_VERSION_MAJOR >= 8, "moe: xsimd 8.1 or newer is needed");

// The only file that includes xsimd. It names the register operations that the library uses and hides where xsimd 8.1
// and later versions differ. Loads, reductions and loops are in simd.hpp, which is the header to include.
namespace moe::inline MOE_ABI::simd {

/// The widest register of the instruction set that this translation unit is compiled for.
template <class S>
using Batch = xsimd::batch<S>;

/// Result of a comparison, lane by lane.
template <class S>
using Mask = typename Batch<S>::batch_bool_type;

/// Scalars in a register.
template <class S>
inline constexpr Index kLanes = static_cast<Index>(Batch<S>::size);

/// Architectural vector registers: what register tiles are sized with.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif

template <class V>
inline constexpr bool kIsBatch = false;
template <class S, class A>
inline constexpr bool kIsBatch<xsimd::batch<S, A>> = true;

/// Scalar type of a batch, or of a scalar itself: numeric functors are templates over either.
template <class V>
struct ScalarOf {
  using type = V;
};
template <class S, class A>
struct ScalarOf<xsimd::batch<S, A>> {
  using type = S;
};
template <class V>
using Scalar = typename ScalarOf<V>::type;

/// a * b + c with one rounding where the instruction set has it, two elsewhere; for batches and scalars alike.
template <class S, class A>
xsimd::batch<S, A> fma(const xsimd::batch<S, A>& a, const xsimd::batch<S, A>& b, const xsimd::batch<S, A>& c) {
#if defined(__AVX512F__)  // xsimd 8.1 knows no fused operation here: it multiplies, rounds and adds
  if constexpr (std::is_same_v<S, float> && xsimd::batch<S, A>::size == 16) return _mm512_fmadd_ps(a, b, c);
  if constexpr (std::is_same_v<S, double> && xsimd::batch<S, A>::size == 8) return _mm512_fmadd_pd(a, b, c);
#endif
  return xsimd::fma(a, b, c);
}
inline float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  const float product = a * b;  // a statement of its own: within one, clang fuses when it computes constants
  return product + c;
#endif
}
inline double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  const double product = a * b;  // a statement of its own: within one, clang fuses when it computes constants
  return product + c;
#endif
}

/// -x. xsimd's unary minus is 0 - x on some instruction sets, which gives 0 another sign than a scalar has.
template <class S, class A>
xsimd::batch<S, A> negate(const xsimd::batch<S, A>& x) {
  return x ^ xsimd::batch<S, A>(S(-0.0));
}
template <std::floating_point S>
S negate(S x) {
  return -x;
}

/// c - a * b, rounded as fma.
template <class V>
V fnma(const V& a, const V& b, const V& c) {
  return simd::fma(simd::negate(a), b, c);
}

/// a / b, correctly rounded; xsimd divides floats on 64-bit ARM by an estimate, unlike a scalar.
template <class S, class A>
xsimd::batch<S, A> divide(const xsimd::batch<S, A>& a, const xsimd::batch<S, A>& b) {
#if defined(__aarch64__)
  if constexpr (std::is_same_v<S, float> && xsimd::batch<S, A>::size == 4) return vdivq_f32(a, b);
#endif
  return a / b;
}
template <std::floating_point S>
S divide(S a, S b) {
  return a / b;
}

/// The larger of two; the second if either is NaN (xsimd's own changed there in version 14).
template <class S, class A>
xsimd::batch<S, A> max(const xsimd::batch<S, A>& a, const xsimd::batch<S, A>& b) {
#if defined(__SSE2__)  // a > b ? a : b in one instruction
  constexpr std::size_t kBytes = sizeof(a);
  constexpr bool kFloat = sizeof(S) == 4;
#if defined(__AVX512F__)  // the masked form: see low_bits_to_exponent
  if constexpr (kBytes == 64 && kFloat) return _mm512_maskz_max_ps(0xFFFF, a, b);
  if constexpr (kBytes == 64 && !kFloat) return _mm512_maskz_max_pd(0xFF, a, b);
#endif
#if defined(__AVX__)
  if constexpr (kBytes == 32 && kFloat) return _mm256_max_ps(a, b);
  if constexpr (kBytes == 32 && !kFloat) return _mm256_max_pd(a, b);
#endif
  if constexpr (kBytes == 16 && kFloat) return _mm_max_ps(a, b);
  if constexpr (kBytes == 16 && !kFloat) return _mm_max_pd(a, b);
#else
  return xsimd::select(a > b, a, b);
#endif
}
template <std::floating_point S>
S max(S a, S b) {
  return a > b ? a : b;
}

/// The smaller of two; the second if either is NaN.
template <class S, class A>
xsimd::batch<S, A> min(const xsimd::batch<S, A>& a, const xsimd::batch<S, A>& b) {
#if defined(__SSE2__)  // a < b ? a : b in one instruction
  constexpr std::size_t kBytes = sizeof(a);
  constexpr bool kFloat = sizeof(S) == 4;
#if defined(__AVX512F__)  // the masked form: see low_bits_to_exponent
  if constexpr (kBytes == 64 && kFloat) return _mm512_maskz_min_ps(0xFFFF, a, b);
  if constexpr (kBytes == 64 && !kFloat) return _mm512_maskz_min_pd(0xFF, a, b);
#endif
#if defined(__AVX__)
  if constexpr (kBytes == 32 && kFloat) return _mm256_min_ps(a, b);
  if constexpr (kBytes == 32 && !kFloat) return _mm256_min_pd(a, b);
#endif
  if constexpr (kBytes == 16 && kFloat) return _mm_min_ps(a, b);
  if constexpr (kBytes == 16 && !kFloat) return _mm_min_pd(a, b);
#else
  return xsimd::select(a < b, a, b);
#endif
}
template <std::floating_point S>
S min(S a, S b) {
  return a < b ? a : b;
}

/// `yes` where the condition holds, else `no`; for batches and scalars alike.
template <class S, class A>
xsimd::batch<S, A> select(const typename xsimd::batch<S, A>::batch_bool_type& condition, const xsimd::batch<S, A>& yes,
                          const xsimd::batch<S, A>& no) {
  return xsimd::select(condition, yes, no);
}
template <std::floating_point S>
S select(bool condition, S yes, S no) {
  return condition ? yes : no;
}

/// x + 1 in the lanes where the condition holds, for numbers that count.
template <class S, class A>
xsimd::batch<S, A> count_where(const typename xsimd::batch<S, A>::batch_bool_type& condition,
                               const xsimd::batch<S, A>& x) {
  const xsimd::batch<S, A> one(S{1});
#if defined(__AVX512F__)  // one instruction
  if constexpr (sizeof(x) == 64 && sizeof(S) == 4) return _mm512_mask_add_ps(x, condition, x, one);
  if constexpr (sizeof(x) == 64 && sizeof(S) == 8) return _mm512_mask_add_pd(x, condition, x, one);
#endif
  return x + xsimd::select(condition, one, xsimd::batch<S, A>(S{0}));
}

/// Magnitude; for batches and scalars alike.
template <class S, class A>
xsimd::batch<S, A> abs(const xsimd::batch<S, A>& x) {
  return xsimd::abs(x);
}
template <std::floating_point S>
S abs(S x) {
  return std::abs(x);
}

/// Square root, correctly rounded (xsimd's of floats on 64-bit ARM is an estimate); for batches and scalars alike.
template <class S, class A>
xsimd::batch<S, A> sqrt(const xsimd::batch<S, A>& x) {
#if defined(__aarch64__)
  if constexpr (std::is_same_v<S, float> && xsimd::batch<S, A>::size == 4) return vsqrtq_f32(x);
#elif defined(__AVX512F__)  // the masked form: see low_bits_to_exponent
  if constexpr (sizeof(x) == 64 && sizeof(S) == 4) return _mm512_maskz_sqrt_ps(0xFFFF, x);
  if constexpr (sizeof(x) == 64 && sizeof(S) == 8) return _mm512_maskz_sqrt_pd(0xFF, x);
#endif
  return xsimd::sqrt(x);
}
template <std::floating_point S>
S sqrt(S x) {
  return std::sqrt(x);
}

template <class S, class A>
bool any(const xsimd::batch_bool<S, A>& mask) {
  return xsimd::any(mask);
}

/// One bit per lane, lane 0 lowest.
template <class S, class A>
std::uint32_t bits(const xsimd::batch_bool<S, A>& mask) {
  using Register [[maybe_unused]] = typename xsimd::batch_bool<S, A>::register_type;
  constexpr std::size_t kLaneCount = xsimd::batch_bool<S, A>::size;
#if defined(__AVX512F__)
  if constexpr (kLaneCount * sizeof(S) == 64) return static_cast<std::uint32_t>(static_cast<Register>(mask));
#elif defined(__AVX__)
  if constexpr (kLaneCount == 8) return static_cast<std::uint32_t>(_mm256_movemask_ps(static_cast<Register>(mask)));
  if constexpr (kLaneCount == 4) return static_cast<std::uint32_t>(_mm256_movemask_pd(static_cast<Register>(mask)));
#elif defined(__SSE2__)
  if constexpr (kLaneCount == 4) return static_cast<std::uint32_t>(_mm_movemask_ps(static_cast<Register>(mask)));
  if constexpr (kLaneCount == 2) return static_cast<std::uint32_t>(_mm_movemask_pd(static_cast<Register>(mask)));
#else
  std::uint32_t all = 0;
  for (std::size_t i = 0; i < kLaneCount; ++i) all |= static_cast<std::uint32_t>(mask.get(i)) << i;
  return all;
#endif
}

/// The lowest bits of the representation moved up into the exponent field: 2^n when they hold n + bias.
template <class S, class A>
xsimd::batch<S, A> low_bits_to_exponent(const xsimd::batch<S, A>& x) {
  using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  constexpr int kMantissa = std::numeric_limits<S>::digits - 1;
#if defined(__AVX512F__)  // xsimd's shift makes g++ 12 warn of an uninitialised register; the masked form does not
  if constexpr (sizeof(xsimd::batch<S, A>) == 64 && sizeof(S) == 4)
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, _mm512_castps_si512(x), kMantissa));
  else if constexpr (sizeof(xsimd::batch<S, A>) == 64)
    return _mm512_castsi512_pd(_mm512_maskz_slli_epi64(0xFF, _mm512_castpd_si512(x), kMantissa));
  else
#endif
#if XSIMD_VERSION_MAJOR >= 11
    return xsimd::bitwise_cast<S>(xsimd::bitwise_cast<Bits>(x) << kMantissa);
#else
  return xsimd::bitwise_cast<xsimd::batch<S, A>>(xsimd::bitwise_cast<xsimd::batch<Bits, A>>(x) << kMantissa);
#endif
}
template <std::floating_point S>
S low_bits_to_exponent(S x) {
  using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  return std::bit_cast<S>(std::bit_cast<Bits>(x) << (std::numeric_limits<S>::digits - 1));
}

}  // namespace moe::inline MOE_ABI::simd
