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
  /// Added to every linear predictor of the experts of a row [n], a coefficient of 1 that is known: the logarithm of an
  /// exposure for Poisson. None: 0.
  Eigen::VectorXd offset = {};

  ResponseData() = default;
  ResponseData(RegressionData data, Eigen::VectorXd trials_of_rows = {}, Eigen::VectorXd offset_of_rows = {})
      : RegressionData(std::move(data)), trials(std::move(trials_of_rows)), offset(std::move(offset_of_rows)) {}

  double trials_of(Index row) const { return trials.size() > 0 ? trials(row) : 1; }
  double offset_of(Index row) const { return offset.size() > 0 ? offset(row) : 0; }

  /// As RegressionData::validate(); also for trials and offsets of another number of rows, and offsets that are not
  /// finite.
  void validate(const char* function) const {
    RegressionData::validate(function);
    for (const auto& [name, column] : {std::pair("trials", &trials), std::pair("offset", &offset)}) {
      if (column->size() == 0) continue;
      if (column->size() != num_rows())
        fail(function, ": ", name, " has ", column->size(), " numbers, expected as many as x has rows, ", num_rows());
      for (Index i = 0; i < num_rows(); ++i)
        if (!std::isfinite((*column)(i)))
          fail(function, ": ", name, " is ", (*column)(i), " in row ", i, ", expected finite numbers");
    }
  }
};

namespace detail {

/// Some rows of data, in the order given.
template <class Rows>
ResponseData rows_of(const ResponseData& data, const Rows& rows) {
  const auto part = [&](const Eigen::VectorXd& column) {
    return column.size() > 0 ? Eigen::VectorXd(column(rows)) : Eigen::VectorXd();
  };
  RegressionData out{data.x(rows, Eigen::all), part(data.y), part(data.weights)};
  out.gate_inputs = data.gate_inputs;
  out.expert_inputs = data.expert_inputs;
  return {std::move(out), part(data.trials), part(data.offset)};
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
