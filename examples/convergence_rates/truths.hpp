// SPDX-License-Identifier: MIT
// The true models of convergence_rates.cpp.
#pragma once

#include <initializer_list>

#include <moe/gaussian.hpp>

namespace rates {

using moe::Index;

/// A mixture on one input: a number per expert, and tau.
struct Line {
  std::initializer_list<double> beta1, beta0, a, b, nu;
  double tau = 1;
};

inline Eigen::RowVectorXd row_of(std::initializer_list<double> numbers) {
  return Eigen::Map<const Eigen::RowVectorXd>(numbers.begin(), static_cast<Index>(numbers.size()));
}

template <class Gate>
moe::GaussianMoe<Gate> model(const Line& line, const Gate& gate) {
  return {{.gate_slope = row_of(line.beta1).transpose(),
           .gate_bias = row_of(line.beta0),
           .temperature = line.tau,
           .slope = row_of(line.a).transpose(),
           .intercept = row_of(line.b),
           .variance = row_of(line.nu)},
          gate};
}

using FreeTemperature = moe::LearnableTemperature;
using LinearGate = moe::DenseToSparseGate<FreeTemperature>;

template <class Act>
using FreeActivationGate = moe::ActivationGate<Act, FreeTemperature>;

/// The numbers of the softmax paper's simulation (arXiv:2305.03288); the top-K paper (arXiv:2309.13850) reuses them.
inline constexpr double kAuthorsBoundary = 8.0 / 25;
template <class Gate>
auto authors(const Gate& gate) {
  return model({.beta1 = {25, 0}, .beta0 = {-8, 0}, .a = {-20, 20}, .b = {15, -5}, .nu = {0.09, 0.16}}, gate);
}

/// Experts that overlap, with a gate that is neither sharp nor flat: asymptotics set in early.
inline auto moderate() {
  return model({.beta1 = {3, 0}, .beta0 = {0.5, 0}, .a = {1, -1}, .b = {1, -1}, .nu = {0.3, 0.4}}, moe::SoftmaxGate{});
}

/// The same density with tau = 1/2: any (beta_1, beta_0, tau) on a ray would do.
inline auto moderate_with_temperature() {
  return model({.beta1 = {1.5, 0}, .beta0 = {0.25, 0}, .a = {1, -1}, .b = {1, -1}, .nu = {0.3, 0.4}, .tau = 0.5},
               LinearGate{.temperature = FreeTemperature::starting_at(0.5)});
}

/// An activation between the inner product and the temperature.
template <class Act>
auto activated(double tau) {
  return model({.beta1 = {2, 0}, .beta0 = {0.3, 0}, .a = {1, -1}, .b = {1, -1}, .nu = {0.3, 0.4}, .tau = tau},
               FreeActivationGate<Act>{.sparse = {.temperature = FreeTemperature::starting_at(tau)}});
}

/// The normalised sigmoid: weights are proportional to sigmoid(beta_1 x + beta_0), or to e^beta_0 sigmoid(beta_1 x).
inline auto sigmoid(moe::BiasPlace place) {
  moe::ActivationGate<moe::LogSigmoid, moe::ConstantSchedule> gate;
  gate.bias_place = place;
  return model({.beta1 = {2, 0}, .beta0 = {0.3, 0}, .a = {1, -1}, .b = {1, -1}, .nu = {0.3, 0.4}}, gate);
}

/// Two experts on two inputs, whose gates have a vector each.
template <class Gate>
auto plane(Gate gate, double tau, const Eigen::Matrix2d& vectors) {
  gate.sparse.temperature.value = tau;
  auto model = moe::GaussianMoe<Gate>::zero(2, 2, gate);
  model.gate_slope = vectors;
  model.gate_bias << 0.3 * tau, 0;
  model.slope << 1, 0.5, -1, 0.5;
  model.intercept << 1, -1;
  model.variance << 0.3, 0.4;
  return model;
}

/// Centres, and weights that fall with the distance from them.
inline auto laplace() {
  Eigen::Matrix2d centres;
  centres << 1, 0.5, -1, -0.5;
  return plane(moe::LaplaceGate<>{}, 0.5, centres);
}

/// A temperature inside of the sigmoid: weights are proportional to e^beta_0 sigmoid(s / tau), s the inner product with
/// a vector, or minus the distance from a centre.
template <class Score>
auto tempered_sigmoid() {
  constexpr double kTau = 0.5;
  using Gate = moe::SigmoidGate<Score, FreeTemperature>;
  auto model = moe::GaussianMoe<Gate>::zero(2, 2, Gate{{}, {}, FreeTemperature::starting_at(kTau)});
  model.gate_slope << 1, 0.5, -1, -0.5;
  model.gate_bias << 0.3, 0;
  model.slope << 1, 0.5, -1, 0.5;
  model.intercept << 1, -1;
  model.variance << 0.3, 0.4;
  return model;
}

/// Directions; with shifts of the lengths of vectors and inputs the gate is a perturbed one.
inline auto cosine(double shift) {
  moe::CosineGate<> gate;
  gate.score = {.weight_shift = shift, .input_shift = shift};
  Eigen::Matrix2d directions;
  directions << 1, 0.2, -0.6, 0.8;
  return plane(gate, 0.3, directions);
}

/// The gate is linear in x and x^2, or in x^2 alone (polynomial and monomial of arXiv:2410.11222), the experts in x.
enum class Quadratic { Polynomial, Monomial };
inline auto quadratic(Quadratic kind) {
  auto model = moe::GaussianMoe<moe::SoftmaxGate>::zero(2, 2);
  model.expert_inputs = std::vector<Index>{0};
  if (kind == Quadratic::Monomial) model.gate_inputs = std::vector<Index>{1};
  model.gate_slope.row(0) << (kind == Quadratic::Monomial ? 0.0 : 1.0), 1.0;
  model.gate_bias(0) = -1.0;
  model.slope.col(0) << 1, -1;
  model.intercept << 1, -1;
  model.variance << 0.3, 0.4;
  return model;
}

/// Two of three experts are active; who they are depends on beta_1 x alone.
inline auto two_of_three() {
  return model(
      {.beta1 = {2, -2, 0}, .beta0 = {0.3, -0.3, 0}, .a = {1, -1, 0.5}, .b = {2, -2, 0}, .nu = {0.3, 0.4, 0.2}},
      moe::TopKGate{.k = 2, .weight_bias = Eigen::RowVectorXd::Zero(3)});
}

}  // namespace rates
