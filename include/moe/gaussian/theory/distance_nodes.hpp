// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "moe/gaussian/predict/mixture_rows.hpp"

// Integrals over the line of functions of two mixtures of normal densities by the trapezoidal rule, whose error falls
// like e^-2 (pi sigma / h)^2 for a normal density and spacing h.
namespace moe::inline MOE_ABI::detail {

/// Nodes y_i and weights, up to a common factor `spacing`; their number is a multiple of all vector lengths. A buffer:
/// assign it row by row.
class DistanceNodes {
 public:
  std::vector<double> y = {}, weight = {}, difference = {};
  double spacing = 0;

  Index size() const { return static_cast<Index>(y.size()); }

  /// Covers all but 2e-17 of both mixtures with `density` nodes per standard deviation of the narrowest part. Evenly,
  /// unless that takes more than 16384; then even in u = sum_j 2 density asinh((y - m_j) / (2 sigma_j)), which has the
  /// density near every m_j and takes the logarithm of what lies between: any ratio of deviations costs some thousands.
  void assign(const MixtureRow& p, const MixtureRow& q, double density) {
    double low = std::numeric_limits<double>::infinity(), high = -low, narrowest = low;
    for (const MixtureRow* mixture : {&p, &q})
      for (std::size_t j = 0; j < mixture->size(); ++j) {
        const double m = mixture->mean[j], sigma = mixture->deviation[j];
        low = std::min(low, m - kReach * sigma);
        high = std::max(high, m + kReach * sigma);
        narrowest = std::min(narrowest, sigma);
      }
    const double even = (high - low) / narrowest * density;
    if (even <= kMostEven) {
      resize(even);
      spacing = (high - low) / static_cast<double>(size() - 1);
      for (std::size_t i = 0; i < y.size(); ++i) y[i] = low + static_cast<double>(i) * spacing;
      std::fill(weight.begin(), weight.end(), 1.0);
    } else {
      assign_uneven({p, q, 2 * density}, low, high);
    }
  }

 private:
  static constexpr double kReach = 8.5, kMostEven = 16384;  // from there on finding uneven nodes is faster

  /// u(y) and its slope.
  struct Stretch {
    const MixtureRow &p, &q;
    double factor;

    std::array<double, 2> operator()(double at) const {
      double logs = 0, product = 1, slope = 0;  // a logarithm costs as much as all the rest: one for many factors
      for (const MixtureRow* mixture : {&p, &q})
        for (std::size_t j = 0; j < mixture->size(); ++j) {
          const double rate = mixture->scale[j] / std::numbers::sqrt2, z = (at - mixture->mean[j]) * rate;
          const double root = std::sqrt(1 + z * z), growth = std::abs(z) + root;  // e^|asinh z|
          product *= z < 0 ? 1 / growth : growth;
          slope += rate / root;
          if (product > 1e100 || product < 1e-100) logs += std::log(std::exchange(product, 1.0));
        }
      return {factor * (logs + std::log(product)), factor * slope};
    }
  };

  void resize(double at_least) {
    if (!(at_least < 1e7)) fail("moe::density_distance: a row needs ", at_least, " nodes, expected less than 1e7");
    const auto count = std::max<std::size_t>(16, (static_cast<std::size_t>(at_least) + 8) / 8 * 8);
    for (auto* numbers : {&y, &weight, &difference}) numbers->resize(count);
  }

  void assign_uneven(const Stretch& stretch, double low, double high) {
    const double first = stretch(low)[0], last = stretch(high)[0];
    resize(last - first);
    spacing = (last - first) / static_cast<double>(size() - 1);
    double at = low, step = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto [where, slope] = solve(stretch, first + static_cast<double>(i) * spacing, {at, at + step, high});
      y[i] = at = where;
      weight[i] = 1 / slope;
      step = spacing * weight[i];
    }
  }

  struct Bracket {
    double low, guess, high;
  };

