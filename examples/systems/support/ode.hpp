// SPDX-License-Identifier: MIT
// Systems of ordinary differential equations in the plane: three families with a parameter each, states and derivatives
// of some environments, and an integrator.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include <moe/core/random.hpp>

#include "regression.hpp"

namespace systems {

using State = std::array<double, 2>;

/// Classical Runge-Kutta of order 4: the state after a step `h` of y' = field(y).
template <class Field>
State rk4_step(const Field& field, const State& y, double h) {
  const auto moved = [&](const State& by, double times) { return State{y[0] + times * by[0], y[1] + times * by[1]}; };
  const State a = field(y), b = field(moved(a, h / 2)), c = field(moved(b, h / 2)), d = field(moved(c, h));
  return moved({a[0] + 2 * b[0] + 2 * c[0] + d[0], a[1] + 2 * b[1] + 2 * c[1] + d[1]}, h / 6);
}

/// The states at 0, h, 2 h, ..., steps h.
template <class Field>
std::vector<State> rk4_path(const Field& field, State y, double h, moe::Index steps) {
  std::vector<State> path = {y};
  for (moe::Index i = 0; i < steps; ++i) path.push_back(y = rk4_step(field, y, h));
  return path;
}

/// Distance from the solution of y'' = -y after time 6 in steps of `h`.
inline double rk4_error(double h) {
  const auto steps = static_cast<moe::Index>(std::lround(6 / h));
  const State end = rk4_path([](const State& y) { return State{y[1], -y[0]}; }, {1, 0}, h, steps).back();
  return std::hypot(end[0] - std::cos(6), end[1] + std::sin(6));
}

inline constexpr moe::Index kFamilies = 3;
inline constexpr std::array kFamilyNames = {"rotation", "node", "saddle"};

/// One of a family; `parameter` around 1.
struct Environment {
  moe::Index family = 0;
  double parameter = 1;

  State operator()(const State& y) const {
    const double p = parameter;
    if (family == 0) return {-0.1 * y[0] + 2 * p * y[1], -2 * p * y[0] - 0.1 * y[1]};
    if (family == 1) return {-p * y[0] + 0.5 * y[1], -2 * p * y[1]};
    return {p * y[1], 0.5 * p * y[0] - 1.5 * y[1]};
  }
};

/// `each` environments of the families from `first` to `last`, with parameters from 0.8 to 1.2.
inline std::vector<Environment> environments(moe::Index each, moe::Index first, moe::Index last, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, 11);
  std::vector<Environment> all;
  for (moe::Index family = first; family <= last; ++family)
    for (moe::Index i = 0; i < each; ++i) all.push_back({family, 0.8 + 0.4 * random.uniform(family, i)});
  return all;
}

/// `count` standard normal states of each environment, and their derivatives with normal noise; a function of seed and
/// part. The key of a row is its environment.
inline Regression derivatives(const std::vector<Environment>& of, moe::Index count, double noise, std::uint64_t seed,
                              std::uint64_t part) {
  const moe::RandomField random(moe::Purpose::User, seed, 12, part);
  const moe::Index rows = std::ssize(of) * count;
  Regression data{moe::Matrix<float>(rows, 2), moe::Matrix<float>(rows, 2)};
  for (moe::Index t = 0; t < rows; ++t) {
    const State y = {random.normal(t, 0), random.normal(t, 1)};
    const State dy = of[static_cast<std::size_t>(t / count)](y);
    for (moe::Index j = 0; j < 2; ++j) {
      data.rows(t, j) = static_cast<float>(y[static_cast<std::size_t>(j)]);
      data.targets(t, j) = static_cast<float>(dy[static_cast<std::size_t>(j)] + noise * random.normal(t, 2 + j));
    }
    data.key.push_back(t / count);
  }
  return data;
}

}  // namespace systems
