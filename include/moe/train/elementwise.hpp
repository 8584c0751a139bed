// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <string>
#include <type_traits>

#include "moe/core/parallel.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/simd.hpp"
#include "moe/core/unroll.hpp"

namespace moe::inline MOE_ABI {

/// What an optimiser does with a gradient that is NaN or infinite somewhere, which would make parameters NaN for good:
/// Refuse it by std::invalid_argument that names the parameter; Skip the step, which then returns false; both change
/// nothing, and read the gradient once more than Apply, which goes on as if they were numbers.
enum class NonFinite { Refuse, Skip, Apply };

}  // namespace moe::inline MOE_ABI

// What optimisers and clipping share: one pass over all parameters of same-shaped objects, register by register.
namespace moe::inline MOE_ABI::detail {

/// What the lanes of sums of x * 0 say: zero where every x is finite, else NaN. Eight sums, as one would wait for
/// itself: memory is then what limits it.
template <class S>
bool all_finite(const S* values, Index n) {
  using V = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>;
  constexpr int kSums = 8;
  const V zero(S{0});
  V sum[kSums];
  simd::unroll<kSums>([&](auto i) { sum[i] = zero; });
  const Index body = n - n % (kSums * kLanes);
  for (Index at = 0; at < body; at += kSums * kLanes)
    simd::unroll<kSums>([&](auto i) { sum[i] = simd::fma(simd::load<S>(values + at + i * kLanes), zero, sum[i]); });
  simd::for_each<S>(
      n - body, [&](Index i) { sum[0] = simd::fma(simd::load<S>(values + body + i), zero, sum[0]); },
      [&](Index i, Index count) {
        sum[0] = simd::fma(simd::load_partial<S>(values + body + i, count, S{0}), zero, sum[0]);
      });
  simd::unroll<kSums - 1>([&](auto i) { sum[0] = sum[0] + sum[i + 1]; });
  return simd::reduce_add(sum[0]) == S{0};
}

/// Scalars per parallel task: 64 KiB of floats, some microseconds of work; a multiple of every register width.
inline constexpr Index kElementGrain = 16384;

template <class S>
void store_register(S* to, const simd::Batch<S>& value) {
  simd::store(to, value);
}
template <class S>
void store_register(S* to, const simd::Batch<S>& value, Index count) {
  simd::store_partial(to, value, count);
}
// Read-only operands are not stored.
template <class S>
void store_register(const S*, const simd::Batch<S>&) {}
template <class S>
void store_register(const S*, const simd::Batch<S>&, Index) {}

/// Calls update(register&...) for the scalars [0, n) of each array and stores what is not const.
template <class S, class Update, class... Pointers>
void update_range(Index n, const Update& update, Pointers... at) {
  simd::for_each<S>(
      n,
      [&](Index i) {
        [&](auto... value) {
          update(value...);
          (store_register(at + i, value), ...);
        }(simd::load<S>(at + i)...);
      },
      [&](Index i, Index count) {
        [&](auto... value) {
          update(value...);
          (store_register(at + i, value, count), ...);
        }(simd::load_partial<S>(at + i, count, S{0})...);
      });
}

/// The same over all stored scalars of same-shaped leaves, in parallel. Padding is updated like everything else: an
/// update must map zeros to zeros.
template <class Update, class Leaf, class... Leaves>
void update_leaf(const Update& update, Leaf& leaf, Leaves&... leaves) {
  const Index size = static_cast<Index>(parameter_span(leaf).size());
  parallel_ranges(size, kElementGrain, [&](Index begin, Index end, Index) {
    update_range<ParameterScalar<Leaf>>(end - begin, update, parameter_span(leaf).data() + begin,
                                        (parameter_span(leaves).data() + begin)...);
  });
}

/// Whether a step may be taken with this gradient; see NonFinite. One pass over it, in parallel.
template <class T>
bool accepts_gradient(const char* function, NonFinite non_finite, const T& gradient) {
  if (non_finite == NonFinite::Apply) return true;
  bool accepted = true;
  visit(
      [&](const std::string& name, const auto& leaf) {
        if (!accepted) return;
        const auto values = parameter_span(leaf);
        std::atomic<bool> finite{true};
        parallel_ranges(std::ssize(values), kElementGrain, [&](Index begin, Index end, Index) {
          if (!all_finite(values.data() + begin, end - begin)) finite.store(false, std::memory_order_relaxed);
        });
        accepted = finite;
        if (accepted || non_finite == NonFinite::Skip) return;
        const auto bad = std::ranges::find_if(values, [](auto value) { return !std::isfinite(value); });
        fail(function, ": the gradient of '", name, "' holds ", *bad, ", expected finite numbers (see moe::NonFinite)");
      },
      gradient);
  return accepted;
}

}  // namespace moe::inline MOE_ABI::detail
