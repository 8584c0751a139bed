// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <span>

#include "moe/numeric/elementary.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Largest of n numbers, -inf for none. A NaN may or may not be skipped.
template <class S>
S largest(const S* values, Index n) {
  using V = simd::Batch<S>;
  constexpr S kNone = -std::numeric_limits<S>::infinity();
  V most(kNone);
  simd::for_each<S>(
      n, [&](Index i) { most = simd::max(most, simd::load(values + i)); },
      [&](Index i, Index count) { most = simd::max(most, simd::load_partial(values + i, count, kNone)); });
  return simd::reduce_max(most);
}

/// What is taken off every logit before the exponential: their largest, or 0 if all are -inf (-inf - -inf is NaN).
template <class S>
S softmax_shift(const S* logits, Index n) {
  const S most = largest(logits, n);
  return most == -std::numeric_limits<S>::infinity() ? S{0} : most;
}

/// The same bits as below, of less than kLanes logits: nothing waits for memory that was just written.
template <class S>
void softmax_of_few(const S* logits, Index n, const simd::Batch<S>& factor, S* out) {
  using V = simd::Batch<S>;
  constexpr S kNone = -std::numeric_limits<S>::infinity();
  const V z = simd::load_partial(logits, n, kNone);
  const S most = simd::reduce_max(simd::max(V(kNone), z));
  const V weight = simd::exp_nonpositive((z - V(most == kNone ? S{0} : most)) * factor);
  const S total = simd::reduce_add(V(S{0}) + weight);
  simd::store_partial(out, weight * V(total == S{0} ? S{0} : S{1} / total), n);
}

/// softmax(scale * logits), scale > 0.
template <class S>
void softmax_scaled(const S* logits, Index n, S scale, S* out) {
  using V = simd::Batch<S>;
  const V factor(scale);
  if (n < simd::kLanes<S>) return softmax_of_few(logits, n, factor, out);
  const V shift(softmax_shift(logits, n));
  V sum(S{0});
  const auto exponential = [&](const V& z) {
    const V weight = simd::exp_nonpositive((z - shift) * factor);
    sum = sum + weight;
    return weight;
  };
  simd::transform(n, logits, out, exponential, -std::numeric_limits<S>::infinity());
  const S total = simd::reduce_add(sum);
  const V inverse(total == S{0} ? S{0} : S{1} / total);
  simd::transform(n, out, out, [&](const V& weight) { return weight * inverse; });
}

}  // namespace detail

/// out_i = exp(z_i) / sum_j exp(z_j) of one row of n logits; `out` may be `logits`.
/// A logit of -inf has weight exactly 0 and does not touch the others; if all are -inf, all weights are 0. Any NaN or
/// +inf makes the whole row NaN. Weights below the smallest normal number are 0. The largest logit is taken off first,
/// so none overflows. Relative error of a weight below (8 + n / lanes + |z_i - max z|) epsilon.
/// The bits depend on the row alone. O(n), no allocation.
template <class S>
void softmax(const S* logits, Index n, S* out) {
  detail::softmax_scaled(logits, n, S{1}, out);
}

namespace detail {

/// What takes any logit of a row to its weight: exp(z - shift) * inverse has the bits that softmax() gives it. V is a
/// scalar, or a batch with a row per lane.
template <class V>
struct SoftmaxScale {
  V shift, inverse;

