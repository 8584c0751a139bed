// SPDX-License-Identifier: MIT
// The true models of convergence_rates.cpp, and an exact estimator for one of them.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <vector>

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

/// Two of three experts are active; who they are depends on beta_1 x alone.
inline auto two_of_three() {
  return model({.beta1 = {2, -2, 0}, .beta0 = {0.3, -0.3, 0}, .a = {1, -1, 0.5}, .b = {2, -2, 0}, .nu = {0.3, 0.4, 0.2}},
               moe::TopKGate{.k = 2, .weight_bias = Eigen::RowVectorXd::Zero(3)});
}

/// Least squares of consecutive rows in ascending x, by sums from the first one on.
class Segments {
 public:
  Segments(const moe::RegressionData& data, const std::vector<Index>& order)
      : x0_(data.x.mean()), y0_(data.y.mean()), sums_(data.num_rows() + 1, 6) {
    sums_.row(0).setZero();
    for (Index i = 0; i < data.num_rows(); ++i) {
      const Index row = order[static_cast<std::size_t>(i)];
      const double x = data.x(row, 0) - x0_, y = data.y(row) - y0_;
      sums_.row(i + 1) = sums_.row(i) + Eigen::Matrix<double, 1, 6>(1, x, y, x * x, x * y, y * y);
    }
  }

  struct Fit {
    double a = 0, b = 0, nu = 0, log_likelihood = 0;
  };

  Fit operator()(Index begin, Index end) const {
    const Eigen::Matrix<double, 1, 6> s = sums_.row(end) - sums_.row(begin);
    const double n = s(0), x = s(1) / n, y = s(2) / n;
    const double xx = s(3) / n - x * x, xy = s(4) / n - x * y, yy = s(5) / n - y * y;
    Fit fit;
    fit.a = xy / xx;
    fit.b = y + y0_ - fit.a * (x + x0_);
    fit.nu = std::max(yy - xy * fit.a, 1e-12 * yy);
    fit.log_likelihood = -0.5 * n * (std::log(2 * 3.14159265358979323846 * fit.nu) + 1);
    return fit;
  }

 private:
  double x0_, y0_;  // sums of centred numbers do not cancel
  Eigen::Matrix<double, Eigen::Dynamic, 6, Eigen::RowMajor> sums_;
};

/// The maximum likelihood estimate for top-1 of two experts on one input, exactly: an expert on either side of a
/// boundary, which lies between two neighbouring x and is tried everywhere. O(n log n). The likelihood depends on the
/// gate through the boundary alone, so beta_1 stays where it starts.
inline moe::GaussianFit<moe::TopKGate> scan_boundary(const moe::RegressionData& data,
                                                     const moe::GaussianMoe<moe::TopKGate>& start) {
  std::vector<Index> order(static_cast<std::size_t>(data.num_rows()));
  std::iota(order.begin(), order.end(), Index{0});
  std::sort(order.begin(), order.end(), [&](Index i, Index j) { return data.x(i, 0) < data.x(j, 0); });
  const Segments segments(data, order);
  const Index n = data.num_rows(), least = 5;  // rows of an expert: with two, its variance would be 0
  Index best = least;
  double highest = -std::numeric_limits<double>::infinity();
  for (Index split = least; split <= n - least; ++split) {
    const double value = segments(0, split).log_likelihood + segments(split, n).log_likelihood;
    if (value > highest) highest = value, best = split;
  }
  const auto x_at = [&](Index i) { return data.x(order[static_cast<std::size_t>(i)], 0); };
  moe::GaussianFit<moe::TopKGate> fit{.model = start, .log_likelihood = highest, .converged = true, .iterations = 1};
  const Index right = start.gate_slope(0, 0) > start.gate_slope(1, 0) ? 0 : 1;
  const auto put = [&](Index expert, const Segments::Fit& segment) {
    fit.model.slope(expert, 0) = segment.a;
    fit.model.intercept(expert) = segment.b;
    fit.model.variance(expert) = segment.nu;
  };
  put(1 - right, segments(0, best));
  put(right, segments(best, n));
  fit.model.gate_bias(0) = -start.gate_slope(0, 0) * 0.5 * (x_at(best - 1) + x_at(best));  // that of expert 1 is 0
  return fit;
}

}  // namespace rates
