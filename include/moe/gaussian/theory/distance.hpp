// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/core/random.hpp"
#include "moe/gaussian/predict/mixture_rows.hpp"

// Long, as quadrature and Monte Carlo check each other.
namespace moe::inline MOE_ABI {

/// Distances between two conditional densities, averaged over inputs: h^2 <= V <= sqrt(2) h.
struct DensityDistance {
  double hellinger = 0;                ///< h, root of the mean of h^2; in [0, 1]
  double hellinger_squared = 0;        ///< mean of h^2 = 1/2 int (sqrt p - sqrt q)^2 dy; in [0, 1]
  double total_variation = 0;          ///< mean of V = 1/2 int |p - q| dy; in [0, 1]
  double hellinger_squared_error = 0;  ///< standard error of a Monte Carlo average, 0 by quadrature
  double total_variation_error = 0;    ///< as above
};

struct QuadratureOptions {
  double nodes_per_deviation = 8;  ///< nodes per standard deviation of the narrowest expert; in [2, 1000]
};

struct MonteCarloOptions {
  Index draws = 1000;  ///< per row, >= 2
  std::uint64_t seed = 1;
};

namespace detail {

// Integrals over the line of functions of two mixtures of normal densities by the trapezoidal rule, whose error falls
// like e^-2 (pi sigma / h)^2 for a normal density and spacing h.

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

}  // namespace detail

/// Hellinger and total variation distance between p(y | x) and q(y | x), averaged over the rows of x, by quadrature.
/// Gates may differ in type, and the models in their number of experts.
///   x  [n, d], n >= 1, finite
/// Trapezoidal rule per row, from 8.5 deviations below the lowest mean to as far above, with corrections at the roots
/// of p - q; nodes gather around narrow experts when their deviations differ much. With 8 nodes per deviation h^2 has a
/// relative error of 1e-12 and V of 3e-6 at most, mostly 1e-8. On top comes rounding: of p and q, 1e-15 over the
/// relative difference of p and q, and of nodes, 1e-15 |mean| / deviation, so that an expert with a deviation below
/// 1e-14 of its mean is not resolved (distances stay in [0, 1]).
/// Throws std::invalid_argument for bad models or options, inputs of another dimension, none at all, or not finite.
/// O(n nodes (k_p + k_q)) with 17 * nodes_per_deviation nodes or more; in parallel over rows, the same bits for any
/// number of threads. Allocates.
/// Distances of the theory: Nguyen, Nguyen & Ho (arXiv:2305.03288); Nguyen et al. (arXiv:2309.13850); Nguyen, Akbarian
/// & Ho (arXiv:2401.13875). The rule: Trefethen & Weideman, "The exponentially convergent trapezoidal rule", SIAM
/// Review 2014.
template <class GateP, class GateQ>
DensityDistance density_distance(const GaussianMoe<GateP>& p, const GaussianMoe<GateQ>& q, const MatrixView<double>& x,
                                 const QuadratureOptions& options = {}) {
  constexpr const char* kName = "moe::density_distance";
  if (!(options.nodes_per_deviation >= 2 && options.nodes_per_deviation <= 1000))
    fail(kName, ": nodes_per_deviation is ", options.nodes_per_deviation, ", expected a number in [2, 1000]");
  const detail::MixtureRows p_rows(kName, p, x), q_rows(kName, q, x);
  std::vector<detail::RowDistance> rows(static_cast<std::size_t>(x.rows()));
  parallel_ranges(x.rows(), 16, [&](Index begin, Index end, Index) {
    detail::MixtureRow at_p, at_q;
    detail::DistanceNodes nodes;
    for (Index i = begin; i < end; ++i) {
      p_rows.assign(i, at_p);
      q_rows.assign(i, at_q);
      nodes.assign(at_p, at_q, options.nodes_per_deviation);
      rows[static_cast<std::size_t>(i)] = detail::row_distance(at_p, at_q, nodes);
    }
  });
  DensityDistance mean;
  for (const detail::RowDistance& row : rows) {
    mean.hellinger_squared += row.hellinger_squared / static_cast<double>(x.rows());
    mean.total_variation += row.total_variation / static_cast<double>(x.rows());
  }
  mean.hellinger = std::sqrt(mean.hellinger_squared);
  return mean;
}

namespace detail {

/// log p(y). Never below that of the component that y is drawn from, hence finite for its mixture.
inline double log_density_at(const MixtureRow& p, double y) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;  // sum is in units of e^largest
  for (std::size_t j = 0; j < p.size(); ++j) {
    const double t = (y - p.mean[j]) * p.scale[j], term = std::log(p.height[j]) - t * t;
    if (term <= largest) {
      sum += std::exp(term - largest);
    } else {
      sum = sum * std::exp(largest - term) + 1;
      largest = term;
    }
  }
  return largest + std::log(sum);
}

/// |log p(y) - log q(y)| at the draw of that number of y from (p + q) / 2.
inline double drawn_log_ratio(const MixtureRow& p, const MixtureRow& q, const RandomField& field, Index row,
                              Index draw) {
  const MixtureRow& from = field.uniform(row, 3 * draw) < 0.5 ? p : q;
  double u = field.uniform(row, 3 * draw + 1);
  std::size_t j = 0;
  while (j + 1 < from.size() && u >= from.weight[j]) u -= from.weight[j++];
  const double y = from.mean[j] + from.deviation[j] * field.normal(row, 3 * draw + 2);
  return std::abs(log_density_at(p, y) - log_density_at(q, y));
}

/// Mean and squared standard error of n numbers from their sum and sum of squares.
struct SampleMean {
  double sum = 0, squares = 0;

