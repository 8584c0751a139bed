// SPDX-License-Identifier: MIT
// Models with every gate that a likelihood knows, and data for them.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "moe/gaussian/model/data.hpp"
#include "moe/gaussian/model/parameters.hpp"
#include "support/matrices.hpp"

namespace test {

using TemperatureGate = moe::DenseToSparseGate<moe::ConstantSchedule>;
using FreeTemperatureGate = moe::DenseToSparseGate<moe::LearnableTemperature>;
template <class Act>
using FreeActivationGate = moe::ActivationGate<Act, moe::LearnableTemperature>;
template <class Act>
using FixedActivationGate = moe::ActivationGate<Act, moe::ConstantSchedule>;

/// A random model in normal form: scores, means and log-variances of order 1 for standard normal x.
template <class Gate>
moe::GaussianMoe<Gate> sample_model(Index k, Index d, const Gate& gate, std::uint64_t seed = 1,
                                    moe::LastSlope last_slope = moe::LastSlope::Zero) {
  auto model = moe::GaussianMoe<Gate>::zero(k, d, gate);
  const double shrink = 1 / std::sqrt(static_cast<double>(d));
  const moe::RandomField random(moe::Purpose::User, seed, 100);
  for (Index j = 0; j < k; ++j) {
    for (Index c = 0; c < d; ++c) {
      model.gate_slope(j, c) = 1.5 * shrink * random.normal(j, c);
      model.slope(j, c) = shrink * random.normal(j, d + c);
    }
    model.gate_bias(j) = 0.5 * random.normal(j, 2 * d);
    model.intercept(j) = 1.5 * random.normal(j, 2 * d + 1);
    model.variance(j) = std::exp(0.5 * random.normal(j, 2 * d + 2) - 1);
  }
  model.last_slope = last_slope;
  if (last_slope == moe::LastSlope::Zero) model.gate_slope.row(k - 1).setZero();
  if (last_slope == moe::LastSlope::Zero || model.form().bias == moe::BiasPlace::Outside) model.gate_bias(k - 1) = 0;
  return model;
}

/// Rows whose y comes from the experts in turn, so that each explains some of them.
inline moe::RegressionData sample_data(const moe::GaussianParameters& model, Index n, std::uint64_t seed = 2) {
  const moe::RandomField random(moe::Purpose::User, seed, 200);
  const Index d = model.input_dim();
  moe::RegressionData data{.x = random_matrix<double>(n, d, seed), .y = Eigen::VectorXd(n)};
  for (Index i = 0; i < n; ++i) {
    const Index j = i % model.num_experts();
    double mean = model.intercept(j);
    for (Index c = 0; c < d; ++c) mean += model.slope(j, c) * data.x(i, c);
    data.y(i) = mean + std::sqrt(model.variance(j)) * random.normal(i);
  }
  return data;
}

/// Calls f(name, model) with top-K gates: both rankings, few experts and one.
template <class F>
void for_each_top_k(Index k, Index d, F&& f) {
  const Eigen::RowVectorXd zeros = Eigen::RowVectorXd::Zero(k);
  const Index two = std::min<Index>(2, k), most = std::max<Index>(1, k - 1);
  f("top-2 by logit", sample_model(k, d, moe::TopKGate{.k = two}));
  f("top-2 by inner product", sample_model(k, d, moe::TopKGate{.k = two, .weight_bias = zeros}));
  f("top-1 by logit", sample_model(k, d, moe::TopKGate{.k = 1}));
  f("top-1 by inner product", sample_model(k, d, moe::TopKGate{.k = 1, .weight_bias = zeros}));
  f("top-(k-1) by logit", sample_model(k, d, moe::TopKGate{.k = most}));
}

/// Calls f(name, model) with an activation: bias outside and inside, last slope pinned and free.
template <class Gate, class F>
void for_each_activation_gate(Index k, Index d, F&& f) {
  for (const auto place : {moe::BiasPlace::Outside, moe::BiasPlace::Inside})
    for (const auto last : {moe::LastSlope::Zero, moe::LastSlope::Free}) {
      Gate gate;
      gate.bias_place = place;
      auto model = sample_model(k, d, gate, 1, last);
      model.temperature = moe::GateModel<Gate>::kFreeTemperature ? 0.6 : 1;
      f((std::string(moe::GateModel<Gate>::Inner::kName) +
         (place == moe::BiasPlace::Inside ? ", inside" : ", outside") +
         (last == moe::LastSlope::Free ? ", free" : ", pinned"))
            .c_str(),
        model);
    }
}

/// Calls f(name, model) with every gate.
template <class F>
void for_each_model(Index k, Index d, F&& f) {
  f("softmax", sample_model(k, d, moe::SoftmaxGate{}));
  for_each_top_k(k, d, f);
  f("temperature", sample_model(k, d, TemperatureGate{.temperature = {0.7}}));
  f("free temperature",
    sample_model(k, d, FreeTemperatureGate{.temperature = moe::LearnableTemperature::starting_at(1.4)}));
  for_each_activation_gate<FreeActivationGate<moe::Tanh>>(k, d, f);
  for_each_activation_gate<FixedActivationGate<moe::Tanh>>(k, d, f);
  for_each_activation_gate<FreeActivationGate<moe::Sigmoid>>(k, d, f);
  for_each_activation_gate<FreeActivationGate<moe::Gelu>>(k, d, f);
  for_each_activation_gate<FreeActivationGate<moe::Silu>>(k, d, f);
  for_each_activation_gate<FreeActivationGate<moe::Softplus>>(k, d, f);
  for_each_activation_gate<FixedActivationGate<moe::LogSigmoid>>(k, d, f);
}

/// Gives a gate scores that are exact and often equal: integer slopes, two of them alike and one 0, no biases.
template <class Gate>
moe::GaussianMoe<Gate> with_ties(moe::GaussianMoe<Gate> model) {
  const Index k = model.num_experts();
  for (Index j = 0; j < k; ++j)
    for (Index c = 0; c < model.input_dim(); ++c) model.gate_slope(j, c) = std::round(2 * model.gate_slope(j, c));
  model.gate_slope.row(k - 2) = model.gate_slope.row(0);
  model.gate_slope.row(k - 1).setZero();
  model.gate_bias.setZero();
  return model;
}

/// Inputs for it: eighths.
inline moe::Matrix<double> tied_inputs(Index n, Index d) {
  moe::Matrix<double> x = random_matrix<double>(n, d, 5);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < d; ++c) x(i, c) = std::round(2 * x(i, c)) / 8;
  return x;
}

/// The sizes that the tests of likelihood, score and information go through: around the size of a block of rows, and
/// one, few and many experts and inputs.
struct Sizes {
  Index n = 1, k = 1, d = 1;
};
inline constexpr Sizes kSizes[] = {{1, 3, 2},    {2, 2, 1},    {7, 3, 2}, {127, 3, 5}, {128, 2, 1},
                                   {129, 3, 2},  {1000, 3, 1}, {7, 1, 1}, {129, 1, 5}, {129, 8, 5},
                                   {127, 11, 2}, {2, 11, 17},  {9, 2, 17}};

}  // namespace test
