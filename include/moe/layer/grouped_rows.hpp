// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/core/aligned.hpp"
#include "moe/expert/concept.hpp"
#include "moe/routing/token_groups.hpp"

namespace moe::inline MOE_ABI::detail {

/// The valid tokens of a batch as rows in the order of their groups. Working memory; one per thread.
template <class S>
struct GroupedRows {
  TokenGroups groups;
  std::vector<std::int64_t> token_id, group_id, key;  ///< of the rows; no keys if tokens have none

  void build(Index num_tokens, const Step& step) {
    groups.build(num_tokens, step);
    token_id.clear();
    group_id.clear();
    key.clear();
    for (const Index t : groups.token) {
      token_id.push_back(step.id(t));
      group_id.push_back(step.group(t));
      if (!step.key.empty()) key.push_back(step.key[static_cast<std::size_t>(t)]);
    }
  }

  /// to[r] = from[token of row r].
  void gather(const ConstMatrixRef<S>& from, RowBuffer<S>& to) const {
    to.resize(groups.num_tokens(), from.cols());
    for (Index r = 0; r < to.rows(); ++r)
      std::copy_n(from.data() + groups.token[static_cast<std::size_t>(r)] * from.outerStride(), from.cols(), to.row(r));
  }
  /// to[token of row r] = from[r], and zeros for padding.
  void scatter(const RowBuffer<S>& from, MatrixRef<S> to) const {
    if (groups.num_tokens() != to.rows()) to.setZero();
    for (Index r = 0; r < from.rows(); ++r)
      std::copy_n(from.row(r), to.cols(), to.data() + groups.token[static_cast<std::size_t>(r)] * to.outerStride());
  }

  /// The rows of a group in a buffer of all.
  auto block(auto& buffer, Index g) const {
    return buffer.matrix().middleRows(groups.begin[static_cast<std::size_t>(g)], groups.size(g));
  }
  /// `step` for these rows, in front of a single expert.
  Step step(const Step& of_tokens, Index g) const {
    const auto first = static_cast<std::size_t>(groups.begin[static_cast<std::size_t>(g)]),
               count = static_cast<std::size_t>(groups.size(g));
    Step own = step_of_part(of_tokens, 0);
    own.valid = {};
    own.token_id = std::span(token_id).subspan(first, count);
    own.group_id = std::span(group_id).subspan(first, count);
    own.key = key.empty() ? std::span<const std::int64_t>() : std::span(key).subspan(first, count);
    return own;
  }
};

}  // namespace moe::inline MOE_ABI::detail
