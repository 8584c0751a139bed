// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "moe/core/simd_transpose.hpp"
#include "moe/numeric/top_k_network.hpp"

// The best scores of several rows at once, a row per lane. Where one row is searched by passes, every choice waits for
// the one before and every row ends in branches that cannot be predicted; here nothing branches on the data.
namespace moe::inline MOE_ABI::detail {

/// Most choices that are made for several rows at once: up to 12, of doubles 16, are kept in registers, more go through
/// a network.
inline constexpr Index kMostLaneChoices = kMostNetworkChoices;

/// Ids are carried as scalars, or in the last bits of scores; there is room for them up to here.
inline constexpr Index kMostLaneIds = kMostNetworkIds;

/// The K best (score, id) of each lane, best first; among equal scores the one that was inserted first.
template <int K, class S>
struct LaneBest {
  using V = simd::Batch<S>;

  LaneBest() {
    simd::unroll<K>([&](auto j) {
      score[j] = V(-std::numeric_limits<S>::infinity());
      id[j] = V(S{0});
    });
  }

  /// Inlined by order: g++ 12 calls it from 12 places on, and everything then goes through memory.
  [[gnu::always_inline]] void insert(const V& s, const V& i) {
    auto above = s > score[K - 1];
    simd::unroll<K - 1>([&](auto step) {
      constexpr int kPlace = K - 1 - step;
      const auto above_next = s > score[kPlace - 1];  // what was there moves down, and s goes further up
      score[kPlace] = simd::select(above_next, score[kPlace - 1], simd::max(s, score[kPlace]));
      id[kPlace] = simd::select(above_next, id[kPlace - 1], simd::select(above, i, id[kPlace]));
      above = above_next;
    });
    score[0] = simd::max(s, score[0]);
    id[0] = simd::select(above, i, id[0]);
  }

  V score[K], id[K];
};

/// The K highest of n scores of each of kLanes rows: scores[j][lane] and ids[j][lane] of the j-th best, equal scores in
/// ascending order of id. Where less than K are above -inf, the rest has score -inf and any id. Returns the lanes whose
/// row has a NaN or +inf, as bits; what is chosen there means nothing.
///   rows  kLanes pointers, not necessarily different      scores, ids  [K, kLanes], aligned to a register
template <int K, class S>
std::uint32_t top_k_lanes(const S* const* rows, Index n, S* scores, S* ids) {
  using V = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>;
  constexpr S kInfinity = std::numeric_limits<S>::infinity();
  alignas(64) std::array<S, static_cast<std::size_t>(kLanes * kLanes)> turned;
  LaneBest<K, S> best;
  V finite(kInfinity), id(S{0});
  const auto insert = [&](Index from) {  // columns [from, kLanes) of the square
    LaneBest<K, S> local = best;
    V local_finite = finite, local_id = id;
    for (Index c = from; c < kLanes; ++c) {
      const V score = V::load_aligned(turned.data() + c * kLanes);
      local_finite = local_finite - score;  // stays inf; NaN and inf - inf are NaN for good
      local.insert(score, local_id);
      local_id = local_id + V(S{1});
    }
    best = local;
    finite = local_finite;
    id = local_id;
  };
  for (Index e = 0; e + kLanes <= n; e += kLanes) {
    simd::transpose(rows, e, turned.data());
    insert(0);
  }
  if (n % kLanes != 0 && n > kLanes) {  // the last square overlaps the one before
    simd::transpose(rows, n - kLanes, turned.data());
    insert(kLanes - n % kLanes);
  } else if (n % kLanes != 0) {
    for (Index c = 0; c < n; ++c)
      for (Index r = 0; r < kLanes; ++r) turned[static_cast<std::size_t>((c + kLanes - n) * kLanes + r)] = rows[r][c];
    insert(kLanes - n);
  }
  simd::unroll<K>([&](auto j) {
    best.score[j].store_aligned(scores + j * kLanes);
    best.id[j].store_aligned(ids + j * kLanes);
  });
  return simd::bits(!(finite == finite));  // xsimd 8.1 takes NaN != NaN for false on AVX-512
}

/// The same for a run-time k in [1, kMostLaneChoices]: the first k places are those of the k best; scores of -0 may
/// become 0. Writes up to kMostLaneChoices places. A few sizes serve all k, as each is some kilobyte of code.
template <class S>
std::uint32_t top_k_lanes(Index k, const S* const* rows, Index n, S* scores, S* ids) {
  MOE_ASSERT(1 <= k && k <= kMostLaneChoices && k <= n && n <= kMostLaneIds);
  if (k == 1) return top_k_lanes<1>(rows, n, scores, ids);
  if (k == 2) return top_k_lanes<2>(rows, n, scores, ids);
  if (k <= 4) return top_k_lanes<4>(rows, n, scores, ids);
  if (k <= 6) return top_k_lanes<6>(rows, n, scores, ids);
  if (k <= 8) return top_k_lanes<8>(rows, n, scores, ids);
  if (k <= 12) return top_k_lanes<12>(rows, n, scores, ids);
  if constexpr (std::is_same_v<S, double>)  // whose comparisons cost four times as much in the network
    if (k <= 16) return top_k_lanes<16>(rows, n, scores, ids);
  return top_k_network(k, rows, n, scores, ids);
}

}  // namespace moe::inline MOE_ABI::detail
