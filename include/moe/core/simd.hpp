// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#include "moe/core/simd_batch.hpp"

namespace moe::inline MOE_ABI::simd {

template <class S>
Batch<S> load(const S* from) {
  return Batch<S>::load_unaligned(from);
}

template <class S>
void store(S* to, const Batch<S>& value) {
  value.store_unaligned(to);
}

/// The first `count` < kLanes scalars from memory, `fill` in the other lanes. Reads nothing behind them.
template <class S>
Batch<S> load_partial(const S* from, Index count, S fill) {
#if defined(__AVX512F__)
  const auto lanes = (1u << count) - 1;
  if constexpr (sizeof(S) == 4)
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(lanes), from);
  else
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>(lanes), from);
#else
  alignas(64) std::array<S, static_cast<std::size_t>(kLanes<S>)> lane;
  for (Index i = 0; i < kLanes<S>; ++i) lane[static_cast<std::size_t>(i)] = i < count ? from[i] : fill;
  return Batch<S>::load_aligned(lane.data());
#endif
}

/// Stores the first `count` < kLanes lanes only.
template <class S>
void store_partial(S* to, const Batch<S>& value, Index count) {
#if defined(__AVX512F__)
  const auto lanes = (1u << count) - 1;
  if constexpr (sizeof(S) == 4)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(lanes), value);
  else
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(lanes), value);
#else
  alignas(64) std::array<S, static_cast<std::size_t>(kLanes<S>)> lane;
  value.store_aligned(lane.data());
  for (Index i = 0; i < count; ++i) to[i] = lane[static_cast<std::size_t>(i)];
#endif
}

#if defined(__AVX__)
namespace detail {

template <class S, class A>
struct Halves {
  xsimd::batch<S, A> lower, upper;
};

/// A register of 64 or 32 bytes in two.
template <class S, class A>
auto halves(const xsimd::batch<S, A>& value) {
#if defined(__AVX512F__)  // the masked form: see low_bits_to_exponent
  if constexpr (sizeof(value) == 64 && sizeof(S) == 4) {
    const __m512d pairs = _mm512_castps_pd(value);
    return Halves<S, xsimd::avx>{_mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xF, pairs, 0)),
                                 _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xF, pairs, 1))};
  } else if constexpr (sizeof(value) == 64) {
    return Halves<S, xsimd::avx>{_mm512_maskz_extractf64x4_pd(0xF, value, 0),
                                 _mm512_maskz_extractf64x4_pd(0xF, value, 1)};
  } else
#endif
  {
    if constexpr (sizeof(S) == 4)
      return Halves<S, xsimd::sse2>{_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1)};
    else
      return Halves<S, xsimd::sse2>{_mm256_castpd256_pd128(value), _mm256_extractf128_pd(value, 1)};
  }
}

}  // namespace detail
#endif

/// op(lane i, lane i + n/2), then n/4, ... down to one: the one reduction tree of the library. xsimd's own reductions
/// have changed their order between versions, and order decides bits.
template <class S, class A, class Op>
S reduce(const xsimd::batch<S, A>& value, const Op& op) {
#if defined(__AVX__)
  if constexpr (sizeof(value) > 16) {
    const auto [lower, upper] = detail::halves(value);
    return reduce(op(lower, upper), op);
  }
#endif
#if defined(__SSE2__)  // the same tree without a way through memory
  if constexpr (sizeof(value) == 16 && std::is_same_v<S, double>) {
    return _mm_cvtsd_f64(op(value, xsimd::batch<S, A>(_mm_unpackhi_pd(value, value))));
  } else if constexpr (sizeof(value) == 16 && std::is_same_v<S, float>) {
    const xsimd::batch<S, A> pair = op(value, xsimd::batch<S, A>(_mm_movehl_ps(value, value)));
    return _mm_cvtss_f32(op(pair, xsimd::batch<S, A>(_mm_shuffle_ps(pair, pair, 1))));
  } else
#endif
  {
    constexpr std::size_t kSize = xsimd::batch<S, A>::size;
    alignas(64) std::array<S, kSize> lane;
    value.store_aligned(lane.data());
    for (std::size_t width = kSize / 2; width > 0; width /= 2)
      for (std::size_t i = 0; i < width; ++i) lane[i] = op(lane[i], lane[i + width]);
    return lane[0];
  }
}

/// Sum of the lanes, by halving.
template <class S, class A>
S reduce_add(const xsimd::batch<S, A>& value) {
  return reduce(value, [](const auto& a, const auto& b) { return a + b; });
}

/// Largest lane; no lane may be NaN.
template <class S, class A>
S reduce_max(const xsimd::batch<S, A>& value) {
  return reduce(value, [](const auto& a, const auto& b) { return simd::max(a, b); });
}

/// Body and tail of every elementwise loop: step(i) for full registers at i, then tail(i, count) at most once.
/// The split depends on n alone, never on alignment, so equal rows give equal bits wherever they lie.
template <class S, class Step, class Tail>
void for_each(Index n, Step&& step, Tail&& tail) {
  const Index body = n - n % kLanes<S>;
  for (Index i = 0; i < body; i += kLanes<S>) step(i);
  if (body < n) tail(body, n - body);
}

/// out[i] = f(in[i]) for i in [0, n); f works on whole registers, the tail on one padded with `fill`. In place is fine.
template <class S, class F>
void transform(Index n, const S* in, S* out, F&& f, S fill = 0) {
  for_each<S>(
      n, [&](Index i) { store(out + i, f(load(in + i))); },
      [&](Index i, Index count) { store_partial(out + i, f(load_partial(in + i, count, fill)), count); });
}

}  // namespace moe::inline MOE_ABI::simd
