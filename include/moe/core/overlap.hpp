// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "moe/core/matrix.hpp"

// What is written may share memory with what is read afterwards: by one check, which every public call uses that would
// then compute something else than it says.
namespace moe::inline MOE_ABI::detail {

/// Whether two row-major views share an element; views of other columns of the same rows do not. O(1) where the ranges
/// of their addresses are apart, else O(rows).
template <class A, class B>
bool overlap(const A& a, const B& b) {
  const auto begin = [](const auto& view, Index r) {
    return reinterpret_cast<std::uintptr_t>(view.data() + r * view.outerStride());
  };
  const auto end = [&](const auto& view, Index r) {
    return begin(view, r) + static_cast<std::uintptr_t>(view.cols()) * sizeof(*view.data());
  };
  if (a.size() == 0 || b.size() == 0) return false;
  if (end(a, a.rows() - 1) <= begin(b, 0) || end(b, b.rows() - 1) <= begin(a, 0)) return false;
  for (Index i = 0, j = 0; i < a.rows() && j < b.rows();) {
    if (end(a, i) <= begin(b, j))
      ++i;
    else if (end(b, j) <= begin(a, i))
      ++j;
    else
      return true;
  }
  return false;
}

/// Throws std::invalid_argument if `written` shares memory with `read`.
template <class A, class B>
void require_apart(const char* function, const char* written_name, const A& written, const char* read_name,
                   const B& read) {
  if (overlap(written, read))
    fail(function, ": ", written_name, " overlaps ", read_name, ", expected memory of its own");
}

/// The same for calls that may write every row over the one it is computed from: `written` may be `read` itself.
template <class A, class B>
void require_same_or_apart(const char* function, const char* written_name, const A& written, const char* read_name,
                           const B& read) {
  const bool same_rows =
      written.data() == read.data() && (written.outerStride() == read.outerStride() || read.rows() <= 1);
  if (!same_rows && overlap(written, read))
    fail(function, ": ", written_name, " overlaps other rows of ", read_name, ", expected memory of its own, or ",
         read_name, " itself");
}

}  // namespace moe::inline MOE_ABI::detail