  V operator()(const V& z) const { return simd::exp_nonpositive(z - shift) * inverse; }
};

/// That of a row of n logits. O(n).
template <class S>
SoftmaxScale<S> softmax_scale(const S* logits, Index n) {
  using V = simd::Batch<S>;
  const S most = softmax_shift(logits, n);
  const V shift(most);
  V sum(S{0});
  simd::for_each<S>(
      n, [&](Index i) { sum = sum + simd::exp_nonpositive(simd::load(logits + i) - shift); },
      [&](Index i, Index count) {
        const V z = simd::load_partial(logits + i, count, -std::numeric_limits<S>::infinity());
        sum = sum + simd::exp_nonpositive(z - shift);
      });
  const S total = simd::reduce_add(sum);
  return {most, total == S{0} ? S{0} : S{1} / total};
}

/// softmax() of a row per lane, in place: logits[j] holds the j-th logit of each row. The sum is taken in the order of
/// softmax(), for the same bits.
template <class S>
void softmax_lanes(std::span<simd::Batch<S>> logits) {
  using V = simd::Batch<S>;
  constexpr std::size_t kLanes = V::size;
  constexpr S kNone = -std::numeric_limits<S>::infinity();
  V shift(kNone);
  for (const V& z : logits) shift = simd::max(shift, z);
  shift = simd::select(shift == V(kNone), V(S{0}), shift);
  std::array<V, kLanes> sum;
  sum.fill(V(S{0}));
  for (std::size_t j = 0; j < logits.size(); ++j) {
    logits[j] = simd::exp_nonpositive(logits[j] - shift);
    sum[j % kLanes] = sum[j % kLanes] + logits[j];
  }
  for (std::size_t width = kLanes / 2; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) sum[i] = sum[i] + sum[i + width];
  const V inverse = simd::select(sum[0] == V(S{0}), V(S{0}), simd::divide(V(S{1}), sum[0]));
  for (V& weight : logits) weight = weight * inverse;
}

}  // namespace detail

/// softmax(z / temperature) of one row of n logits, temperature > 0 (0 is taken as the limit: uniform over the
/// largest). The division comes after the largest logit is taken off, so it overflows for no temperature: towards 0 the
/// weights become those of arg max, towards infinity uniform over the logits that are not -inf. Otherwise as softmax().
template <class S>
void softmax_tempered(const S* logits, Index n, double temperature, S* out) {
  constexpr double kSmallest = std::numeric_limits<S>::min();  // it and its inverse are normal: no 0 * inf arises
  const double inverse = 1.0 / std::clamp(temperature, kSmallest, 1.0 / kSmallest);
  detail::softmax_scaled(logits, n, static_cast<S>(inverse), out);
}

/// Gradient of the logits of softmax: dz_i = p_i (dp_i - sum_j p_j dp_j) for weights p and their gradient dp, finite.
/// `dz` may be `dp`. Where p_i = 0, dz_i = 0. For softmax_tempered divide by the temperature. No allocation.
template <class S>
void softmax_backward(const S* p, const S* dp, Index n, S* dz) {
  using V = simd::Batch<S>;
  V sum(S{0});
  simd::for_each<S>(
      n, [&](Index i) { sum = simd::fma(simd::load(p + i), simd::load(dp + i), sum); },
      [&](Index i, Index count) {
        sum = simd::fma(simd::load_partial(p + i, count, S{0}), simd::load_partial(dp + i, count, S{0}), sum);
      });
  const V mean(simd::reduce_add(sum));
  simd::for_each<S>(
      n, [&](Index i) { simd::store(dz + i, simd::load(p + i) * (simd::load(dp + i) - mean)); },
      [&](Index i, Index count) {
        const V centred = simd::load_partial(dp + i, count, S{0}) - mean;
        simd::store_partial(dz + i, simd::load_partial(p + i, count, S{0}) * centred, count);
      });
}

/// Softmax over the listed entries of a row only: weights_j = softmax(logits(ids_0), logits(ids_1), ...)_j.
///   logits   anything indexable by (id): an Eigen row, a lambda      ids, weights   of equal size
/// As softmax() in all else.
template <class Row, class S>
void softmax_at(const Row& logits, std::span<const Index> ids, std::span<S> weights) {
  MOE_ASSERT(ids.size() == weights.size());
  for (std::size_t j = 0; j < ids.size(); ++j) weights[j] = static_cast<S>(logits(ids[j]));
  softmax(weights.data(), static_cast<Index>(ids.size()), weights.data());
}

}  // namespace moe::inline MOE_ABI