  void add(double value) {
    sum += value;
    squares += value * value;
  }
  double mean(double n) const { return sum / n; }
  double error_squared(double n) const { return std::max(0.0, squares / n - mean(n) * mean(n)) / (n - 1); }
};

}  // namespace detail

/// As density_distance(), by Monte Carlo: y from (p + q) / 2 at every row, and V = E |p - q| / (p + q),
/// h^2 = E (sqrt p - sqrt q)^2 / (p + q). Both averages are over numbers in [0, 1]: standard errors are at most
/// 1 / (2 sqrt(n draws)). They are those of the draws of y, the rows being given.
/// Throws std::invalid_argument as density_distance(), and for less than 2 draws.
/// O(n draws (k_p + k_q)); draws are pure functions of seed, row and number, the same for any number of threads.
template <class GateP, class GateQ>
DensityDistance density_distance_monte_carlo(const GaussianMoe<GateP>& p, const GaussianMoe<GateQ>& q,
                                             const MatrixView<double>& x, const MonteCarloOptions& options = {}) {
  constexpr const char* kName = "moe::density_distance_monte_carlo";
  if (options.draws < 2) fail(kName, ": draws is ", options.draws, ", expected at least 2");
  const detail::MixtureRows p_rows(kName, p, x), q_rows(kName, q, x);
  const RandomField field(Purpose::Draw, options.seed);
  struct Row {
    detail::SampleMean hellinger, variation;
  };
  std::vector<Row> rows(static_cast<std::size_t>(x.rows()));
  parallel_for(x.rows(), [&](Index i, Index) {
    detail::MixtureRow at_p, at_q;
    p_rows.assign(i, at_p);
    q_rows.assign(i, at_q);
    for (Index draw = 0; draw < options.draws; ++draw) {
      const double half = 0.5 * detail::drawn_log_ratio(at_p, at_q, field, i, draw);
      const double root = std::expm1(-half);  // sqrt(q / p) - 1, p >= q
      rows[static_cast<std::size_t>(i)].hellinger.add(root * root / (1 + std::exp(-2 * half)));
      rows[static_cast<std::size_t>(i)].variation.add(std::tanh(half));
    }
  });
  const auto n = static_cast<double>(x.rows()), draws = static_cast<double>(options.draws);
  DensityDistance mean;
  for (const Row& row : rows) {
    mean.hellinger_squared += row.hellinger.mean(draws) / n;
    mean.total_variation += row.variation.mean(draws) / n;
    mean.hellinger_squared_error += row.hellinger.error_squared(draws) / (n * n);
    mean.total_variation_error += row.variation.error_squared(draws) / (n * n);
  }
  mean.hellinger = std::sqrt(mean.hellinger_squared);
  mean.hellinger_squared_error = std::sqrt(mean.hellinger_squared_error);
  mean.total_variation_error = std::sqrt(mean.total_variation_error);
  return mean;
}

}  // namespace moe::inline MOE_ABI
