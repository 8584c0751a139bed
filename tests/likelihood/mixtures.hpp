// SPDX-License-Identifier: MIT
// Mixtures of any family with known numbers, and data of them.
#pragma once

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe/likelihood/binomial.hpp"
#include "moe/likelihood/fit.hpp"
#include "moe/likelihood/multinomial.hpp"
#include "moe/likelihood/normal.hpp"
#include "moe/likelihood/poisson.hpp"
#include "moe/likelihood/predict.hpp"
#include "moe/likelihood/standard_errors.hpp"
#include "moe/likelihood/student_t.hpp"
#include "moe/likelihood/uniform_noise.hpp"

namespace test {

inline moe::Matrix<double> uniform_inputs(moe::Index n, moe::Index d, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, 310);
  return moe::Matrix<double>::NullaryExpr(n, d,
                                          [&](moe::Index i, moe::Index c) { return 2 * random.uniform(i, c) - 1; });
}

/// A model in normal form, all of whose numbers are random and moderate.
template <class F, class G = moe::SoftmaxGate>
moe::MixtureRegression<F, G> random_mixture(moe::Index k, moe::Index d, std::uint64_t seed, F family = {},
                                            G gate = {}) {
  const moe::RandomField random(moe::Purpose::User, seed, 311);
  auto m = moe::MixtureRegression<F, G>::zero(k, d, family, gate);
  const auto fill = [&](auto& numbers, std::int64_t column, double size) {
    for (moe::Index i = 0; i < numbers.size(); ++i) numbers.data()[i] = size * random.normal(i, column);
  };
  fill(m.gate_slope, 0, 1);
  fill(m.gate_bias, 1, 0.5);
  fill(m.slope, 2, 0.8);
  fill(m.intercept, 3, 1);
  for (moe::Index i = 0; i < m.shape.size(); ++i) m.shape.data()[i] = (i % 2 ? 4 : 0.5) * (1 + random.uniform(i, 4));
  if constexpr (moe::GateModel<G>::kFreeTemperature) m.temperature = 1.3;
  const moe::Index last = m.num_components() - 1;
  m.gate_slope.row(last).setZero();
  m.gate_bias(last) = 0;
  return m;
}

/// Data of a model, with trials 1 to 6.
template <class F, class G>
moe::ResponseData simulated(const moe::MixtureRegression<F, G>& model, moe::Index n, std::uint64_t seed) {
  moe::ResponseData data;
  data.x = uniform_inputs(n, model.input_dim(), seed);
  if constexpr (std::is_same_v<F, moe::Binomial>)
    data.trials = Eigen::VectorXd::NullaryExpr(n, [](moe::Index i) { return static_cast<double>(1 + i % 6); });
  data.y = moe::sample(model, data.x, seed, data.trials);
  return data;
}

/// Columns of tests/data/likelihood/experts.csv, by name.
inline Eigen::VectorXd reference_column(const std::string& name) {
  std::ifstream file(MOE_TEST_DATA "/likelihood/experts.csv");
  std::string line, cell;
  if (!std::getline(file, line)) throw std::runtime_error("cannot read tests/data/likelihood/experts.csv");
  std::size_t column = 0;
  for (std::istringstream names(line); std::getline(names, cell, ',') && cell != name;) ++column;
  std::vector<double> numbers;
  while (std::getline(file, line) && !line.empty()) {
    std::istringstream cells(line);
    for (std::size_t c = 0; c <= column; ++c) std::getline(cells, cell, ',');
    numbers.push_back(std::stod(cell));
  }
  return Eigen::Map<const Eigen::VectorXd>(numbers.data(), static_cast<moe::Index>(numbers.size()));
}

/// y on x and z of that file.
inline moe::ResponseData reference_response(const std::string& y, const std::string& trials = {}) {
  moe::ResponseData data;
  data.y = reference_column(y);
  data.x.resize(data.y.size(), 2);
  data.x << reference_column("x"), reference_column("z");
  if (!trials.empty()) data.trials = reference_column(trials);
  return data;
}

}  // namespace test
