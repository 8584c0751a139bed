// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <concepts>

#include "moe/gaussian/model/data.hpp"

namespace moe::inline MOE_ABI {

/// What a model needs to know of rows to say how y is distributed there: a view of x [n, d] alone, or of all that
/// RegressionData have beside it, whose y plays no part and may have no rows. Predictions take either:
///   moe::predict_mean(model, x)          moe::predict_mean(model, data)      // with their offsets and precisions
/// Valid while what it was made of is.
class InputRows {
 public:
  template <class X>
    requires(std::convertible_to<const X&, MatrixView<double>> && !std::derived_from<X, RegressionData>)
  InputRows(const X& x) : x_(x) {}
  InputRows(const RegressionData& data) : x_(data.x), offset_(&data.offset), precision_(&data.precision) {}
  InputRows(const InputRows&) = delete;
  InputRows& operator=(const InputRows&) = delete;

  const MatrixView<double>& x() const { return x_; }
  Index num_rows() const { return x_.rows(); }
  double offset(Index row) const { return offset_ && offset_->size() > 0 ? (*offset_)(row) : 0; }

  double precision(Index row) const { return precision_ && precision_->size() > 0 ? (*precision_)(row) : 1; }

  /// Throws std::invalid_argument, naming `function`, for another number of columns, and numbers that are not finite or
  /// not as many as rows.
  void validate(const char* function, Index input_dim) const {
    detail::require_shape(function, "x", x_, num_rows(), input_dim);
    for (Index i = 0; i < num_rows(); ++i)
      for (Index c = 0; c < input_dim; ++c)
        if (!std::isfinite(x_(i, c)))
          fail(function, ": x is ", x_(i, c), " in row ", i, ", column ", c, ", expected finite numbers");
    if (offset_ && offset_->size() > 0) detail::require_shape(function, "offset", *offset_, num_rows(), 1);
    if (precision_ && precision_->size() > 0) detail::require_shape(function, "precision", *precision_, num_rows(), 1);
    for (Index i = 0; i < num_rows(); ++i) {
      if (!std::isfinite(offset(i)))
        fail(function, ": offset is ", offset(i), " in row ", i, ", expected finite numbers");
      if (!(precision(i) >= 1e-100 && precision(i) <= 1e100))
        fail(function, ": precision is ", precision(i), " in row ", i, ", expected 1e-100 to 1e100");
    }
  }

 private:
  MatrixView<double> x_;
  const Eigen::VectorXd *offset_ = nullptr, *precision_ = nullptr;
};

}  // namespace moe::inline MOE_ABI
