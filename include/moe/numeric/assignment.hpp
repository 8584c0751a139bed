// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// The permutation of columns with the least sum of cost(i, result[i]) over the rows; exact, but for rounding. Rows are
/// assigned one by one, each by the shortest path of reduced costs. Where several permutations are as good, the result
/// is one of them, always the same.
///   cost  [k, k], k >= 0, finite
/// Throws std::invalid_argument for a matrix that is not square, or numbers that are not finite. O(k^3), allocates
/// O(k) numbers. Thread-safety: a pure function.
/// Kuhn, "The Hungarian method for the assignment problem", 1955; Jonker & Volgenant, Computing 1987.
inline std::vector<Index> least_assignment(const Eigen::MatrixXd& cost) {
  constexpr const char* kName = "moe::least_assignment";
  const Index k = cost.rows();
  detail::require_shape(kName, "cost", cost, k, k);
  if (!cost.allFinite()) fail(kName, ": a cost is not finite");
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // Column k is a place outside of the matrix, from which every path starts.
  Eigen::VectorXd row_price = Eigen::VectorXd::Zero(k), column_price = Eigen::VectorXd::Zero(k + 1);
  std::vector<Index> row_of(static_cast<std::size_t>(k + 1), -1), before(static_cast<std::size_t>(k + 1), k);
  const auto at = [](std::vector<Index>& v, Index i) -> Index& { return v[static_cast<std::size_t>(i)]; };
  for (Index i = 0; i < k; ++i) {
    at(row_of, k) = i;
    Eigen::VectorXd distance = Eigen::VectorXd::Constant(k, kInfinity);
    std::vector<char> done(static_cast<std::size_t>(k + 1), 0);
    Index column = k;
    while (at(row_of, column) >= 0) {
      done[static_cast<std::size_t>(column)] = 1;
      const Index row = at(row_of, column);
      Index next = k;
      for (Index j = 0; j < k; ++j) {
        if (done[static_cast<std::size_t>(j)]) continue;
        const double reduced = cost(row, j) - row_price(row) - column_price(j);
        if (reduced < distance(j)) distance(j) = reduced, at(before, j) = column;
        if (next == k || distance(j) < distance(next)) next = j;
      }
      const double step = distance(next);
      for (Index j = 0; j <= k; ++j) {
        if (done[static_cast<std::size_t>(j)])
          row_price(at(row_of, j)) += step, column_price(j) -= step;
        else if (j < k)
          distance(j) -= step;
      }
      column = next;
    }
    for (; column != k; column = at(before, column)) at(row_of, column) = at(row_of, at(before, column));
  }
  std::vector<Index> column_of(static_cast<std::size_t>(k));
  for (Index j = 0; j < k; ++j) at(column_of, at(row_of, j)) = j;
  return column_of;
}

}  // namespace moe::inline MOE_ABI
