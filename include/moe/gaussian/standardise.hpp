// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Eigenvalues>

#include "moe/gaussian/model.hpp"
#include "moe/gaussian/row_blocks.hpp"

namespace moe::inline MOE_ABI::detail {

/// Means and population standard deviations of the data. x keeps its origin where the gate has no bias beside
/// beta_1 . x that could take a shift up (`keep_origin`). Throws std::invalid_argument for a constant column of x; a
/// constant y keeps scale 1.
inline Standardisation standardisation_of(const char* function, const RegressionData& data, bool keep_origin) {
  Standardisation by = Standardisation::none(data.input_dim());
  const double n = static_cast<double>(data.num_rows());
  const auto moments = [&](const auto& column, double& center, double& scale) {
    double sum = 0, squares = 0;
    for (Index i = 0; i < column.size(); ++i) sum += column(i);
    center = sum / n;
    for (Index i = 0; i < column.size(); ++i) squares += (column(i) - center) * (column(i) - center);
    scale = std::sqrt(squares / n);
    return scale > 1e-13 * std::abs(center);
  };
  for (Index c = 0; c < data.input_dim(); ++c) {
    if (!moments(data.x.col(c), by.x_center(c), by.x_scale(c)))
      fail(function, ": column ", c, " of x is constant, ", data.x(0, c), ", expected columns that vary");
    if (keep_origin) by.x_center(c) = 0;
  }
  if (!moments(data.y, by.y_center, by.y_scale)) by.y_scale = 1;
  return by;
}

/// Throws std::invalid_argument, naming columns, if those of x (with ones) are linearly dependent.
inline void require_independent_columns(const char* function, const RegressionData& data, const Standardisation& by) {
  const Index d = data.input_dim();
  Eigen::MatrixXd correlation = Eigen::MatrixXd::Zero(d, d);
  Eigen::RowVectorXd center = Eigen::RowVectorXd::Zero(d), row(d);
  for (Index i = 0; i < data.num_rows(); ++i) center += data.x.row(i) / static_cast<double>(data.num_rows());
  for (Index i = 0; i < data.num_rows(); ++i) {
    row = (data.x.row(i) - center).cwiseQuotient(by.x_scale);
    for (Index a = 0; a < d; ++a)
      for (Index b = a; b < d; ++b) correlation(a, b) += row(a) * row(b);
  }
  correlation /= static_cast<double>(data.num_rows());
  for (Index a = 0; a < d; ++a)
    for (Index b = a + 1; b < d; ++b) {
      correlation(b, a) = correlation(a, b);
      if (std::abs(correlation(a, b)) > 1 - 1e-10)
        fail(function, ": columns ", a, " and ", b,
             " of x are the same up to shift and scale, expected independent ones");
    }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(correlation);
  if (eigen.eigenvalues()(0) > 1e-10) return;
  Index worst = 0;
  eigen.eigenvectors().col(0).cwiseAbs().maxCoeff(&worst);
  fail(function, ": column ", worst, " of x is a linear combination of others, expected independent columns");
}

/// The model on standardised data, of a model on the data's own scale.
inline void to_standard_scale(const Standardisation& by, GaussianParameters& m) {
  for (Index j = 0; j < m.num_experts(); ++j) {
    m.gate_bias(j) += m.gate_slope.row(j).dot(by.x_center);
    m.intercept(j) = (m.intercept(j) + m.slope.row(j).dot(by.x_center) - by.y_center) / by.y_scale;
    m.gate_slope.row(j) = m.gate_slope.row(j).cwiseProduct(by.x_scale);
    m.slope.row(j) = m.slope.row(j).cwiseProduct(by.x_scale) / by.y_scale;
    m.variance(j) /= by.y_scale * by.y_scale;
  }
}

/// And back.
inline void to_data_scale(const Standardisation& by, GaussianParameters& m) {
  for (Index j = 0; j < m.num_experts(); ++j) {
    m.gate_slope.row(j) = m.gate_slope.row(j).cwiseQuotient(by.x_scale);
    m.slope.row(j) = m.slope.row(j).cwiseQuotient(by.x_scale) * by.y_scale;
    m.gate_bias(j) -= m.gate_slope.row(j).dot(by.x_center);
    m.intercept(j) = m.intercept(j) * by.y_scale + by.y_center - m.slope.row(j).dot(by.x_center);
    m.variance(j) *= by.y_scale * by.y_scale;
  }
}

}  // namespace moe::inline MOE_ABI::detail
