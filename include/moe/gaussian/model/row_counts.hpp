// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI::detail {

/// Some rows, ascending, and how often each was drawn.
struct RowCounts {
  std::vector<Index> rows = {};
  std::vector<double> counts = {};
};

/// `draws` rows of n in proportion to weight(i) of sum `total`, evenly spaced among all that the weights stand for: a
/// row is drawn draws * weight / total times, but for one more or less. O(n). Madow, "On the theory of systematic
/// sampling, II", Ann. Math. Statist. 1949.
template <class Weight>
RowCounts proportional_rows(Index n, double total, Index draws, Weight&& weight) {
  RowCounts out;
  const double step = total / static_cast<double>(draws);
  double end = 0;
  Index drawn = 0;
  for (Index i = 0; i < n && drawn < draws; ++i) {
    end += weight(i);
    Index count = 0;
    for (; drawn < draws && (static_cast<double>(drawn) + 0.5) * step < end; ++drawn) ++count;
    if (count == 0) continue;
    out.rows.push_back(i);
    out.counts.push_back(static_cast<double>(count));
  }
  return out;
}

}  // namespace moe::inline MOE_ABI::detail
