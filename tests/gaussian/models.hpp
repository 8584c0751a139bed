// SPDX-License-Identifier: MIT
// Models for the tests of Gaussian mixtures of experts.
#pragma once

#include <initializer_list>

#include "moe/core/random.hpp"
#include "moe/gaussian/model/model.hpp"

namespace test {

using moe::Index;

inline Eigen::RowVectorXd row_of(std::initializer_list<double> numbers) {
  Eigen::RowVectorXd row(static_cast<Index>(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), row.data());
  return row;
}

/// A mixture on one input: beta_1, beta_0, a, b, nu per expert, and tau.
struct Line {
  std::initializer_list<double> gate_slope, gate_bias, slope, intercept, variance;
  double temperature = 1;
};

inline moe::GaussianParameters parameters_of(const Line& line) {
  moe::GaussianParameters parameters;
  parameters.gate_slope = row_of(line.gate_slope).transpose();
  parameters.gate_bias = row_of(line.gate_bias);
  parameters.temperature = line.temperature;
  parameters.slope = row_of(line.slope).transpose();
  parameters.intercept = row_of(line.intercept);
  parameters.variance = row_of(line.variance);
  return parameters;
}

/// k experts on d inputs with coefficients of size 1 and variances between 0.1 and 0.6.
inline moe::GaussianParameters random_parameters(Index k, Index d, int seed) {
  const moe::RandomField field(moe::Purpose::User, seed);
  moe::GaussianParameters parameters;
  parameters.gate_slope = parameters.slope = moe::Matrix<double>(k, d);
  parameters.gate_bias = parameters.intercept = parameters.variance = Eigen::RowVectorXd(k);
  for (Index j = 0; j < k; ++j) {
    for (Index c = 0; c < d; ++c) {
      parameters.gate_slope(j, c) = field.normal(j, c);
      parameters.slope(j, c) = field.normal(j, d + c);
    }
    parameters.gate_bias(j) = field.normal(j, 2 * d);
    parameters.intercept(j) = 2 * field.normal(j, 2 * d + 1);
    parameters.variance(j) = 0.1 + 0.5 * field.uniform(j, 2 * d + 2);
  }
  return parameters;
}

}  // namespace test
