// SPDX-License-Identifier: MIT
// Random mixtures of normals, and random models, as pure functions of a seed.
#pragma once

#include <cmath>
#include <cstdint>

#include "moe/core/random.hpp"
#include "moe/gaussian/model/model.hpp"
#include "moe/gaussian/predict/normal_mixture.hpp"

namespace test {

using moe::Index;

/// k components: weights proportional to exp(normal), means in (-4, 4), deviations from 0.1 to 2.
inline moe::NormalMixture random_mixture(Index k, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, k);
  Eigen::RowVectorXd weights(k), means(k), variances(k);
  for (Index j = 0; j < k; ++j) {
    weights(j) = std::exp(random.normal(j, 0));
    means(j) = 8 * random.uniform(j, 1) - 4;
    variances(j) = std::pow(0.1 * std::pow(20.0, random.uniform(j, 2)), 2);
  }
  return {weights, means, variances};
}

/// Inputs in (-2, 2), [n, d].
inline moe::Matrix<double> random_inputs(Index n, Index d, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, 77);
  return moe::Matrix<double>::NullaryExpr(n, d, [&](Index i, Index c) { return 4 * random.uniform(i, c) - 2; });
}

/// k experts on d inputs with standard normal coefficients and deviations from 0.2 to 1.
template <class Gate>
moe::GaussianMoe<Gate> random_model(Index k, Index d, const Gate& gate, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, k, d);
  auto model = moe::GaussianMoe<Gate>::zero(k, d, gate);
  for (Index j = 0; j < k; ++j) {
    for (Index c = 0; c < d; ++c) {
      model.gate_slope(j, c) = random.normal(j, 2 * c);
      model.slope(j, c) = 2 * random.normal(j, 2 * c + 1);
    }
    model.gate_bias(j) = random.normal(j, 1000);
    model.intercept(j) = 2 * random.normal(j, 1001);
    model.variance(j) = std::pow(0.2 + 0.8 * random.uniform(j, 1002), 2);
  }
  return model;
}

}  // namespace test
