// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Rows of a regression of one output on d inputs.
struct RegressionData {
  Matrix<double> x = {};   ///< [n, d]
  Eigen::VectorXd y = {};  ///< [n]

  Index num_rows() const { return x.rows(); }
  Index input_dim() const { return x.cols(); }

  /// Throws std::invalid_argument unless x and y have as many rows, at least one of each, and all numbers are finite.
  void validate(const char* function) const {
    if (y.size() != x.rows()) fail(function, ": y has ", y.size(), " rows, expected as many as x = ", x.rows());
    if (x.rows() < 1 || x.cols() < 1)
      fail(function, ": x is [", x.rows(), ", ", x.cols(), "], expected at least one row and one column");
    for (Index i = 0; i < x.rows(); ++i) {
      if (!std::isfinite(y(i))) fail(function, ": y is ", y(i), " in row ", i, ", expected finite numbers");
      for (Index c = 0; c < x.cols(); ++c)
        if (!std::isfinite(x(i, c)))
          fail(function, ": x is ", x(i, c), " in row ", i, ", column ", c, ", expected finite numbers");
    }
  }
};

}  // namespace moe::inline MOE_ABI
