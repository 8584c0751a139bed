// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/simd.hpp"
#include "moe/core/unroll.hpp"

namespace moe::inline MOE_ABI::simd {

namespace detail {

#if defined(__SSE2__)

/// Scalars in 16 bytes, the unit that x86 interleaves in.
template <class S>
inline constexpr int kPiece = static_cast<int>(16 / sizeof(S));

/// A register of 16 bytes of each of the rows 0, kPiece, 2 kPiece, ... Inlined by order: left to itself, g++ 12 calls
/// it, and turning a square takes twice as long.
template <class S>
[[gnu::always_inline]] inline Batch<S> load_pieces(const S* const* rows, Index column) {
  const auto piece = [&](int i) { return rows[i * kPiece<S>] + column; };
#if defined(__AVX__)
  const auto two = [&](int i) {
    if constexpr (sizeof(S) == 4)
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(piece(i))), _mm_loadu_ps(piece(i + 1)), 1);
    else
      return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(piece(i))), _mm_loadu_pd(piece(i + 1)), 1);
  };
#if defined(__AVX512F__)  // the masked forms: see low_bits_to_exponent
  if constexpr (sizeof(S) == 4)
    return _mm512_castpd_ps(
        _mm512_maskz_insertf64x4(0xFF, _mm512_castps_pd(_mm512_castps256_ps512(two(0))), _mm256_castps_pd(two(2)), 1));
  else
    return _mm512_maskz_insertf64x4(0xFF, _mm512_castpd256_pd512(two(0)), two(2), 1);
#else
  return two(0);
#endif
#else
  return load(piece(0));
#endif
}

/// The lower, or upper, pairs of scalars (as 8 bytes: of halves of pieces) of a and b, interleaved within each piece.
template <int Bytes, bool Upper, class S>
Batch<S> interleave(const Batch<S>& a, const Batch<S>& b) {
#if defined(__AVX512F__)
  if constexpr (Bytes == 4)
    return Upper ? _mm512_maskz_unpackhi_ps(0xFFFF, a, b) : _mm512_maskz_unpacklo_ps(0xFFFF, a, b);
  else if constexpr (sizeof(S) == 4)
    return _mm512_castpd_ps(interleave<8, Upper, double>(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  else
    return Upper ? _mm512_maskz_unpackhi_pd(0xFF, a, b) : _mm512_maskz_unpacklo_pd(0xFF, a, b);
#elif defined(__AVX__)
  if constexpr (Bytes == 4)
    return Upper ? _mm256_unpackhi_ps(a, b) : _mm256_unpacklo_ps(a, b);
  else if constexpr (sizeof(S) == 4)
    return _mm256_castpd_ps(interleave<8, Upper, double>(_mm256_castps_pd(a), _mm256_castps_pd(b)));
  else
    return Upper ? _mm256_unpackhi_pd(a, b) : _mm256_unpacklo_pd(a, b);
#else
  if constexpr (Bytes == 4)
    return Upper ? _mm_unpackhi_ps(a, b) : _mm_unpacklo_ps(a, b);
  else if constexpr (sizeof(S) == 4)
    return _mm_castpd_ps(interleave<8, Upper, double>(_mm_castps_pd(a), _mm_castps_pd(b)));
  else
    return Upper ? _mm_unpackhi_pd(a, b) : _mm_unpacklo_pd(a, b);
#endif
}

#endif

}  // namespace detail

/// How transpose() writes a register to an aligned address.
struct StoreAligned {
  template <class S>
  static void put(S* to, const Batch<S>& value) {
    value.store_aligned(to);
  }
};

/// A square of kLanes x kLanes scalars, turned: out[c][r] = rows[r][column + c]. Rows of `out` lie `stride` apart and
/// are aligned to a register.
template <class S, class Store = StoreAligned>
void transpose(const S* const* rows, Index column, S* out, Index stride = kLanes<S>) {
  constexpr Index kLanes = simd::kLanes<S>;
#if defined(__SSE2__)
  constexpr int kPiece = detail::kPiece<S>;
  unroll<static_cast<int>(kLanes) / kPiece>([&](auto group) {
    const Index first = group * kPiece;
    Batch<S> row[kPiece];
    unroll<kPiece>([&](auto r) { row[r] = detail::load_pieces(rows + r, column + first); });
    const auto put = [&](int c, const Batch<S>& turned) { Store::put(out + (first + c) * stride, turned); };
    if constexpr (kPiece == 4) {
      const auto lower02 = detail::interleave<4, false, S>(row[0], row[1]);
      const auto lower13 = detail::interleave<4, false, S>(row[2], row[3]);
      const auto upper02 = detail::interleave<4, true, S>(row[0], row[1]);
      const auto upper13 = detail::interleave<4, true, S>(row[2], row[3]);
      put(0, detail::interleave<8, false, S>(lower02, lower13));
      put(1, detail::interleave<8, true, S>(lower02, lower13));
      put(2, detail::interleave<8, false, S>(upper02, upper13));
      put(3, detail::interleave<8, true, S>(upper02, upper13));
    } else {
      put(0, detail::interleave<8, false, S>(row[0], row[1]));
      put(1, detail::interleave<8, true, S>(row[0], row[1]));
    }
  });
#else
  for (Index c = 0; c < kLanes; ++c)
    for (Index r = 0; r < kLanes; ++r) out[c * stride + r] = rows[r][column + c];
#endif
}

}  // namespace moe::inline MOE_ABI::simd
