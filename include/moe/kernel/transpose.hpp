// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/simd.hpp"

namespace moe::inline MOE_ABI::kernel {

namespace detail {

#if defined(__AVX__)
/// to[j][i] = from[i][j] for 8 x 8 floats: three rounds of interleaving, 24 shuffles for 64 numbers.
inline void transpose_square(const float* from, Index from_stride, float* to, Index to_stride) {
  __m256 a[8], b[8];
  const auto load = [&](Index i) { return _mm256_loadu_ps(from + i * from_stride); };
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_ps(load(2 * i), load(2 * i + 1));
    a[2 * i + 1] = _mm256_unpackhi_ps(load(2 * i), load(2 * i + 1));
  }
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
    b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xEE);
    b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
    b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xEE);
  }
  for (Index i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(b[i], b[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
  }
}
/// The same for 4 x 4 doubles.
inline void transpose_square(const double* from, Index from_stride, double* to, Index to_stride) {
  const auto load = [&](Index i) { return _mm256_loadu_pd(from + i * from_stride); };
  const __m256d a = _mm256_unpacklo_pd(load(0), load(1)), b = _mm256_unpackhi_pd(load(0), load(1)),
                c = _mm256_unpacklo_pd(load(2), load(3)), d = _mm256_unpackhi_pd(load(2), load(3));
  _mm256_storeu_pd(to, _mm256_permute2f128_pd(a, c, 0x20));
  _mm256_storeu_pd(to + to_stride, _mm256_permute2f128_pd(b, d, 0x20));
  _mm256_storeu_pd(to + 2 * to_stride, _mm256_permute2f128_pd(a, c, 0x31));
  _mm256_storeu_pd(to + 3 * to_stride, _mm256_permute2f128_pd(b, d, 0x31));
}
template <class S>
inline constexpr Index kSquare = 32 / static_cast<Index>(sizeof(S));
#else
/// to[j][i] = from[i][j] for one register in each direction; compilers make shuffles of it.
template <class S>
void transpose_square(const S* from, Index from_stride, S* to, Index to_stride) {
  for (Index i = 0; i < simd::kLanes<S>; ++i)
    for (Index j = 0; j < simd::kLanes<S>; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}
template <class S>
inline constexpr Index kSquare = simd::kLanes<S>;
#endif

}  // namespace detail

/// to[j][i] = from[i][j] for i, j in [0, size), size a multiple of a register. Strides in scalars; no overlap.
template <class S>
void transpose(Index size, const S* from, Index from_stride, S* to, Index to_stride) {
  constexpr Index kSide = detail::kSquare<S>;
  for (Index i = 0; i < size; i += kSide)
    for (Index j = 0; j < size; j += kSide)
      detail::transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
}

}  // namespace moe::inline MOE_ABI::kernel
