// SPDX-License-Identifier: MIT
// The numbers of a model for oracle.hpp, and what its gate means, read from the gate itself.
#pragma once

#include <cmath>
#include <vector>

#include "moe/gaussian/model/data.hpp"
#include "moe/gaussian/model/model.hpp"

namespace oracle {

using moe::Index;
using Real = long double;
using Vec = Eigen::Matrix<Real, Eigen::Dynamic, 1>;
using Mat = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;

inline constexpr Real kPi = 3.14159265358979323846264338327950288L;
inline constexpr Real kLog2Pi = 1.83787706640934548356065947281123527L;

// Activations, with their derivatives.
inline Real identity(Real u) { return u; }
inline Real one(Real) { return 1; }
inline Real sigmoid(Real u) { return u < 0 ? std::exp(u) / (1 + std::exp(u)) : 1 / (1 + std::exp(-u)); }
inline Real sigmoid_slope(Real u) { return sigmoid(u) * sigmoid(-u); }
inline Real hyperbolic_tangent(Real u) { return std::tanh(u); }
inline Real hyperbolic_tangent_slope(Real u) { return 4 * sigmoid_slope(2 * u); }
inline Real normal_cdf(Real u) { return std::erfc(-u / std::sqrt(Real{2})) / 2; }
inline Real gelu(Real u) { return u * normal_cdf(u); }
inline Real gelu_slope(Real u) { return normal_cdf(u) + u * std::exp(-u * u / 2) / std::sqrt(2 * kPi); }
inline Real silu(Real u) { return u * sigmoid(u); }
inline Real silu_slope(Real u) { return sigmoid(u) * (1 + u * sigmoid(-u)); }
inline Real softplus(Real u) { return std::max<Real>(u, 0) + std::log1p(std::exp(-std::abs(u))); }
inline Real log_sigmoid(Real u) { return -softplus(-u); }
inline Real log_sigmoid_slope(Real u) { return sigmoid(-u); }

using Function = Real (*)(Real);

/// What a gate does, as far as a likelihood is concerned.
struct Rule {
  Index active = 1;        ///< experts with a weight
  bool ranks_bias = true;  ///< beta_0 takes part in the selection
  bool inside = false;     ///< beta_0 is inside of the activation
  bool linear = true;
  bool free_temperature = false;
  Function inner = identity, slope = one;
};

template <class Act>
struct Inner;
template <>
struct Inner<moe::Identity> {
  static constexpr Function value = identity, slope = one;
};
template <>
struct Inner<moe::Tanh> {
  static constexpr Function value = hyperbolic_tangent, slope = hyperbolic_tangent_slope;
};
template <>
struct Inner<moe::Sigmoid> {
  static constexpr Function value = sigmoid, slope = sigmoid_slope;
};
template <>
struct Inner<moe::Gelu> {
  static constexpr Function value = gelu, slope = gelu_slope;
};
template <>
struct Inner<moe::Silu> {
  static constexpr Function value = silu, slope = silu_slope;
};
template <>
struct Inner<moe::Softplus> {
  static constexpr Function value = softplus, slope = sigmoid;
};
template <>
struct Inner<moe::LogSigmoid> {
  static constexpr Function value = log_sigmoid, slope = log_sigmoid_slope;
};

inline Rule rule(const moe::SoftmaxGate&, Index k) { return {.active = k}; }
inline Rule rule(const moe::TopKGate& gate, Index) {
  return {.active = gate.k, .ranks_bias = gate.weight_bias.size() == 0};
}
template <class Temperature>
Rule rule(const moe::DenseToSparseGate<Temperature>&, Index k) {
  return {.active = k, .free_temperature = std::is_same_v<Temperature, moe::LearnableTemperature>};
}
template <class Act, class Temperature>
Rule rule(const moe::ActivationGate<Act, Temperature>& gate, Index k) {
  return {.active = k,
          .inside = gate.bias_place == moe::BiasPlace::Inside,
          .linear = std::is_same_v<Act, moe::Identity>,
          .free_temperature = std::is_same_v<Temperature, moe::LearnableTemperature>,
          .inner = Inner<Act>::value,
          .slope = Inner<Act>::slope};
}

struct Model {
  Index k = 0, d = 0;
  Rule rule = {};
  bool last_slope_free = false;
  Mat beta1, a;            ///< [k, d]
  Vec beta0, b, variance;  ///< [k]
  Real tau = 1;
};

template <class Gate>
Model model(const moe::GaussianMoe<Gate>& m) {
  return {.k = m.slope.rows(),
          .d = m.slope.cols(),
          .rule = rule(m.gate, m.slope.rows()),
          .last_slope_free = m.last_slope == moe::LastSlope::Free,
          .beta1 = m.gate_slope.template cast<Real>(),
          .a = m.slope.template cast<Real>(),
          .beta0 = m.gate_bias.transpose().template cast<Real>(),
          .b = m.intercept.transpose().template cast<Real>(),
          .variance = m.variance.transpose().template cast<Real>(),
          .tau = m.temperature};
}

enum class Kind { GateSlope, GateBias, LogTemperature, Slope, Intercept, LogVariance };

/// A free parameter: one element of theta.
struct Coordinate {
  Kind kind = Kind::GateSlope;
  Index expert = 0, column = 0;
};

/// theta: beta_1 row by row | beta_0 | [log tau] | a row by row | b | log nu. beta_1k = 0 unless it is free; beta_0k =
/// 0 unless it is inside of the activation and beta_1k is free.
inline std::vector<Coordinate> coordinates(const Model& m) {
  std::vector<Coordinate> theta;
  const Index slopes = m.last_slope_free ? m.k : m.k - 1, biases = m.last_slope_free && m.rule.inside ? m.k : m.k - 1;
  for (Index j = 0; j < slopes; ++j)
    for (Index c = 0; c < m.d; ++c) theta.push_back({Kind::GateSlope, j, c});
  for (Index j = 0; j < biases; ++j) theta.push_back({Kind::GateBias, j});
  if (m.rule.free_temperature) theta.push_back({Kind::LogTemperature});
  for (Index j = 0; j < m.k; ++j)
    for (Index c = 0; c < m.d; ++c) theta.push_back({Kind::Slope, j, c});
  for (Index j = 0; j < m.k; ++j) theta.push_back({Kind::Intercept, j});
  for (Index j = 0; j < m.k; ++j) theta.push_back({Kind::LogVariance, j});
  return theta;
}

/// The model with one coordinate moved by `step`.
inline Model moved(Model m, const Coordinate& at, Real step) {
  switch (at.kind) {
    case Kind::GateSlope:
      m.beta1(at.expert, at.column) += step;
      break;
    case Kind::GateBias:
      m.beta0(at.expert) += step;
      break;
    case Kind::LogTemperature:
      m.tau *= std::exp(step);
      break;
    case Kind::Slope:
      m.a(at.expert, at.column) += step;
      break;
    case Kind::Intercept:
      m.b(at.expert) += step;
      break;
    case Kind::LogVariance:
      m.variance(at.expert) *= std::exp(step);
      break;
  }
  return m;
}

}  // namespace oracle
