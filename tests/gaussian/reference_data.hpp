// SPDX-License-Identifier: MIT
// Data and models of the reference fits.
#pragma once

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "gaussian/reference_simulations.hpp"
#include "moe/gaussian/model/data.hpp"
#include "moe/gaussian/model/model.hpp"

namespace test {

/// tests/data/gaussian/<name>.csv: a line of names, then rows of numbers, y last.
inline moe::RegressionData reference_data(const std::string& name) {
  std::ifstream file(MOE_TEST_DATA "/gaussian/" + name + ".csv");
  std::string line, cell;
  if (!std::getline(file, line)) throw std::runtime_error("cannot read the test data " + name);
  std::vector<double> numbers;
  moe::Index rows = 0;
  for (; std::getline(file, line) && !line.empty(); ++rows)
    for (std::istringstream cells(line); std::getline(cells, cell, ',');) numbers.push_back(std::stod(cell));
  const auto all =
      Eigen::Map<moe::Matrix<double>>(numbers.data(), rows, static_cast<moe::Index>(numbers.size()) / rows);
  return {.x = all.leftCols(all.cols() - 1), .y = all.rightCols(1)};
}

/// A model with these numbers and this gate.
template <class Gate>
moe::GaussianMoe<Gate> reference_model(const ReferenceFit& fit, const ReferenceParameters& numbers, const Gate& gate) {
  auto model = moe::GaussianMoe<Gate>::zero(fit.num_experts, fit.input_dim, gate);
  const auto read = [](const std::vector<double>& from, auto& to) {
    if (static_cast<moe::Index>(from.size()) != to.size()) throw std::runtime_error("a reference fit is incomplete");
    std::copy(from.begin(), from.end(), to.data());
  };
  read(numbers.gate_slope, model.gate_slope);
  read(numbers.gate_bias, model.gate_bias);
  read(numbers.slope, model.slope);
  read(numbers.intercept, model.intercept);
  read(numbers.variance, model.variance);
  model.temperature = numbers.temperature;
  return model;
}

/// Calls f(model) with the gate of the fit and these numbers: fit.fit or fit.truth.
template <class F>
void with_reference_model(const ReferenceFit& fit, const ReferenceParameters& numbers, F&& f) {
  const auto call = [&](const auto& gate) { f(reference_model(fit, numbers, gate)); };
  switch (fit.gate) {
    case ReferenceGate::Softmax:
      return call(moe::SoftmaxGate{});
    case ReferenceGate::TopOneByLogit:
      return call(moe::TopKGate{.k = 1});
    case ReferenceGate::TopTwoByInnerProduct:
      return call(moe::TopKGate{.k = 2, .weight_bias = Eigen::RowVectorXd::Zero(fit.num_experts)});
    case ReferenceGate::Tanh:
      return call(moe::ActivationGate<moe::Tanh, moe::LearnableTemperature>{});
    case ReferenceGate::Sigmoid:
      return call(moe::ActivationGate<moe::Sigmoid, moe::LearnableTemperature>{});
  }
}

/// Real and simulated ones.
inline std::vector<ReferenceFit> reference_fits() {
  std::vector<ReferenceFit> all = kRealFits;
  all.insert(all.end(), kSimulatedFits.begin(), kSimulatedFits.end());
  return all;
}

}  // namespace test
