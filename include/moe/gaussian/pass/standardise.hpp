// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/model/parameters.hpp"
#include "moe/gaussian/pass/row_blocks.hpp"

namespace moe::inline MOE_ABI::detail {

/// Mean and population standard deviation of a column, relative to its first number, so that equal numbers differ by
/// exactly 0 however many, and in units of its spread, so that no square overflows.
struct ColumnMoments {
  double center = 0, scale = 0;

  /// Of a column of the data, or y - offset, by the weights of the rows.
  template <class Column>
  ColumnMoments(const Column& column, const RegressionData& data)
      : ColumnMoments(column, data.total_weight(), [&](Index i) { return data.weight(i); }) {}

  /// Of a column whose rows have weights of sum n.
  template <class Column, class Weight>
  ColumnMoments(const Column& column, double n, const Weight& weight) : center(column(0)) {
    const double origin = column(0);
    double reach = 0, sum = 0, squares = 0;
    for (Index i = 0; i < column.size(); ++i) reach = std::max(reach, std::abs(column(i) - origin));
    if (!(reach > 0)) return;
    for (Index i = 0; i < column.size(); ++i) sum += weight(i) * ((column(i) - origin) / reach);
    for (Index i = 0; i < column.size(); ++i)
      squares += weight(i) * std::pow((column(i) - origin) / reach - sum / n, 2);
    center = origin + reach * (sum / n);
    scale = reach * std::sqrt(squares / n);
  }

