// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/core/parallel.hpp"
#include "moe/routing/routing.hpp"

// Long, as a plan and the three ways to build one share what is private.
namespace moe::inline MOE_ABI {

/// A routing sorted by expert: which rows each expert sees. Rows of expert e are [offset(e), offset(e + 1)), tokens
/// ascending inside an expert (a stable counting sort), so the plan is the same for any number of threads.
/// Reused call after call it allocates only to grow. A plain value, empty by default and after it has been moved from;
/// one per thread.
class DispatchPlan {
 public:
  /// Throws std::invalid_argument if the routing names an expert outside [0, num_experts); the plan is then empty.
  /// O(assignments + num_experts); parallel from kParallelFrom assignments on.
  template <class S>
  void build(const Routing<S>& routing, Index num_experts);

  /// A plan over rows that are sorted already: expert e has the count(e) >= 0 rows that follow those of the experts
  /// before it, and token r is row r. For shards, waves and mixtures that make the rows of experts themselves. Throws
  /// std::invalid_argument for a negative count; the plan is then empty.
  template <class Count>
  void build_from_counts(Index num_experts, const Count& count);
  static DispatchPlan from_counts(std::span<const Index> counts) {
    DispatchPlan plan;
    plan.build_from_counts(std::ssize(counts), [&](Index e) { return counts[static_cast<std::size_t>(e)]; });
    return plan;
  }

  /// A plan over rows that are sorted already, several of which may read one token: expert e has the rows [offsets[e],
  /// offsets[e + 1]), and row r in [first_row, last_row) reads token token_of(r), 0 <= token_of(r) < num_tokens. The
  /// assignments of a token are its rows, ascending; other rows keep their numbers and read no token. For sets that
  /// hand on what they were given, see LatentExperts. Throws std::invalid_argument for offsets that descend or do not
  /// start at 0, and for rows and tokens out of range; the plan is then empty. O(rows + num_experts + num_tokens).
  template <class TokenOf>
  void build_from_rows(std::span<const Index> offsets, Index first_row, Index last_row, Index num_tokens,
                       const TokenOf& token_of);

  Index num_experts() const { return std::max<Index>(0, static_cast<Index>(offset_.size()) - 1); }
  Index num_tokens() const { return num_tokens_; }
  /// Assignments that reach an expert: dropped ones have no row.
  Index num_rows() const { return offset_.empty() ? 0 : offset_.back(); }
  Index offset(Index expert) const { return offset_[static_cast<std::size_t>(expert)]; }
  /// All offsets, [num_experts + 1].
  std::span<const Index> offsets() const { return offset_; }
  Index rows_of(Index expert) const { return offset(expert + 1) - offset(expert); }

  /// First assignment of token t; begin(num_tokens()) is the number of assignments.
  Index begin(Index t) const {
    return choices_per_token_ >= 0 ? t * choices_per_token_ : token_begin_[static_cast<std::size_t>(t)];
  }
  Index end(Index t) const { return begin(t + 1); }
  /// See Routing::choices_per_token().
  Index choices_per_token() const { return choices_per_token_; }

  /// Token that row r reads.
  std::span<const Index> token_of_row() const { return {token_of_row_.row(0), static_cast<std::size_t>(num_rows())}; }
  /// Assignment (index into the routing) that row r serves.
  std::span<const Index> assignment_of_row() const {
    return {assignment_of_row_.row(0), static_cast<std::size_t>(num_rows())};
  }
  /// Row of each assignment, -1 where dropped.
  std::span<const Index> row_of_assignment() const {
    return {row_of_assignment_.data(), static_cast<std::size_t>(num_assignments_)};
  }

  /// Below this many assignments one thread sorts, which has most of them in its cache: two take as long at 64 Ki if
  /// they wait awake, and at 128 Ki if they sleep (Zen 5 guest, 8 to 128 experts).
  static constexpr Index kParallelFrom = 1 << 17;

 private:
  /// The last rows of an expert, on their way to where they belong, two cache lines at a time.
  struct Lines {
    static constexpr Index kRows = 16;
    static Index place_of(Index row) { return row & (kRows - 1); }

    Index token[kRows], assignment[kRows];  // of row r at place_of(r)
    Index begin;                            // rows before it have been written
  };

  template <class S>
  void count_rows(const Routing<S>& routing, Index first_token, Index last_token, Index* count) const;
  template <class S>
  void place_rows(const Routing<S>& routing, Index first_token, Index last_token, Index* next, Lines* lines);
  void scan_counts(Index blocks);
  bool experts_collide() const;

