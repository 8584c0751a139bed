// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <utility>

#include "moe/gaussian/model/data.hpp"

namespace moe::inline MOE_ABI {

/// Rows of a regression with any family of experts. What y is, says the family: a number, a count, a number of
/// successes, a class.
struct ResponseData : RegressionData {
  Eigen::VectorXd trials = {};  ///< Binomial: trials of each row [n], whole numbers >= 1; none: 1 each
  Matrix<double> further = {};  ///< DiagonalNormal: outputs beside y, [n, outputs - 1]; of other families none

  ResponseData() = default;
  ResponseData(RegressionData data, Eigen::VectorXd trials_of_rows = {}, Eigen::VectorXd offset_of_rows = {})
      : RegressionData(std::move(data)), trials(std::move(trials_of_rows)) {
    if (offset_of_rows.size() > 0) offset = std::move(offset_of_rows);
  }

  /// Outputs [n, m], the first of which is y; x and whatever else are those of `data`.
  static ResponseData of_outputs(RegressionData data, const Matrix<double>& outputs) {
    if (outputs.cols() < 1) fail("moe::ResponseData::of_outputs: there are no outputs, expected at least one column");
    data.y = outputs.col(0);
    ResponseData out(std::move(data));
    out.further = outputs.rightCols(outputs.cols() - 1);
    return out;
  }

  Index num_outputs() const { return 1 + further.cols(); }
  /// y, or one of those behind it.
  Eigen::VectorXd output(Index c) const { return c == 0 ? y : Eigen::VectorXd(further.col(c - 1)); }
  double trials_of(Index row) const { return trials.size() > 0 ? trials(row) : 1; }

  /// As RegressionData::validate(); also for trials or further outputs of another number of rows, such that are not
  /// finite, and for precisions.
  void validate(const char* function) const {
    RegressionData::validate(function);
    if (precision.size() > 0)
      fail(function, ": there are precision weights, expected none: they are of normal experts alone, see moe::fit");
    if (expert_intercept == Intercept::Zero)
      fail(function, ": there is no intercept, expected one: experts without are those of moe::fit");
    if (further.cols() > 0) validate_further(function);
    if (trials.size() == 0) return;
    if (trials.size() != num_rows())
      fail(function, ": trials has ", trials.size(), " numbers, expected as many as x has rows, ", num_rows());
    for (Index i = 0; i < num_rows(); ++i)
      if (!std::isfinite(trials(i)))
        fail(function, ": trials is ", trials(i), " in row ", i, ", expected finite numbers");
  }

 private:
  void validate_further(const char* function) const {
    if (further.rows() != num_rows())
      fail(function, ": further has ", further.rows(), " rows, expected as many as x, ", num_rows());
    for (Index i = 0; i < num_rows(); ++i)
      for (Index c = 0; c < further.cols(); ++c)
        if (!std::isfinite(further(i, c)) || !std::isfinite(further(i, c) - offset_of(i)))
          fail(function, ": output ", c + 1, " is ", further(i, c), " in row ", i, ", expected finite numbers");
  }
};

namespace detail {

/// Some rows of data, in the order given.
template <class Rows>
ResponseData rows_of(const ResponseData& data, const Rows& rows) {
  ResponseData out{rows_of(static_cast<const RegressionData&>(data), rows),
                   data.trials.size() > 0 ? Eigen::VectorXd(data.trials(rows)) : Eigen::VectorXd()};
  if (data.further.cols() > 0) out.further = data.further(rows, Eigen::all);
  return out;
}

/// Those of weight above 0.
inline ResponseData counted_rows(const ResponseData& data) {
  std::vector<Index> counted;
  for (Index i = 0; i < data.num_rows(); ++i)
    if (data.weight(i) > 0) counted.push_back(i);
  return std::ssize(counted) == data.num_rows() ? data : rows_of(data, counted);
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
