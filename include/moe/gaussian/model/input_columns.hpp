// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Columns of x that a part of a model reads, ascending. Not given: all of them; empty: none, a constant.
using InputColumns = std::optional<std::vector<Index>>;

/// Have experts an intercept, or go all of them through 0 at x = 0?
enum class Intercept { Free, Zero };

namespace detail {

/// Is a column among those?
inline bool reads(const InputColumns& columns, Index column) {
  return !columns || std::binary_search(columns->begin(), columns->end(), column);
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