  /// y with u(y) = target, and the slope there: Newton within a bracket.
  static std::array<double, 2> solve(const Stretch& stretch, double target, Bracket in) {
    double at = std::min(in.guess, in.high);
    for (int step = 0;; ++step) {
      const auto [u, slope] = stretch(at);
      const double off = target - u;
      if (std::abs(off) < 1e-9 || step == 100) return {at, slope};
      (off > 0 ? in.low : in.high) = at;
      at += off / slope;
      if (!(at > in.low && at < in.high)) at = in.low + (in.high - in.low) / 2;
    }
  }
};

/// What the trapezoidal rule for |d| lacks where d changes its sign between g1 and g2, nodes 0 and 1 of the cubic
/// through four nodes -1 ... 2, over the spacing. At a root theta of d, |d| has kinks: jumps 2 d', 2 d'' ... of its
/// derivatives, and by Euler and Maclaurin the rule is off by their multiples by Bernoulli polynomials of theta.
inline double kink(double g0, double g1, double g2, double g3) {
  const double c2 = (g0 + g2) / 2 - g1, c3 = (g3 - g0) / 6 + (g1 - g2) / 2, c1 = g2 - g1 - c2 - c3;
  double theta = g1 / (g1 - g2);
  for (int step = 0; step < 3; ++step) {
    const double value = g1 + theta * (c1 + theta * (c2 + theta * c3)), slope = c1 + theta * (2 * c2 + theta * 3 * c3);
    if (!(slope * (g2 - g1) > 0)) break;
    theta = std::clamp(theta - value / slope, 0.0, 1.0);
  }
  const double d1 = c1 + theta * (2 * c2 + theta * 3 * c3), d2 = 2 * c2 + 6 * c3 * theta, d3 = 6 * c3;
  const double b2 = theta * (theta - 1) + 1.0 / 6, b3 = theta * (theta - 0.5) * (theta - 1);
  const double b4 = theta * theta * (theta - 1) * (theta - 1) - 1.0 / 30;
  return (g2 < 0 ? -1 : 1) * (b2 * d1 - b3 / 3 * d2 + b4 / 12 * d3);
}

/// Sum of kink() over all changes of sign.
inline double kinks(const std::vector<double>& g) {
  double sum = 0;
  for (std::size_t i = 0; i + 1 < g.size(); ++i) {
    if ((g[i] < 0) == (g[i + 1] < 0)) continue;
    const bool inner = i > 0 && i + 2 < g.size();
    const double step = g[i + 1] - g[i];
    sum += kink(inner ? g[i - 1] : g[i] - step, g[i], g[i + 1], inner ? g[i + 2] : g[i + 1] + step);
  }
  return sum;
}

struct RowDistance {
  double hellinger_squared = 0, total_variation = 0;
};

/// Distances of two mixtures by quadrature.
inline RowDistance row_distance(const MixtureRow& p, const MixtureRow& q, DistanceNodes& at) {
  using V = simd::Batch<double>;
  V hellinger(0.0), variation(0.0);
  for (Index i = 0; i < at.size(); i += simd::kLanes<double>) {
    const V y = simd::load(at.y.data() + i), weight = simd::load(at.weight.data() + i);
    const V at_p = p.density(y), at_q = q.density(y), roots = simd::sqrt(at_p) - simd::sqrt(at_q);
    const V difference = (at_p - at_q) * weight;
    hellinger = simd::fma(roots * roots, weight, hellinger);
    variation = variation + simd::abs(difference);
    simd::store(at.difference.data() + i, difference);
  }
  const double scale = 0.5 * at.spacing;
  const auto limited = [](double value) { return std::clamp(value, 0.0, 1.0); };
  return {limited(scale * simd::reduce_add(hellinger)),
          limited(scale * (simd::reduce_add(variation) + kinks(at.difference)))};
}

}  // namespace moe::inline MOE_ABI::detail
