// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI::detail {

/// The valid tokens of a batch by their step.group_id, groups ascending: those of group g are token[begin[g]] ...
/// token[begin[g + 1] - 1], ascending. Reused call after call it allocates only to grow.
struct TokenGroups {
  std::vector<Index> token, begin;

  void build(Index num_tokens, const Step& step) {
    token.clear();
    for (Index t = 0; t < num_tokens; ++t)
      if (step.is_valid(t)) token.push_back(t);
    if (!step.group_id.empty()) std::ranges::sort(token, {}, [&](Index t) { return std::pair(step.group(t), t); });
    begin.assign(1, 0);
    for (std::size_t i = 1; i <= token.size(); ++i)
      if (i == token.size() || step.group(token[i]) != step.group(token[i - 1])) begin.push_back(static_cast<Index>(i));
  }
  Index count() const { return static_cast<Index>(begin.size()) - 1; }
  Index num_tokens() const { return static_cast<Index>(token.size()); }
  Index size(Index g) const { return begin[static_cast<std::size_t>(g) + 1] - begin[static_cast<std::size_t>(g)]; }
  Index largest() const {
    Index most = 0;
    for (Index g = 0; g < count(); ++g) most = std::max(most, size(g));
    return most;
  }
  std::span<const Index> operator[](Index g) const {
    const auto first = static_cast<std::size_t>(begin[static_cast<std::size_t>(g)]);
    return std::span(token).subspan(first, static_cast<std::size_t>(size(g)));
  }
};

}  // namespace moe::inline MOE_ABI::detail
