// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <vector>

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
  /// Added to the mean of every expert of a row [n], a coefficient of 1 that is known; none: 0. In moe/likelihood to
  /// every linear predictor: the logarithm of an exposure for Poisson.
  Eigen::VectorXd offset = {};
  /// Precision weights [n], finite and > 0; none: 1 each. The variance of expert j in a row is nu_j / precision, as if
  /// y were the mean of so many outcomes: what lm(weights =) of R means. A factor of all of them only scales the nu_j.
  /// They say nothing of how many rows there are, as `weights` do, which may be there, too.
  Eigen::VectorXd precision = {};
  /// The columns of x that the gate and the experts of a fit read; each coefficient of the others is 0 and no
  /// parameter. Models keep what they were fitted with, and are evaluated by that.
  InputColumns gate_inputs = {}, expert_inputs = {};
  Intercept expert_intercept = Intercept::Free;  ///< Zero: y ~ x - 1, experts a_j . x. Gates keep their bias

  Index num_rows() const { return x.rows(); }
  Index input_dim() const { return x.cols(); }
  bool weighted() const { return weights.size() > 0; }
  double weight(Index row) const { return weighted() ? weights(row) : 1; }
  double offset_of(Index row) const { return offset.size() > 0 ? offset(row) : 0; }
  double precision_of(Index row) const { return precision.size() > 0 ? precision(row) : 1; }
  /// What the experts of moe/gaussian explain: y - offset.
  double explained(Index row) const { return offset.size() > 0 ? y(row) - offset(row) : y(row); }
  Eigen::VectorXd explained() const { return offset.size() > 0 ? Eigen::VectorXd(y - offset) : y; }
  /// Rows that the weights stand for.
  double total_weight() const { return weighted() ? weights.sum() : static_cast<double>(num_rows()); }

  /// Throws std::invalid_argument unless x and y have as many rows, at least one of each, and all numbers are finite;
  /// for weights of another number, negative or not finite ones, or none above 0; for offsets of another number,
  /// not finite ones, or such that y - offset overflows; and for precisions of another number or outside of 1e-100 to
  /// 1e100.
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
    if (offset.size() > 0) validate_offset(function);
    if (precision.size() > 0) validate_precision(function);
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

  void validate_precision(const char* function) const {
    if (precision.size() != x.rows())
      fail(function, ": precision has ", precision.size(), " numbers, expected as many as x has rows, ", x.rows());
    for (Index i = 0; i < x.rows(); ++i)
      if (!(precision(i) >= 1e-100 && precision(i) <= 1e100))
        fail(function, ": precision is ", precision(i), " in row ", i,
             ", expected 1e-100 to 1e100 (a row of weight 0 is left out)");
  }

  void validate_offset(const char* function) const {
    if (offset.size() != x.rows())
      fail(function, ": offset has ", offset.size(), " numbers, expected as many as x has rows, ", x.rows());
    for (Index i = 0; i < x.rows(); ++i)
      if (!std::isfinite(offset(i)) || !std::isfinite(y(i) - offset(i)))
        fail(function, ": offset is ", offset(i), " in row ", i, ", expected finite numbers",
             std::isfinite(offset(i)) ? " that leave y - offset finite" : "");
  }
};

namespace detail {

/// Some rows of data, in the order given, with all that belongs to them.
template <class Rows>
RegressionData rows_of(const RegressionData& data, const Rows& rows) {
  const auto part = [&](const Eigen::VectorXd& column) {
    return column.size() > 0 ? Eigen::VectorXd(column(rows)) : Eigen::VectorXd();
  };
  return {.x = data.x(rows, Eigen::all),
          .y = part(data.y),
          .weights = part(data.weights),
          .offset = part(data.offset),
          .precision = part(data.precision),
          .gate_inputs = data.gate_inputs,
          .expert_inputs = data.expert_inputs,
          .expert_intercept = data.expert_intercept};
}

}  // namespace detail

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
  std::vector<Index> rows;
  rows.reserve(static_cast<std::size_t>(data.total_weight()));
  for (Index i = 0; i < data.num_rows(); ++i)
    for (double copy = 0; copy < data.weights(i); ++copy) rows.push_back(i);
  RegressionData out = detail::rows_of(data, rows);
  out.weights.resize(0);
  return out;
}

namespace detail {

/// Validated data without the rows of weight 0, which no sum, start or check shall see. A copy where there are some.
class CountedRows {
 public:
  explicit CountedRows(const RegressionData& data) : data_(&data) {
    if (!data.weighted() || data.weights.minCoeff() > 0) return;
    std::vector<Index> rows;
    for (Index i = 0; i < data.num_rows(); ++i)
      if (data.weights(i) > 0) rows.push_back(i);
    counted_ = rows_of(data, rows);
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
