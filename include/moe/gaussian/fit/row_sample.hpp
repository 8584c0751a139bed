// SPDX-License-Identifier: MIT
#pragma once

#include "moe/gaussian/pass/row_blocks.hpp"

namespace moe::inline MOE_ABI::detail {

/// Some rows of standardised data, one after the other: x [count, d + 1], with ones, and y [count]. Row s is
/// row_of(s) of the data.
struct RowSample {
  Matrix<double> x;
  Eigen::VectorXd y;

  template <class RowOf>
  RowSample(const RowBlocks& rows, Index count, RowOf&& row_of) : x(count, rows.input_dim() + 1), y(count) {
    for (Index s = 0; s < count; ++s) {
      const Index row = row_of(s), block = row / kBlockRows, i = row % kBlockRows;
      for (Index c = 0; c < x.cols(); ++c) x(s, c) = rows.features(block)[c * kBlockRows + i];
      y(s) = rows.output(block)[i];
    }
  }
};

}  // namespace moe::inline MOE_ABI::detail
