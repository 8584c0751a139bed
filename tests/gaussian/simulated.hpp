// SPDX-License-Identifier: MIT
// Simulated regressions with known truth.
#pragma once

#include "gaussian/models.hpp"
#include "gaussian/shared_fits.hpp"
#include "moe/gaussian/model/data.hpp"
#include "moe/gaussian/predict/sample.hpp"

namespace test {

/// Two well separated experts on one input, in ascending order of intercept and normal form.
inline moe::GaussianMoe<> two_lines() {
  return moe::GaussianMoe<>(parameters_of({.gate_slope = {-2, 0},
                                           .gate_bias = {-0.3, 0},
                                           .slope = {-1.5, 1.5},
                                           .intercept = {-1, 1},
                                           .variance = {0.35, 0.15}}));
}

/// Three of them.
inline moe::GaussianMoe<> three_lines() {
  return moe::GaussianMoe<>(parameters_of({.gate_slope = {-5, -2.5, 0},
                                           .gate_bias = {-0.5, 0.5, 0},
                                           .slope = {-1.5, 0.5, 1.5},
                                           .intercept = {-3, 0, 3},
                                           .variance = {0.3, 0.2, 0.15}}));
}

/// Inputs uniform on (-1, 1), outputs from the model.
template <class Gate>
moe::RegressionData simulated(const moe::GaussianMoe<Gate>& model, Index n, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, 300);
  moe::RegressionData data;
  data.x = moe::Matrix<double>::NullaryExpr(n, model.input_dim(),
                                            [&](Index i, Index c) { return 2 * random.uniform(i, c) - 1; });
  data.y = moe::sample(model, data.x, seed);
  return data;
}

}  // namespace test
