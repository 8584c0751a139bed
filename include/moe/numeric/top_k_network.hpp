// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include "moe/core/simd_transpose.hpp"
#include "moe/core/simd_widen.hpp"

// More choices than registers: a sorting network over several rows at once, a row per lane. It compares the same places
// whatever the scores, so nothing branches on the data, and its time hardly grows with the number of choices.
namespace moe::inline MOE_ABI::detail {

/// A score and its id, put in order as one: the better is the one of the larger score and, among equal scores, of the
/// lower id.
template <class S>
struct RankKey;

/// Of float, as one double that is larger for the better choice: d - |d| * id * 2^-48, where d is the score. Ids below
/// 2^22 move it by less than a quarter of the last bit of a float, so the nearest float is the score again, and two ids
/// are 16 last bits of a double apart. Zeros, which could not be moved, stand at 2^-200, closer to zero than any float;
/// what is not above -infinity (and NaN, and +infinity, which callers refuse) at -2^200, which is -infinity as a float.
template <>
struct RankKey<float> {
  using V = simd::Batch<double>;

  RankKey() = default;
  explicit RankKey(const V& ranked) : key(ranked) {}

  /// From kLanes<double> scores.
  static RankKey encode(const float* score, Index id) {
    const V wide = simd::load_widened(score);
    const V moved = simd::select(wide == V(0.0), V(kZero), wide);
    const V d = simd::select(simd::abs(moved) < V(-kMasked), moved, V(kMasked));
    return RankKey(simd::fnma(simd::abs(d), V(static_cast<double>(id) * kStep), d));
  }
  /// The id is one of n, also where it means nothing.
  void decode(Index n, float* score, float* id) const {
    constexpr double kRound = 0x1.8p52;  // x + kRound has no bits behind the point
    simd::store_narrowed(score, key);
    const V shifted = key * V(0x1p29);  // exact, so that fusing changes nothing
    const V d =
        (key + shifted) - shifted;  // key rounded to the 24 bits of a float; a float itself may be flushed to zero
    const V found = (simd::divide(d - key, simd::abs(d) * V(kStep)) + V(kRound)) - V(kRound);
    const V last(static_cast<double>(n - 1));
    simd::store_narrowed(id, simd::select(found >= V(0.0), simd::min(found, last), V(0.0)));
  }
  friend RankKey better_of(const RankKey& a, const RankKey& b) { return RankKey(simd::max(a.key, b.key)); }
  friend void put_in_order(RankKey& better, RankKey& worse) {
    const V larger = simd::max(better.key, worse.key);
    worse.key = simd::min(better.key, worse.key);
    better.key = larger;
  }

  V key;

 private:
  static constexpr double kZero = 0x1p-200, kMasked = -0x1p200, kStep = 0x1p-48;
};

/// Of double, whose bits are all taken, as two numbers: a comparison takes four times as long.
template <>
struct RankKey<double> {
  using V = simd::Batch<double>;

  static RankKey encode(const double* scores, Index id) {
    return {V::load_aligned(scores), V(static_cast<double>(id))};
  }
  void decode(Index, double* scores, double* ids) const {
    score.store_aligned(scores);
    id.store_aligned(ids);
  }
  friend RankKey better_of(const RankKey& a, const RankKey& b) {
    const auto second = is_worse(a, b);
    return {simd::select(second, b.score, a.score), simd::select(second, b.id, a.id)};
  }
  friend void put_in_order(RankKey& better, RankKey& worse) {
    const auto swap = is_worse(better, worse);
    const RankKey a = better;
    better = {simd::select(swap, worse.score, a.score), simd::select(swap, worse.id, a.id)};
    worse = {simd::select(swap, a.score, worse.score), simd::select(swap, a.id, worse.id)};
  }

  V score, id;

