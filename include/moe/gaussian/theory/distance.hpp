// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "moe/core/parallel.hpp"
#include "moe/core/random.hpp"
#include "moe/gaussian/theory/distance_nodes.hpp"

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

/// log p and log q at y drawn from (p + q) / 2, of one row.
class MixtureDraws {
 public:
  MixtureDraws(const MixtureRow& p, const MixtureRow& q) : p_(p), q_(q) {}

  /// |log p - log q| at the draw of that number.
  double log_ratio(const RandomField& field, Index row, Index draw) const {
    const MixtureRow& from = field.uniform(row, 3 * draw) < 0.5 ? p_ : q_;
    double u = field.uniform(row, 3 * draw + 1);
    std::size_t j = 0;
    while (j + 1 < from.size() && u >= from.weight[j]) u -= from.weight[j++];
    const double y = from.mean[j] + from.deviation[j] * field.normal(row, 3 * draw + 2);
    return std::abs(log_density(p_, y) - log_density(q_, y));
  }

 private:
  /// Never below that of the component of y, hence finite for the mixture that y is drawn from.
  static double log_density(const MixtureRow& mixture, double y) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;  // sum is in units of e^largest
    for (std::size_t j = 0; j < mixture.size(); ++j) {
      const double t = (y - mixture.mean[j]) * mixture.scale[j], term = std::log(mixture.height[j]) - t * t;
      if (term <= largest) {
        sum += std::exp(term - largest);
      } else {
        sum = sum * std::exp(largest - term) + 1;
        largest = term;
      }
    }
    return largest + std::log(sum);
  }

  const MixtureRow &p_, &q_;
};

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
    const detail::MixtureDraws draws(at_p, at_q);
    for (Index draw = 0; draw < options.draws; ++draw) {
      const double half = 0.5 * draws.log_ratio(field, i, draw), root = std::expm1(-half);  // sqrt(q / p) - 1, p >= q
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
