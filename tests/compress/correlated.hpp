// SPDX-License-Identifier: MIT
// Inputs whose columns go together, and weights, for tests of methods that look at inputs.
#pragma once

#include "moe/compress/second_moment.hpp"
#include "moe/kernel/quantised_matrix.hpp"
#include "support/matrices.hpp"

namespace test {

/// Rows of neighbours that resemble each other, of very different sizes: x_i = size_i (r x_(i-1) / size_(i-1) + noise).
inline moe::Matrix<float> correlated_rows(Index rows, Index dim, std::uint64_t seed, double correlation = 0.9) {
  moe::Matrix<float> x = random_matrix<float>(rows, dim, seed);
  const moe::RandomField random(moe::Purpose::User, seed, 1);
  const double rest = std::sqrt(1 - correlation * correlation);
  for (Index r = 0; r < rows; ++r)
    for (Index i = 1; i < dim; ++i)
      x(r, i) =
          static_cast<float>(correlation * static_cast<double>(x(r, i - 1)) + rest * static_cast<double>(x(r, i)));
  for (Index i = 0; i < dim; ++i) x.col(i) *= static_cast<float>(std::exp(0.7 * random.normal(i)));
  return x;
}

inline moe::PanelMatrix<moe::F32> random_weights(Index outputs, Index inputs, std::uint64_t seed,
                                                 moe::PanelOrder order = moe::PanelOrder::Plain) {
  return moe::PanelMatrix<moe::F32>::from(random_matrix<float>(outputs, inputs, seed, 0.1), order);
}

/// S in double.
inline Eigen::MatrixXd matrix_of(const moe::SecondMoment& moment) {
  Eigen::MatrixXd s(moment.dim(), moment.dim());
  for (Index i = 0; i < moment.dim(); ++i)
    for (Index j = 0; j < moment.dim(); ++j) s(i, j) = static_cast<double>(moment(i, j));
  return s;
}

/// W - V.
inline Eigen::MatrixXd difference(const moe::PanelMatrix<moe::F32>& weights,
                                  const moe::PanelMatrix<moe::Quantised>& codes) {
  return weights.matrix().cast<double>() - codes.decoded().matrix().cast<double>();
}

/// tr(D S D^T).
inline double output_error(const moe::PanelMatrix<moe::F32>& weights, const moe::PanelMatrix<moe::Quantised>& codes,
                           const moe::SecondMoment& moment) {
  const Eigen::MatrixXd d = difference(weights, codes);
  return (d * matrix_of(moment)).cwiseProduct(d).sum();
}

}  // namespace test