  /// Numbers that differ in their last digits alone tell nothing.
  bool constant() const { return scale <= 1e-13 * std::abs(center); }
};

/// Throws std::invalid_argument where variances, slopes or their products would leave the range of double.
inline void require_moderate(const char* function, const char* name, const ColumnMoments& m) {
  if (!(m.scale > 1e-100 && m.scale < 1e100))
    fail(function, ": ", name, " has standard deviation ", m.scale, ", expected 1e-100 to 1e100: choose another unit");
}

/// Mean precision of the rows by their weights; exactly that of all where they are alike.
inline double mean_precision(const RegressionData& data) {
  if (data.precision.size() == 0) return 1;
  const double first = data.precision(0), n = data.total_weight();
  double above = 0;
  for (Index i = 0; i < data.num_rows(); ++i) above += data.weight(i) / n * (data.precision(i) - first);
  return first + above;
}

/// One scale for all inputs of the gate.
inline void share_scale(const ParameterLayout& at, Standardisation& by) {
  double squares = 0;
  for (Index c = 0; c < at.gate_dim(); ++c) squares += std::pow(by.x_scale(at.gate_input(c)), 2);
  by.gate_unit = std::sqrt(squares / static_cast<double>(at.gate_dim()));
  for (Index c = 0; c < at.gate_dim(); ++c) by.x_scale(at.gate_input(c)) = by.gate_unit;
  by.moves_centres = at.score == GateScoreKind::Distance;
}

/// Means and population standard deviations of the data, those of y by precisions, too. x keeps its origin where the
/// gate has no bias beside beta_1 . x that could take a shift up (`keep_origin`), columns that are not read stay as
/// they are, and those that a gate of cosines or distances reads have one scale, the root mean square of theirs. Throws
/// std::invalid_argument for a constant column of x and for absurd units; a constant y keeps scale 1.
template <class = WhenUsed>
Standardisation standardisation_of(const char* function, const RegressionData& data, bool keep_origin,
                                   const ParameterLayout& at = {}) {
  Standardisation by = Standardisation::none(data.input_dim());
  for (Index c = 0; c < data.input_dim(); ++c) {
    const bool in_gate = reads(at.gate_inputs, c);
    if (!in_gate && !reads(at.expert_inputs, c)) continue;
    const ColumnMoments moments(data.x.col(c), data);
    if (moments.constant())
      fail(function, ": column ", c, " of x is constant, ", data.x(0, c), ", expected columns that vary");
    require_moderate(function, "a column of x", moments);
    by.x_scale(c) = moments.scale;
    if (!keep_origin || !in_gate) by.x_center(c) = moments.center;
  }
  if (at.score != GateScoreKind::Product) share_scale(at, by);
  by.precision = mean_precision(data);
  const ColumnMoments y(data.explained(), data.total_weight(),
                        [&](Index i) { return data.weight(i) * (data.precision_of(i) / by.precision); });
  by.y_center = y.center;
  if (y.constant()) return by;
  require_moderate(function, "y", y);
  by.y_scale = y.scale;
  return by;
}

/// Throws std::invalid_argument, naming columns, if some of x (with ones) are linearly dependent.
template <class = WhenUsed>
void require_independent_columns(const char* function, const RegressionData& data, const Standardisation& by,
                                 const InputColumns& some) {
  std::vector<Index> columns;
  for (Index c = 0; c < data.input_dim(); ++c)
    if (reads(some, c)) columns.push_back(c);
  const Index d = std::ssize(columns);
  if (d == 0) return;
  const auto name = [&](Index c) { return columns[static_cast<std::size_t>(c)]; };
  Eigen::MatrixXd correlation = Eigen::MatrixXd::Zero(d, d);
  Eigen::RowVectorXd center = Eigen::RowVectorXd::Zero(d), row(d);
  const Eigen::RowVectorXd scale = by.x_scale(columns);
  const double data_weight = data.total_weight();
  for (Index i = 0; i < data.num_rows(); ++i) center += data.x(i, columns) * data.weight(i) / data_weight;
  for (Index i = 0; i < data.num_rows(); ++i) {
    row = (data.x(i, columns) - center).cwiseQuotient(scale);
    for (Index a = 0; a < d; ++a)
      for (Index b = a; b < d; ++b) correlation(a, b) += data.weight(i) * (row(a) * row(b));
  }
  correlation /= data_weight;
  for (Index a = 0; a < d; ++a)
    for (Index b = a + 1; b < d; ++b) {
      correlation(b, a) = correlation(a, b);
      if (std::abs(correlation(a, b)) > 1 - 1e-10)
        fail(function, ": columns ", name(a), " and ", name(b),
             " of x are the same up to shift and scale, expected independent ones");
    }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(correlation);
  if (eigen.eigenvalues()(0) > 1e-10) return;
  Index worst = 0;
  eigen.eigenvectors().col(0).cwiseAbs().maxCoeff(&worst);
  fail(function, ": column ", name(worst), " of x is a linear combination of others, expected independent columns");
}

/// Centres are points among the inputs of the gate; directions stay as they are.
template <class Map>
void centres_to(const Standardisation& by, GaussianParameters& m, Map&& map) {
  for (Index j = 0; j < m.num_experts(); ++j)
    for (Index c = 0; c < m.input_dim(); ++c)
      if (reads(m.gate_inputs, c)) m.gate_slope(j, c) = map(m.gate_slope(j, c), by.x_center(c), by.gate_unit);
}

/// The model on standardised data, of a model on the data's own scale.
template <class = WhenUsed>
void to_standard_scale(const Standardisation& by, GaussianParameters& m) {
  for (Index j = 0; j < m.num_experts(); ++j) {
    if (by.gate_unit == 0) m.gate_bias(j) += m.gate_slope.row(j).dot(by.x_center);
    m.intercept(j) = (m.intercept(j) + m.slope.row(j).dot(by.x_center) - by.y_center) / by.y_scale;
    if (by.gate_unit == 0) m.gate_slope.row(j) = m.gate_slope.row(j).cwiseProduct(by.x_scale);
    m.slope.row(j) = m.slope.row(j).cwiseProduct(by.x_scale) / by.y_scale;
    m.variance(j) /= by.y_scale * by.y_scale * by.precision;
  }
  if (by.moves_centres) centres_to(by, m, [](double x, double c, double s) { return (x - c) / s; });
}

/// And back.
template <class = WhenUsed>
void to_data_scale(const Standardisation& by, GaussianParameters& m) {
  for (Index j = 0; j < m.num_experts(); ++j) {
    if (by.gate_unit == 0) m.gate_slope.row(j) = m.gate_slope.row(j).cwiseQuotient(by.x_scale);
    m.slope.row(j) = m.slope.row(j).cwiseQuotient(by.x_scale) * by.y_scale;
    if (by.gate_unit == 0) m.gate_bias(j) -= m.gate_slope.row(j).dot(by.x_center);
    m.intercept(j) = m.intercept(j) * by.y_scale + by.y_center - m.slope.row(j).dot(by.x_center);
    m.variance(j) *= by.y_scale * by.y_scale * by.precision;
  }
  if (m.expert_intercept == Intercept::Zero) m.intercept.setZero();  // and not nearly
  if (by.moves_centres) centres_to(by, m, [](double x, double c, double s) { return c + s * x; });
}

}  // namespace moe::inline MOE_ABI::detail
