// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// A routing sorted by expert: which rows each expert sees. Rows of expert e are [offset(e), offset(e + 1)), tokens
/// ascending inside an expert (a stable counting sort), so the plan is the same for any number of threads.
/// Reused call after call it allocates only to grow. A plain value; one per thread.
class DispatchPlan {
 public:
  /// Throws std::invalid_argument if the routing names an expert outside [0, num_experts).
  /// O(assignments + num_experts); parallel from kParallelFrom assignments on.
  template <class S>
  void build(const Routing<S>& routing, Index num_experts);

  Index num_experts() const { return static_cast<Index>(offset_.size()) - 1; }
  Index num_tokens() const { return num_tokens_; }
  /// Assignments that reach an expert: dropped ones have no row.
  Index num_rows() const { return offset_.back(); }
  Index offset(Index expert) const { return offset_[static_cast<std::size_t>(expert)]; }
  Index rows_of(Index expert) const { return offset(expert + 1) - offset(expert); }

  /// Token that row r reads.
  std::span<const Index> token_of_row() const { return {token_of_row_.data(), static_cast<std::size_t>(num_rows())}; }
  /// Assignment (index into the routing) that row r serves.
  std::span<const Index> assignment_of_row() const {
    return {assignment_of_row_.data(), static_cast<std::size_t>(num_rows())};
  }
  /// Row of each assignment, -1 where dropped.
  std::span<const Index> row_of_assignment() const { return row_of_assignment_; }

  /// Below this many assignments one thread sorts faster than it can hand work out.
  static constexpr Index kParallelFrom = 1 << 14;

 private:
  std::vector<Index> offset_ = {0};
  std::vector<Index> token_of_row_, assignment_of_row_, row_of_assignment_;
  std::vector<Index> count_;  // [blocks, num_experts]: histogram, then first row of each block in each expert
  Index num_tokens_ = 0;
};

template <class S>
void DispatchPlan::build(const Routing<S>& routing, Index num_experts) {
  const Index num_assignments = routing.num_assignments();
  num_tokens_ = routing.num_tokens();
  const auto expert = routing.experts();
  const auto dropped = routing.dropped();

  // Blocks of whole tokens; their number depends on sizes and workers only through who does what, never through the
  // result: rows are ordered by (expert, block, token), which is (expert, token) for any blocking.
  const Index blocks = num_assignments < kParallelFrom ? 1 : num_workers();
  const Index tokens_per_block = (num_tokens_ + blocks - 1) / blocks;
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  count_.assign(at(blocks * num_experts), 0);
  token_of_row_.resize(at(num_assignments));
  assignment_of_row_.resize(at(num_assignments));
  row_of_assignment_.resize(at(num_assignments));
  const auto first_token = [&](Index block) { return std::min(num_tokens_, block * tokens_per_block); };

  parallel_for(blocks, [&](Index block, Index) {
    Index* count = count_.data() + block * num_experts;
    for (Index a = routing.begin(first_token(block)); a < routing.begin(first_token(block + 1)); ++a) {
      const Index e = expert[at(a)];
      if (e < 0 || e >= num_experts)
        fail("moe::DispatchPlan::build: assignment ", a, " names expert ", e, ", expected 0 <= expert < num_experts = ",
             num_experts);
      count[e] += dropped[at(a)] ? 0 : 1;
    }
  });

  offset_.resize(at(num_experts) + 1);
  Index row = 0;
  for (Index e = 0; e < num_experts; ++e) {
    offset_[at(e)] = row;
    for (Index block = 0; block < blocks; ++block) {
      const Index here = count_[at(block * num_experts + e)];
      count_[at(block * num_experts + e)] = row;
      row += here;
    }
  }
  offset_[at(num_experts)] = row;

  parallel_for(blocks, [&](Index block, Index) {
    Index* next = count_.data() + block * num_experts;
    for (Index t = first_token(block); t < first_token(block + 1); ++t) {
      for (Index a = routing.begin(t); a < routing.end(t); ++a) {
        if (dropped[at(a)]) {
          row_of_assignment_[at(a)] = -1;
          continue;
        }
        const Index r = next[expert[at(a)]]++;
        token_of_row_[at(r)] = t;
        assignment_of_row_[at(r)] = a;
        row_of_assignment_[at(a)] = r;
      }
    }
  });
}

}  // namespace moe::inline MOE_ABI
