// SPDX-License-Identifier: MIT
// Central differences in double against analytic gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "moe/core/visit.hpp"

namespace test {

/// dloss / dvalue. Step 1e-5: the truncation error h^2 f'''/6 and the rounding error eps |f| / h are both below 1e-10
/// for losses and third derivatives of order 1.
template <class Loss>
double central_difference(Loss&& loss, double& value, double step = 1e-5) {
  const double kept = value;
  value = kept + step;
  const double above = loss();
  value = kept - step;
  const double below = loss();
  value = kept;
  return (above - below) / (2 * step);
}

/// Largest |numeric - analytic| over all elements, relative to the largest |analytic| or 1.
/// `loss()` must read `values` through the caller's objects.
template <class Loss>
double gradient_error(Loss&& loss, std::span<double> values, std::span<const double> analytic, double step = 1e-5) {
  double worst = 0, scale = 1;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double numeric = central_difference(loss, values[i], step);
    if (!std::isfinite(numeric) || !std::isfinite(analytic[i])) return INFINITY;
    worst = std::max(worst, std::abs(numeric - analytic[i]));
    scale = std::max(scale, std::abs(analytic[i]));
  }
  return worst / scale;
}

template <class Loss>
double gradient_error(Loss&& loss, moe::Matrix<double>& values, const moe::Matrix<double>& analytic) {
  return gradient_error(loss, moe::parameter_span(values), std::span<const double>(moe::parameter_span(analytic)));
}

/// Compares each leaf with that of a gradient: see parameter_gradient_error().
struct CompareGradients {
  const std::function<double()>& loss;
  double& worst;
  std::string* name;

  template <class Leaf>
  void operator()(const std::string& leaf_name, Leaf& leaf, const Leaf& leaf_gradient) const {
    std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(leaf))), analytic(values.size());
    moe::read_parameter(leaf, std::span<double>(values));
    moe::read_parameter(leaf_gradient, std::span<double>(analytic));
    const std::function<double()> written = [&] {
      moe::write_parameter(leaf, std::span<const double>(values));
      return loss();
    };
    const double error = gradient_error(written, std::span<double>(values), std::span<const double>(analytic));
    moe::write_parameter(leaf, std::span<const double>(values));
    if (!(error <= worst)) {
      worst = error;
      if (name) *name = leaf_name;
    }
  }
};

/// The same over every logical parameter of `object`; `gradient` is an object of the same type. Returns the worst
/// leaf's error and, through `name`, which one it was.
template <class T>
double parameter_gradient_error(const std::function<double()>& loss, T& object, const T& gradient,
                                std::string* name = nullptr) {
  double worst = 0;
  moe::visit(CompareGradients{loss, worst, name}, object, gradient);
  return worst;
}

}  // namespace test