 private:
  static simd::Mask<double> is_worse(const RankKey& a, const RankKey& b) {
    return (a.score < b.score) | ((a.score == b.score) & (b.id < a.id));
  }
};

/// Applies `network` to eight keys while they are in registers.
template <class Key, class Network>
void on_eight(Key* key, const Network& network) {
  Key own[8];
  simd::unroll<8>([&](auto i) { own[i] = key[i]; });
  network([&](int better, int worse) { put_in_order(own[better], own[worse]); });
  simd::unroll<8>([&](auto i) { key[i] = own[i]; });
}

/// Sorts eight keys of every lane, largest first: 19 comparisons, the least there are (Knuth, The Art of Computer
/// Programming 3, 5.3.4).
inline constexpr auto kSortEight = [](const auto& order) {
  order(0, 2), order(1, 3), order(4, 6), order(5, 7);
  order(0, 4), order(1, 5), order(2, 6), order(3, 7);
  order(0, 1), order(2, 3), order(4, 5), order(6, 7);
  order(2, 4), order(3, 5);
  order(1, 4), order(3, 6);
  order(1, 2), order(3, 4), order(5, 6);
};

/// The end of a bitonic merge: half-cleaners of 4, 2 and 1.
inline constexpr auto kMergeEight = [](const auto& order) {
  order(0, 4), order(1, 5), order(2, 6), order(3, 7);
  order(0, 2), order(1, 3), order(4, 6), order(5, 7);
  order(0, 1), order(2, 3), order(4, 5), order(6, 7);
};

/// Sorts blocks of `size` keys that are bitonic (falling, then rising, or a rotation of it); size = 8, 16, 32, ...
template <class Key>
void sort_bitonic(Key* key, Index count, Index size) {
  for (Index half = size / 2; half >= 8; half /= 2)
    for (Index block = 0; block < count; block += 2 * half)
      for (Index i = block; i < block + half; ++i) put_in_order(key[i], key[i + half]);
  for (Index i = 0; i < count; i += 8) on_eight(key + i, kMergeEight);
}

/// Sorts `count` keys of every lane, largest first; count = 8, 16, 32, ...
/// Batcher, "Sorting networks and their applications", AFIPS 1968.
template <class Key>
void sort_lanes(Key* key, Index count) {
  for (Index i = 0; i < count; i += 8) on_eight(key + i, kSortEight);
  for (Index size = 16; size <= count; size *= 2) {
    for (Index block = 0; block < count; block += size)
      for (Index i = 0; i < size / 2; ++i) put_in_order(key[block + i], key[block + size - 1 - i]);
    sort_bitonic(key, count, size / 2);
  }
}

/// Puts the best `count` of `best` and `more`, both sorted, into `best`, sorted.
template <class Key>
void keep_best(Key* best, const Key* more, Index count) {
  for (Index i = 0; i < count; ++i) best[i] = better_of(best[i], more[count - 1 - i]);
  sort_bitonic(best, count, count);
}

/// Most choices of top_k_network: two lists of them, of a key each, are on the stack.
inline constexpr Index kMostNetworkChoices = 64;
inline constexpr Index kMostNetworkIds = Index{1} << 22;

/// As top_k_lanes(), for k in [9, kMostNetworkChoices] and n <= kMostNetworkIds; float scores of -0 become 0. Writes k
/// places. The time depends on the power of two from k on, and per score little on that: 7 comparisons for 16, 14
/// for 64.
template <class S>
std::uint32_t top_k_network(Index k, const S* const* rows, Index n, S* scores, S* ids) {
  constexpr Index kLanes = simd::kLanes<S>, kPart = simd::kLanes<double>, kParts = kLanes / kPart;
  constexpr S kInfinity = std::numeric_limits<S>::infinity();
  using V = simd::Batch<S>;
  using Keys = std::array<RankKey<S>, static_cast<std::size_t>(kMostNetworkChoices)>;
  MOE_ASSERT(8 < k && k <= kMostNetworkChoices && k <= n && n <= kMostNetworkIds);
  const auto places = static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(k)));
  static_assert(16 % kLanes == 0, "moe::top_k_network: squares must fill the places");
  alignas(64) std::array<S, static_cast<std::size_t>(kLanes * kLanes)> turned;
  std::array<Keys, static_cast<std::size_t>(kParts)> best, more;
  V finite(kInfinity);
  for (Index from = 0; from < n; from += places) {
    auto& keys = from == 0 ? best : more;
    for (Index column = from; column < from + places; column += kLanes) {
      if (column + kLanes <= n)
        simd::transpose(rows, column, turned.data());
      else
        for (Index c = 0; c < kLanes; ++c)
          for (Index lane = 0; lane < kLanes; ++lane)
            turned[static_cast<std::size_t>(c * kLanes + lane)] = column + c < n ? rows[lane][column + c] : -kInfinity;
      for (Index c = 0; c < kLanes; ++c) {
        const S* square = turned.data() + c * kLanes;
        finite = finite - V::load_aligned(square);  // stays inf; NaN and inf - inf are NaN for good
        for (Index part = 0; part < kParts; ++part)
          keys[static_cast<std::size_t>(part)][static_cast<std::size_t>(column - from + c)] =
              RankKey<S>::encode(square + part * kPart, std::min(column + c, n - 1));
      }
    }
    for (std::size_t part = 0; part < best.size(); ++part) {
      sort_lanes(keys[part].data(), places);
      if (from > 0) keep_best(best[part].data(), more[part].data(), places);
    }
  }
  for (Index s = 0; s < k; ++s)
    for (Index part = 0; part < kParts; ++part) {
      const Index at = s * kLanes + part * kPart;
      best[static_cast<std::size_t>(part)][static_cast<std::size_t>(s)].decode(n, scores + at, ids + at);
    }
  return simd::bits(!(finite == finite));  // xsimd 8.1 takes NaN != NaN for false on AVX-512
}

}  // namespace moe::inline MOE_ABI::detail
