// SPDX-License-Identifier: MIT
// A Gaussian mixture of experts, and rows drawn from it, to measure passes on.
#pragma once

#include "moe/core/random.hpp"
#include "moe/gaussian/model/data.hpp"
#include "moe/gaussian/predict/sample.hpp"

namespace bench {

using moe::Index;

inline moe::GaussianMoe<moe::SoftmaxGate> gaussian_model(Index num_experts, Index input_dim) {
  auto model = moe::GaussianMoe<moe::SoftmaxGate>::zero(num_experts, input_dim);
  const moe::RandomField random(moe::Purpose::User, 1);
  for (Index j = 0; j < num_experts; ++j) {
    for (Index c = 0; c < input_dim; ++c) {
      model.slope(j, c) = random.normal(j, c);
      if (j + 1 < num_experts) model.gate_slope(j, c) = random.normal(j, c + input_dim);
    }
    model.intercept(j) = 2.0 * static_cast<double>(j);
    model.variance(j) = 0.3;
  }
  return model;
}

inline moe::RegressionData gaussian_rows(const moe::GaussianMoe<moe::SoftmaxGate>& model, Index num_rows) {
  moe::RegressionData data{moe::Matrix<double>(num_rows, model.input_dim()), {}};
  const moe::RandomField random(moe::Purpose::User, 2);
  for (Index i = 0; i < num_rows; ++i)
    for (Index c = 0; c < data.input_dim(); ++c) data.x(i, c) = 2 * random.uniform(i, c) - 1;
  data.y = moe::sample(model, data.x, 3);
  return data;
}

}  // namespace bench
