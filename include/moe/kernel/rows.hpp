// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>

#include "moe/core/aligned.hpp"

namespace moe::inline MOE_ABI::kernel {

/// Where the rows of a product lie: contiguous, or picked by `index` (the token of each row). Reads in place.
template <class S>
struct RowSource {
  const S* base = nullptr;
  Index stride = 0;
  const Index* index = nullptr;  ///< [num_rows], or null for row r at base + (r - origin) * stride
  Index origin = 0;              ///< the row that stands at base

  const S* row(Index r) const { return base + (index ? index[r] : r - origin) * stride; }

  static RowSource from(const ConstMatrixRef<S>& rows, const Index* index = nullptr) {
    return {rows.data(), rows.outerStride(), index};
  }
  static RowSource from(const RowBuffer<S>& rows, Index origin = 0) {
    return {rows.row(0), rows.stride(), nullptr, origin};
  }
};

/// Groups of consecutive rows: group g is [offset[g], offset[g + 1]), of which this view shows the part that lies in
/// [first_row, last_row).
struct RowGroups {
  const Index* offset = nullptr;  ///< [count + 1]
  Index count = 0;
  Index first_row = 0, last_row = std::numeric_limits<Index>::max();

  Index begin(Index g) const { return std::clamp(offset[g], first_row, last_row); }
  Index end(Index g) const { return begin(g + 1); }
  Index size(Index g) const { return end(g) - begin(g); }
  /// Whether no row is of group g, inside [first_row, last_row) or not: one comparison, for loops over many groups.
  bool is_empty(Index g) const { return offset[g + 1] == offset[g]; }
  Index num_rows() const { return end(count - 1) - begin(0); }
};

/// The part of `groups` from row `begin` on that a pass over at most `most` rows takes: as many whole groups as fit, or
/// an even share of a group that does not. Whole groups, because a group that is cut has its weights read twice.
inline RowGroups wave_from(const RowGroups& groups, Index begin, Index most) {
  Index end = begin;
  for (Index g = 0; g < groups.count; ++g) {
    if (groups.end(g) <= begin) continue;
    const Index rows = groups.end(g) - begin;
    if (rows <= most) {
      end = groups.end(g);
      continue;
    }
    const Index shares = (rows + most - 1) / most;
    if (end == begin) end = begin + (rows + shares - 1) / shares;
    break;
  }
  return {groups.offset, groups.count, begin, end};
}

}  // namespace moe::inline MOE_ABI::kernel