  std::vector<Index> offset_ = {0};
  RowBuffer<Index> token_of_row_, assignment_of_row_;  // one row, aligned to cache lines
  std::vector<Index> row_of_assignment_;
  std::vector<Index> token_begin_;  // of a ragged routing
  std::vector<Lines> lines_;        // [blocks, num_experts] where experts collide
  // [blocks, num_experts]: histogram, then the next free row of each block in each expert; rows of whole cache lines,
  // as two workers that count in one line take three times as long.
  RowBuffer<Index> count_;
  detail::ZeroWhenMoved<Index> num_tokens_ = 0, num_assignments_ = 0;
  Index choices_per_token_ = 0;
};

template <class S>
void DispatchPlan::build(const Routing<S>& routing, Index num_experts) {
  const Index num_tokens = routing.num_tokens(), num_assignments = routing.num_assignments();
  // Blocks of whole tokens. Rows are ordered by (expert, block, token), which is (expert, token) for any blocking, so
  // the number of workers decides who does what and never the result.
  const Index blocks = num_assignments < kParallelFrom ? 1 : num_workers();
  const Index tokens_per_block = (num_tokens + blocks - 1) / blocks;
  const auto first_token = [&](Index block) { return std::min(num_tokens, block * tokens_per_block); };

  detail::checked_size("moe::DispatchPlan::build", "num_experts", num_experts);
  num_tokens_ = num_assignments_ = 0;  // until all experts are known to exist
  offset_.assign(static_cast<std::size_t>(num_experts) + 1, 0);
  count_.resize(blocks, num_experts);
  token_of_row_.resize(1, num_assignments);
  assignment_of_row_.resize(1, num_assignments);
  row_of_assignment_.resize(static_cast<std::size_t>(num_assignments));
  const auto finish = [&] {
    num_tokens_ = num_tokens;
    num_assignments_ = num_assignments;
    choices_per_token_ = routing.choices_per_token();
    if (choices_per_token_ < 0) token_begin_.assign(routing.token_begin().begin(), routing.token_begin().end());
  };
  if (num_assignments == 0) return finish();

  parallel_for(blocks, [&](Index block, Index) {
    count_rows(routing, first_token(block), first_token(block + 1), count_.row(block));
  });
  scan_counts(blocks);
  finish();
  const bool by_lines = num_rows() >= blocks * num_experts * Lines::kRows && experts_collide();
  if (by_lines) lines_.resize(static_cast<std::size_t>(blocks * num_experts));
  parallel_for(blocks, [&](Index block, Index) {
    place_rows(routing, first_token(block), first_token(block + 1), count_.row(block),
               by_lines ? lines_.data() + block * num_experts : nullptr);
  });
}

template <class Count>
void DispatchPlan::build_from_counts(Index num_experts, const Count& count) {
  constexpr const char* kName = "moe::DispatchPlan::build_from_counts";
  detail::checked_size(kName, "num_experts", num_experts);
  num_tokens_ = num_assignments_ = 0;
  offset_.assign(static_cast<std::size_t>(num_experts) + 1, 0);
  Index rows = 0;
  for (Index e = 0; e < num_experts; ++e) rows += detail::checked_size(kName, "count", count(e));
  token_of_row_.resize(1, rows);
  assignment_of_row_.resize(1, rows);
  row_of_assignment_.resize(static_cast<std::size_t>(rows));
  for (Index e = 0; e < num_experts; ++e) {
    const auto at = static_cast<std::size_t>(e);
    offset_[at + 1] = offset_[at] + count(e);
  }
  std::iota(token_of_row_.row(0), token_of_row_.row(0) + rows, Index{0});
  std::iota(assignment_of_row_.row(0), assignment_of_row_.row(0) + rows, Index{0});
  std::ranges::copy(token_of_row(), row_of_assignment_.begin());
  num_tokens_ = num_assignments_ = rows;
  choices_per_token_ = 1;
}

template <class TokenOf>
void DispatchPlan::build_from_rows(std::span<const Index> offsets, Index first_row, Index last_row, Index num_tokens,
                                   const TokenOf& token_of) {
  constexpr const char* kName = "moe::DispatchPlan::build_from_rows";
  detail::checked_size(kName, "num_tokens", num_tokens);
  num_tokens_ = num_assignments_ = 0;
  offset_.assign(1, 0);
  if (offsets.empty() || offsets.front() != 0 || !std::ranges::is_sorted(offsets))
    fail(kName, ": the offsets descend or do not start at 0, expected [0, ..., number of rows]");
  const Index rows = offsets.back();
  if (first_row < 0 || last_row < first_row || last_row > rows)
    fail(kName, ": rows [", first_row, ", ", last_row, "), expected them in [0, ", rows, ")");
  token_of_row_.resize(1, rows);
  assignment_of_row_.resize(1, rows);
  std::fill_n(token_of_row_.row(0), rows, Index{0});
  std::fill_n(assignment_of_row_.row(0), rows, Index{-1});
  token_begin_.assign(static_cast<std::size_t>(num_tokens) + 1, 0);
  for (Index r = first_row; r < last_row; ++r) {
    const Index t = token_of(r);
    if (t < 0 || t >= num_tokens)
      fail(kName, ": row ", r, " reads token ", t, ", expected 0 <= token < num_tokens = ", num_tokens);
    token_of_row_.row(0)[r] = t;
    ++token_begin_[static_cast<std::size_t>(t) + 1];
  }
  std::partial_sum(token_begin_.begin(), token_begin_.end(), token_begin_.begin());
  count_.resize(1, num_tokens + 1);  // the next free assignment of each token
  std::ranges::copy(token_begin_, count_.row(0));
  row_of_assignment_.resize(static_cast<std::size_t>(last_row - first_row));
  for (Index r = first_row; r < last_row; ++r) {
    const Index a = count_.row(0)[token_of_row_.row(0)[r]]++;
    assignment_of_row_.row(0)[r] = a;
    row_of_assignment_[static_cast<std::size_t>(a)] = r;
  }
  offset_.assign(offsets.begin(), offsets.end());
  num_tokens_ = num_tokens;
  num_assignments_ = last_row - first_row;
  choices_per_token_ = -1;
}

template <class S>
void DispatchPlan::count_rows(const Routing<S>& routing, Index first_token, Index last_token, Index* count) const {
  const Index* expert = routing.experts().data();
  const std::uint8_t* dropped = routing.dropped().data();
  const Index num_experts = this->num_experts(), last = routing.begin(last_token);
  std::fill_n(count, num_experts, Index{0});
  for (Index a = routing.begin(first_token); a < last; ++a) {
    const Index e = expert[a];
    if (e < 0 || e >= num_experts)
      fail("moe::DispatchPlan::build: assignment ", a, " names expert ", e,
           ", expected 0 <= expert < num_experts = ", num_experts);
    count[e] += dropped[a] ? 0 : 1;
  }
}

/// Turns the histograms into first rows, and fills the offsets.
inline void DispatchPlan::scan_counts(Index blocks) {
  const Index num_experts = this->num_experts();
  Index* offset = offset_.data();
  Index row = 0;
  for (Index e = 0; e < num_experts; ++e) {
    offset[e] = row;
    for (Index block = 0; block < blocks; ++block) row += std::exchange(count_.row(block)[e], row);
  }
  offset[num_experts] = row;
}

/// Whether the next rows of many experts, in two arrays, fall on the same few sets of the first-level cache, as those
/// of a dense gate do near a multiple of 128 tokens: every row then evicts a line that is about to be written again.
inline bool DispatchPlan::experts_collide() const {
  constexpr Index kSets = 64;  // of 8 or 12 lines; what is read takes some
  constexpr Index kMany = 9, kTimesTheMean = 8;
  std::array<Index, static_cast<std::size_t>(kSets)> lines = {};
  Index written = 0;
  for (const Index* rows : {token_of_row_.row(0), assignment_of_row_.row(0)})
    for (Index e = 0; e < num_experts(); ++e) {
      if (rows_of(e) == 0) continue;
      ++lines[reinterpret_cast<std::uintptr_t>(rows + offset(e)) / kCacheLine % static_cast<std::size_t>(kSets)];
      ++written;
    }
  const Index most = *std::ranges::max_element(lines);
  return most >= kMany && most * kSets > kTimesTheMean * written;
}

/// Writes the rows of a block of tokens, from next[e] on for expert e; through `lines` if there are some, which takes
/// up to twice as long as without where experts do not collide, and a half to a seventh where they do.
template <class S>
void DispatchPlan::place_rows(const Routing<S>& routing, Index first_token, Index last_token, Index* next,
                              Lines* lines) {
  const Index* expert = routing.experts().data();
  const std::uint8_t* dropped = routing.dropped().data();
  Index *token_of = token_of_row_.row(0), *assignment_of = assignment_of_row_.row(0);
  Index* row_of = row_of_assignment_.data();
  const auto for_each_row = [&](const auto& place) {
    Index a = routing.begin(first_token);
    for (Index t = first_token; t < last_token; ++t)
      for (const Index end = routing.end(t); a < end; ++a) {
        if (dropped[a]) {
          row_of[a] = -1;
          continue;
        }
        const Index e = expert[a], row = next[e]++;
        row_of[a] = row;
        place(e, row, t, a);
      }
  };
  if (!lines)
    return for_each_row([&](Index, Index row, Index t, Index a) {
      token_of[row] = t;
      assignment_of[row] = a;
    });

  const Index num_experts = this->num_experts();
  const auto write = [&](Lines& own, Index end) {
    if (end - own.begin == Lines::kRows) {  // all but the first and the last
      std::copy_n(own.token, Lines::kRows, token_of + own.begin);
      std::copy_n(own.assignment, Lines::kRows, assignment_of + own.begin);
    } else {
      for (Index row = own.begin; row < end; ++row) {
        token_of[row] = own.token[Lines::place_of(row)];
        assignment_of[row] = own.assignment[Lines::place_of(row)];
      }
    }
    own.begin = end;
  };
  for (Index e = 0; e < num_experts; ++e) lines[e].begin = next[e];
  for_each_row([&](Index e, Index row, Index t, Index a) {
    Lines& own = lines[e];
    const Index at = Lines::place_of(row);
    if (at == 0 && row > own.begin) write(own, row);
    own.token[at] = t;
    own.assignment[at] = a;
  });
  for (Index e = 0; e < num_experts; ++e) write(lines[e], next[e]);
}

}  // namespace moe::inline MOE_ABI
