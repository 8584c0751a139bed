// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::detail {

/// How many groups the experts `ids` are of, where group g has the group_size experts from g * group_size on. Throws
/// std::invalid_argument unless the experts of a group stand together, equally many of each.
inline Index count_taken_groups(const char* function, std::span<const Index> ids, Index group_size) {
  std::vector<Index> group, taken;  // in the order of ids: which, and how many experts of it
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Index g = ids[i] / group_size;
    if (i > 0 && g == group.back()) {
      ++taken.back();
      continue;
    }
    if (std::ranges::find(group, g) != group.end())
      fail(function, ": ids[", i, "] is ", ids[i], " of group ", g, " behind experts of group ", group.back(),
           ", expected the experts of a group to stand together");
    group.push_back(g);
    taken.push_back(1);
  }
  for (std::size_t i = 1; i < taken.size(); ++i)
    if (taken[i] != taken[0])
      fail(function, ": ids name ", taken[i], " experts of group ", group[i], " and ", taken[0], " of group ", group[0],
           ", expected equally many of each group");
  return std::ssize(group);
}

}  // namespace moe::inline MOE_ABI::detail
