// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/core/matrix.hpp"
#include "moe/gaussian/model/input_columns.hpp"

namespace moe::inline MOE_ABI {

/// Rows of a regression of one output on d inputs.
struct RegressionData {
  Matrix<double> x = {};   ///< [n, d]
  Eigen::VectorXd y = {};  ///< [n]
  /// Frequency weights [n], finite and >= 0; none: 1 each. A row of weight w counts as w rows that are alike: in the
  /// likelihood and its derivatives, fits, standard errors and criteria. A row of weight 0 is as if it were not there.
  Eigen::VectorXd weights = {};
  /// The columns of x that the gate and the experts of a fit read; each coefficient of the others is 0 and no
  /// parameter. Models keep what they were fitted with, and are evaluated by that.
  InputColumns gate_inputs = {}, expert_inputs = {};

  Index num_rows() const { return x.rows(); }
  Index input_dim() const { return x.cols(); }
  bool weighted() const { return weights.size() > 0; }
  double weight(Index row) const { return weighted() ? weights(row) : 1; }
  /// Rows that the weights stand for.
  double total_weight() const { return weighted() ? weights.sum() : static_cast<double>(num_rows()); }

  /// Throws std::invalid_argument unless x and y have as many rows, at least one of each, and all numbers are finite;
  /// and for weights of another number, negative or not finite ones, or none above 0.
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
    if (weighted()) validate_weights(function);
  }

 private:
  void validate_weights(const char* function) const {
    if (weights.size() != x.rows())
      fail(function, ": weights has ", weights.size(), " numbers, expected as many as x has rows, ", x.rows());
    for (Index i = 0; i < x.rows(); ++i)
      if (!(weights(i) >= 0 && std::isfinite(weights(i))))
        fail(function, ": weights is ", weights(i), " in row ", i, ", expected finite numbers >= 0");
    if (!(weights.maxCoeff() > 0)) fail(function, ": weights is 0 in every row, expected some above 0");
    constexpr double kMost = 9007199254740992;  // 2^53: beyond it a count does not see one row more
    if (!(weights.sum() <= kMost))
      fail(function, ": weights has the sum ", weights.sum(), ", expected at most 2^53: count in a larger unit");
  }
};

/// The rows that whole weights stand for, each as often as its weight says and without one. Throws
/// std::invalid_argument as validate() does, for weights that are no whole numbers, and for more than 1e9 rows.
inline RegressionData repeated_rows(const RegressionData& data) {
  constexpr const char* kName = "moe::repeated_rows";
  data.validate(kName);
  if (!data.weighted()) return data;
  for (Index i = 0; i < data.num_rows(); ++i)
    if (data.weights(i) != std::floor(data.weights(i)))
      fail(kName, ": weights is ", data.weights(i), " in row ", i, ", expected whole numbers");
  if (!(data.total_weight() <= 1e9))
    fail(kName, ": weights stand for ", data.total_weight(), " rows, expected at most 1e9");
  const auto count = static_cast<Index>(data.total_weight());
  RegressionData out{Matrix<double>(count, data.input_dim()), Eigen::VectorXd(count), {}};
  for (Index i = 0, to = 0; i < data.num_rows(); ++i)
    for (double copy = 0; copy < data.weights(i); ++copy, ++to) {
      out.x.row(to) = data.x.row(i);
      out.y(to) = data.y(i);
    }
  out.gate_inputs = data.gate_inputs;
  out.expert_inputs = data.expert_inputs;
  return out;
}

namespace detail {

/// Validated data without the rows of weight 0, which no sum, start or check shall see. A copy where there are some.
class CountedRows {
 public:
  explicit CountedRows(const RegressionData& data) : data_(&data) {
    if (!data.weighted() || data.weights.minCoeff() > 0) return;
    const Index count = (data.weights.array() > 0).count();
    counted_ = {Matrix<double>(count, data.input_dim()), Eigen::VectorXd(count), Eigen::VectorXd(count)};
    for (Index i = 0, to = 0; i < data.num_rows(); ++i) {
      if (!(data.weights(i) > 0)) continue;
      counted_.x.row(to) = data.x.row(i);
      counted_.y(to) = data.y(i);
      counted_.weights(to++) = data.weights(i);
    }
    counted_.gate_inputs = data.gate_inputs;
    counted_.expert_inputs = data.expert_inputs;
    data_ = &counted_;
  }
  CountedRows(const CountedRows&) = delete;
  CountedRows& operator=(const CountedRows&) = delete;

  const RegressionData& data() const { return *data_; }

 private:
  const RegressionData* data_;
  RegressionData counted_ = {};
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
