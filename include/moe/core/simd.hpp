// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <xsimd/xsimd.hpp>

#include "moe/core/matrix.hpp"

static_assert(XSIMD_VERSION_MAJOR >= 8, "moe: xsimd 8.1 or newer is needed");

// The only file that includes xsimd. It names the operations that the library uses and hides where xsimd 8.1 and later
// versions differ; reductions are our own, because xsimd has changed their order, and order decides bits.
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
  alignas(64) std::array<S, static_cast<std::size_t>(kLanes<S>)> lane;
  lane.fill(fill);
  std::copy_n(from, count, lane.data());
  return Batch<S>::load_aligned(lane.data());
}

/// Stores the first `count` < kLanes lanes only.
template <class S>
void store_partial(S* to, const Batch<S>& value, Index count) {
  alignas(64) std::array<S, static_cast<std::size_t>(kLanes<S>)> lane;
  value.store_aligned(lane.data());
  std::copy_n(lane.data(), count, to);
}

/// a * b + c with one rounding where the instruction set has it, two elsewhere; for batches and scalars alike.
template <class S, class A>
xsimd::batch<S, A> fma(const xsimd::batch<S, A>& a, const xsimd::batch<S, A>& b, const xsimd::batch<S, A>& c) {
  return xsimd::fma(a, b, c);
}
inline float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}
inline double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// The larger of two; the second if either is NaN, in every version of xsimd.
template <class S, class A>
xsimd::batch<S, A> max(const xsimd::batch<S, A>& a, const xsimd::batch<S, A>& b) {
  return xsimd::select(a > b, a, b);
}
template <class S, class A>
xsimd::batch<S, A> select(const typename xsimd::batch<S, A>::batch_bool_type& condition, const xsimd::batch<S, A>& yes,
                          const xsimd::batch<S, A>& no) {
  return xsimd::select(condition, yes, no);
}
template <class S, class A>
bool any(const xsimd::batch_bool<S, A>& mask) {
  return xsimd::any(mask);
}

/// Sum of the lanes by halving: lane i + lane i + n/2, then n/4, ... The one reduction tree of the library.
template <class S, class A>
S reduce_add(const xsimd::batch<S, A>& value) {
  constexpr std::size_t kSize = xsimd::batch<S, A>::size;
  alignas(64) std::array<S, kSize> lane;
  value.store_aligned(lane.data());
  for (std::size_t width = kSize / 2; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

/// Largest lane; no lane may be NaN.
template <class S, class A>
S reduce_max(const xsimd::batch<S, A>& value) {
  constexpr std::size_t kSize = xsimd::batch<S, A>::size;
  alignas(64) std::array<S, kSize> lane;
  value.store_aligned(lane.data());
  for (std::size_t width = kSize / 2; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

/// Body and tail of every elementwise loop: step(i) for full registers at i, then tail(i, count) at most once.
/// The split depends on n alone, never on alignment, so equal rows give equal bits wherever they lie.
template <class S, class Step, class Tail>
void for_each(Index n, Step&& step, Tail&& tail) {
  const Index body = n - n % kLanes<S>;
  for (Index i = 0; i < body; i += kLanes<S>) step(i);
  if (body < n) tail(body, n - body);
}

/// out[i] = f(in[i]) for i in [0, n); f works on whole registers, the tail on one padded with zeros. In place is fine.
template <class S, class F>
void transform(Index n, const S* in, S* out, F&& f) {
  for_each<S>(
      n, [&](Index i) { store(out + i, f(load(in + i))); },
      [&](Index i, Index count) { store_partial(out + i, f(load_partial(in + i, count, S{0})), count); });
}

}  // namespace moe::inline MOE_ABI::simd
