// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>

#include "moe/numeric/top_k_row.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Up to here every choice is one vector pass over a copy of the scores on the stack; a heap, which branches on the
/// data, is slower for any number of choices.
inline constexpr Index kTopKScores = 1024;

/// A copy of a row of scores, filled up to whole registers with -inf: as equal scores go to the lower id, and as there
/// are enough of them, a filler is never chosen.
template <class S>
using ScoreRow = std::array<S, static_cast<std::size_t>(kTopKScores + simd::kLanes<S>)>;

/// Largest of row[0, padded), -inf if there are but NaNs. Two maxima, as one would wait for itself.
template <class S>
S largest_but_nan(const S* row, Index padded) {
  constexpr Index kLanes = simd::kLanes<S>;
  simd::Batch<S> even(-std::numeric_limits<S>::infinity()), odd = even;
  Index i = 0;
  for (; i < padded - kLanes; i += 2 * kLanes) {
    even = simd::max(simd::load(row + i), even);
    odd = simd::max(simd::load(row + i + kLanes), odd);
  }
  if (i < padded) even = simd::max(simd::load(row + i), even);
  return simd::reduce_max(simd::max(even, odd));
}

/// Moves the best id of the first n scores of `row` to every place of `chosen` in turn. An id that was chosen is marked
/// by NaN, so that scores of -inf stay candidates.
template <class S>
void choose_by_passes(ScoreRow<S>& row, Index n, std::span<Index> chosen) {
  constexpr Index kLanes = simd::kLanes<S>;
  for (Index& id : chosen) {
    const simd::Batch<S> best(largest_but_nan(row.data(), (n + kLanes - 1) / kLanes * kLanes));
    Index block = 0;
    std::uint32_t equal = 0;
    while ((equal = simd::bits(simd::load(row.data() + block) == best)) == 0) block += kLanes;
    id = block + std::countr_zero(equal);
    row[static_cast<std::size_t>(id)] = std::numeric_limits<S>::quiet_NaN();
  }
}

/// The same by a heap of the best so far, worst on top: O(n log k).
template <class ScoreOf>
void choose_by_heap(const ScoreOf& score, Index n, std::span<Index> chosen) {
  const auto better = [&](Index a, Index b) {
    const auto x = score(a), y = score(b);
    return x > y || (!(x < y) && a < b);
  };
  if (chosen.empty()) return;
  std::iota(chosen.begin(), chosen.end(), Index{0});
  std::make_heap(chosen.begin(), chosen.end(), better);
  for (Index i = static_cast<Index>(chosen.size()); i < n; ++i) {
    if (!better(i, chosen.front())) continue;
    std::pop_heap(chosen.begin(), chosen.end(), better);
    chosen.back() = i;
    std::push_heap(chosen.begin(), chosen.end(), better);
  }
  std::sort_heap(chosen.begin(), chosen.end(), better);
}

/// Most choices that are made part by part.
inline constexpr Index kTopKPartChoices = kTopKScores / 2;

/// The id of the first of the best of row[0, n).
template <class S>
Index best_of(const S* row, Index n) {
  using V = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>;
  constexpr S kNone = -std::numeric_limits<S>::infinity();
  const Index body = n - n % kLanes;
  const V tail = body < n ? simd::load_partial(row + body, n - body, kNone) : V(kNone);
  V most = simd::max(tail, V(kNone));
  for (Index i = 0; i < body; i += kLanes) most = simd::max(simd::load(row + i), most);
  const V best(simd::reduce_max(most));
  for (Index i = 0; i < body; i += kLanes)
    if (const std::uint32_t equal = simd::bits(rankable(simd::load(row + i)) == best); equal != 0)
      return i + std::countr_zero(equal);
  return body + std::countr_zero(simd::bits(rankable(tail) == best));
}

/// The best of n scores, kTopKScores at a time: the best so far, whose ids are lower, stand before the next part, so
/// that equal scores keep their order. copy(first, count, to) writes scores.
template <class S, class Copy>
void choose_in_parts(const Copy& copy, Index n, std::span<Index> chosen) {
  constexpr S kNone = -std::numeric_limits<S>::infinity();
  const auto k = static_cast<Index>(chosen.size());
  ScoreRow<S> row;
  std::array<Index, static_cast<std::size_t>(kTopKPartChoices)> before;
  Index end = std::min(n, kTopKScores);
  copy(Index{0}, end, row.data());
  std::fill_n(row.data() + end, simd::kLanes<S>, kNone);
  choose_by_passes<S>(row, end, chosen);
  while (end < n) {
    const Index count = std::min(n - end, kTopKScores - k);
    std::ranges::copy(chosen, before.begin());
    for (Index j = 0; j < k; ++j) copy(before[static_cast<std::size_t>(j)], Index{1}, row.data() + j);
    copy(end, count, row.data() + k);
    std::fill_n(row.data() + k + count, simd::kLanes<S>, kNone);
    choose_by_passes<S>(row, k + count, chosen);
    for (Index& id : chosen) id = id < k ? before[static_cast<std::size_t>(id)] : end + id - k;
    end += count;
  }
}

}  // namespace detail

