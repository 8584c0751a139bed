// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <span>

#include "moe/core/simd.hpp"
#include "moe/core/unroll.hpp"

// The best scores of one row, all at once. Where they are chosen one after the other, every choice waits for the one
// before. Here the k-th largest of as many maxima as are needed bounds the k-th score from below, which leaves few
// scores; each of these counts the scores that are better, and that is its place.
namespace moe::inline MOE_ABI::detail {

/// Most choices of choose_by_bound.
inline constexpr Index kMostBoundChoices = 64;

/// Up to so many scores are compared with each other.
inline constexpr Index kMostCompared = 4 * kMostBoundChoices;

/// NaN ranks as -inf, so that no input can lead out of the row.
template <class V>
V rankable(const V& score) {
  return simd::select(score == score, score, V(-std::numeric_limits<simd::Scalar<V>>::infinity()));
}

/// Up to so many are compared with each other at once: a bound would cost more than it saves.
inline constexpr Index kFewScores = 32;

/// Scores on the stack, and room for a register behind them.
template <class S>
using ComparedScores = std::array<S, static_cast<std::size_t>(kMostCompared + simd::kLanes<S>)>;

/// The same for R registers of scores: each of the others is fetched once for all of them.
template <int R, class S>
void count_better(const S* own, const S* scores, Index padded, S* better) {
  using V = simd::Batch<S>;
  V score[R], even[R], odd[R];  // two sums, as one would wait for itself
  simd::unroll<R>([&](auto r) {
    score[r] = simd::load(own + r * simd::kLanes<S>);
    even[r] = odd[r] = V(S{0});
  });
  for (Index other = 0; other < padded; other += 2) {
    const V first(scores[other]), second(scores[other + 1]);
    simd::unroll<R>([&](auto r) { even[r] = simd::count_where(first > score[r], even[r]); });
    simd::unroll<R>([&](auto r) { odd[r] = simd::count_where(second > score[r], odd[r]); });
  }
  simd::unroll<R>([&](auto r) { simd::store(better + r * simd::kLanes<S>, even[r] + odd[r]); });
}

/// better[i] = how many of `scores` are larger than scores[i]; `padded` is a multiple of kLanes, fillers are -inf.
template <class S>
void count_better(const S* scores, Index padded, S* better) {
  constexpr Index kLanes = simd::kLanes<S>;
  Index i = 0;
  for (; i + 4 * kLanes <= padded; i += 4 * kLanes) count_better<4>(scores + i, scores, padded, better + i);
  if (i + 2 * kLanes <= padded) count_better<2>(scores + i, scores, padded, better + i), i += 2 * kLanes;
  if (i < padded) count_better<1>(scores + i, scores, padded, better + i);
}

/// most[lane of register r] = the largest score of row[0, n), NaN apart, whose register has the number r modulo R.
template <int R, class S>
void fold_row(const S* row, Index n, S* most) {
  using V = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>;
  constexpr S kNone = -std::numeric_limits<S>::infinity();
  V own[R];
  simd::unroll<R>([&](auto r) { own[r] = V(kNone); });
  Index i = 0;
  for (; i < n - n % (R * kLanes); i += R * kLanes)
    simd::unroll<R>([&](auto r) { own[r] = simd::max(simd::load(row + i + r * kLanes), own[r]); });
  simd::unroll<R>([&](auto r) { simd::store(most + r * kLanes, own[r]); });
  for (S* to = most; i < n; i += kLanes, to += kLanes) {
    const V last = i + kLanes <= n ? simd::load(row + i) : simd::load_partial(row + i, n - i, kNone);
    simd::store(to, simd::max(last, simd::load(to)));
  }
}

/// The same for a run-time number of maxima, R times a power of two registers of them.
template <int R, class S>
void fold_row(const S* row, Index n, Index groups, S* most) {
  if constexpr (R * simd::kLanes<S> < 2 * kMostBoundChoices)
    if (groups > R * simd::kLanes<S>) return fold_row<2 * R>(row, n, groups, most);
  fold_row<R>(row, n, most);
}

/// A number that the k-th largest of row[0, n) is not below: the k-th largest of `groups` maxima, a power of two from
/// kLanes to twice the most choices.
template <class S>
S bound_of(const S* row, Index n, Index k, Index groups) {
  using V = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>;
  ComparedScores<S> most, better;
  static_assert(2 * kMostBoundChoices <= kMostCompared && 2 * kMostBoundChoices % kLanes == 0);
  fold_row<1>(row, n, groups, most.data());
  count_better(most.data(), groups, better.data());
  const V places(static_cast<S>(k));
  V least(std::numeric_limits<S>::infinity());
  for (Index i = 0; i < groups; i += kLanes) {
    const V largest = simd::load(most.data() + i);
    least = simd::select(simd::load(better.data() + i) < places, simd::min(largest, least), least);
  }
  return simd::reduce(least, [](const auto& a, const auto& b) { return simd::min(a, b); });
}

/// Scores of one row that are compared with each other, ids ascending.
template <class S>
class Compared {
 public:
  /// All of row[0, n), n <= kMostCompared.
  void take_all(const S* row, Index n) {
    for (Index i = 0; i < n; i += kLanes) {
      simd::store(score_.data() + i, scores_of(row, n, i));
      for (Index lane = i; lane < i + kLanes; ++lane)
        id_[static_cast<std::size_t>(lane)] = static_cast<std::int32_t>(lane);
    }
    count_ = n;
  }

