// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/gaussian/fit/row_sample.hpp"

namespace moe::inline MOE_ABI::detail {

/// k-means++ on (x, y), ten rounds of Lloyd.
inline std::vector<Index> k_means(const RowSample& sample, const RandomField& random, Index k) {
  const Index n = sample.y.size(), d = sample.x.cols() - 1;
  Matrix<double> points(n, d + 1);
  points << sample.x.leftCols(d), sample.y;
  Matrix<double> centres(k, d + 1);
  Eigen::VectorXd distance = Eigen::VectorXd::Constant(n, 1e300);
  std::vector<Index> label(static_cast<std::size_t>(n));
  for (Index j = 0; j < k; ++j) {
    Index next = static_cast<Index>(random.below(static_cast<std::uint64_t>(n), j, 1));
    if (j > 0) {
      double left = random.uniform(j, 5) * distance.sum();
      for (next = 0; next + 1 < n && (left -= distance(next)) > 0;) ++next;
    }
    centres.row(j) = points.row(next);
    distance = distance.cwiseMin((points.rowwise() - centres.row(j)).rowwise().squaredNorm());
  }
  for (int round = 0; round < 10; ++round) {
    Matrix<double> sums = Matrix<double>::Zero(k, d + 1);
    Eigen::VectorXd counts = Eigen::VectorXd::Zero(k);
    for (Index i = 0; i < n; ++i) {
      Index best = 0;
      (centres.rowwise() - points.row(i)).rowwise().squaredNorm().minCoeff(&best);
      label[static_cast<std::size_t>(i)] = best;
      sums.row(best) += points.row(i);
      counts(best) += 1;
    }
    for (Index j = 0; j < k; ++j)
      if (counts(j) > 0) centres.row(j) = sums.row(j) / counts(j);
  }
  return label;
}

}  // namespace moe::inline MOE_ABI::detail