/// The ids of the chosen.size() highest of the scores score(0) ... score(n - 1), highest first; equal scores in
/// ascending order of id. -inf comes last, NaN counts as -inf. Needs chosen.size() <= n.
///   score   a pure function of an id; its value is compared as float if it is one, else as double
/// No allocation. O(k n / lanes), and O(n log k) for k > 512 of n > 1024.
template <class ScoreOf>
  requires std::invocable<const ScoreOf&, Index>
void top_k(const ScoreOf& score, Index n, std::span<Index> chosen) {
  MOE_ASSERT(static_cast<Index>(chosen.size()) <= n);
  using Result = std::remove_cvref_t<std::invoke_result_t<const ScoreOf&, Index>>;
  using S = std::conditional_t<std::is_same_v<Result, float>, float, double>;
  const auto ranked = [&](Index i) { return detail::rankable(static_cast<S>(score(i))); };
  const auto copy = [&](Index first, Index count, S* to) {
    for (Index i = 0; i < count; ++i) to[i] = ranked(first + i);
  };
  if (n > detail::kTopKScores && static_cast<Index>(chosen.size()) > detail::kTopKPartChoices)
    detail::choose_by_heap(ranked, n, chosen);
  else
    detail::choose_in_parts<S>(copy, n, chosen);
}

/// The same for scores in memory [n].
template <class S>
void top_k(const S* scores, Index n, std::span<Index> chosen) {
  MOE_ASSERT(static_cast<Index>(chosen.size()) <= n);
  const auto copy = [scores](Index first, Index count, S* to) {
    const S* from = scores + first;
    simd::for_each<S>(
        count, [&](Index i) { simd::store(to + i, detail::rankable(simd::load(from + i))); },
        [&](Index i, Index rest) {
          simd::store_partial(to + i, detail::rankable(simd::load_partial(from + i, rest, S{0})), rest);
        });
  };
  if (chosen.size() == 1) {
    chosen.front() = detail::best_of(scores, n);
    return;
  }
  const bool by_passes = chosen.size() == 2 && n > detail::kFewScores && n <= detail::kTopKScores;  // as fast for two
  if (!by_passes && detail::choose_by_bound(scores, n, chosen)) return;
  if (n > detail::kTopKScores && static_cast<Index>(chosen.size()) > detail::kTopKPartChoices)
    detail::choose_by_heap([scores](Index i) { return detail::rankable(scores[i]); }, n, chosen);
  else
    detail::choose_in_parts<S>(copy, n, chosen);
}

/// Index of the first NaN or +inf of row[0, n), n if there is none: what a check of logits needs, as -inf (a masked
/// expert) is allowed there.
template <class S>
Index first_not_below_infinity(const S* row, Index n) {
  const simd::Batch<S> infinity(std::numeric_limits<S>::infinity());
  Index first = n;
  const auto look = [&](Index i, const simd::Batch<S>& values) {
    const std::uint32_t bad = simd::bits(!(values < infinity));
    if (bad != 0 && first == n) first = i + std::countr_zero(bad);
  };
  simd::for_each<S>(
      n, [&](Index i) { look(i, simd::load(row + i)); },
      [&](Index i, Index count) { look(i, simd::load_partial(row + i, count, S{0})); });
  return first;
}

/// How many of row[0, n) are finite.
template <class S>
Index count_finite(const S* row, Index n) {
  const simd::Batch<S> infinity(std::numeric_limits<S>::infinity());
  Index finite = 0;
  const auto count_in = [&](const simd::Batch<S>& values) {
    finite += std::popcount(simd::bits(simd::abs(values) < infinity));
  };
  simd::for_each<S>(
      n, [&](Index i) { count_in(simd::load(row + i)); },
      [&](Index i, Index count) { count_in(simd::load_partial(row + i, count, std::numeric_limits<S>::infinity())); });
  return finite;
}

}  // namespace moe::inline MOE_ABI