  /// Those that are not below `least`; false where there are more than kMostCompared of them.
  bool take_from(const S* row, Index n, S least) {
    const V bound(least);
    count_ = 0;
    for (Index first = 0; first < n; first += kWord) {
      std::uint64_t good = 0;
      for (Index i = first; i < std::min(n, first + kWord); i += kLanes)
        good |= std::uint64_t{simd::bits(scores_of(row, n, i) >= bound)} << (i - first);
      if (n - first < kWord) good &= (std::uint64_t{1} << (n - first)) - 1;  // fillers
      if (count_ + std::popcount(good) > kMostCompared) return false;
      for (; good != 0; good &= good - 1, ++count_) {
        const Index e = first + std::countr_zero(good);
        id_[static_cast<std::size_t>(count_)] = static_cast<std::int32_t>(e);
        score_[static_cast<std::size_t>(count_)] = rankable(row[e]);
      }
    }
    simd::store(score_.data() + count_, V(kNone));
    return true;
  }

  /// The ids of the best, best first, equal scores as they stand.
  void choose(std::span<Index> chosen) const {
    const auto k = static_cast<Index>(chosen.size());
    const V places(static_cast<S>(k));
    ComparedScores<S> better;
    std::array<std::uint8_t, static_cast<std::size_t>(kMostBoundChoices)> equal = {};  // that share a place
    count_better(score_.data(), (count_ + kLanes - 1) / kLanes * kLanes, better.data());
    for (Index first = 0; first < count_; first += kWord) {
      std::uint64_t good = 0;
      for (Index i = first; i < std::min(count_, first + kWord); i += kLanes)
        good |= std::uint64_t{simd::bits(simd::load(better.data() + i) < places)} << (i - first);
      if (count_ - first < kWord) good &= (std::uint64_t{1} << (count_ - first)) - 1;
      for (; good != 0; good &= good - 1) {
        const auto i = static_cast<std::size_t>(first + std::countr_zero(good));
        const auto place = static_cast<Index>(static_cast<std::int32_t>(better[i]));
        const Index own = place + equal[static_cast<std::size_t>(place)]++;
        if (own < k) chosen[static_cast<std::size_t>(own)] = id_[i];
      }
    }
  }

 private:
  using V = simd::Batch<S>;
  static constexpr Index kLanes = simd::kLanes<S>, kWord = 64;
  static constexpr S kNone = -std::numeric_limits<S>::infinity();

  static V scores_of(const S* row, Index n, Index i) {
    return rankable(i + kLanes <= n ? simd::load(row + i) : simd::load_partial(row + i, n - i, kNone));
  }

  Index count_ = 0;
  ComparedScores<S> score_;
  std::array<std::int32_t, static_cast<std::size_t>(kMostCompared + kLanes)> id_;
};

/// Fills `chosen` with the ids of the best of row[0, n), best first, equal scores in ascending order of id; NaN counts
/// as -inf. Returns false, with nothing written, where there are too many choices, or too many scores that are as good.
template <class S>
bool choose_by_bound(const S* row, Index n, std::span<Index> chosen) {
  const auto k = static_cast<Index>(chosen.size());
  if (k > kMostBoundChoices || n > std::numeric_limits<std::int32_t>::max()) return false;
  // Twice as many maxima as choices: their k-th is then their median. As many as there are choices would leave several
  // times as many scores.
  const Index groups = std::max(simd::kLanes<S>, static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(2 * k))));
  Compared<S> compared;
  if (n <= std::max(kFewScores, groups))
    compared.take_all(row, n);
  else if (!compared.take_from(row, n, bound_of(row, n, k, groups)))
    return false;
  compared.choose(chosen);
  return true;
}

}  // namespace moe::inline MOE_ABI::detail
