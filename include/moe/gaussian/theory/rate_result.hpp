// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/gaussian/theory/rate_options.hpp"

namespace moe::inline MOE_ABI {

/// One measured quantity over all n and replications.
struct RateMetric {
  std::string name = {};
  std::vector<std::vector<double>> values = {};  ///< [n][replication]; NaN where it is missing or not finite
  std::vector<Index> counts = {};                ///< finite values at each n
  std::vector<double> mean = {}, median = {}, deviation = {};  ///< of those, at each n; NaN without any
  RateSlope slope_of_mean = {}, slope_of_median = {};
};

/// What went wrong at one n.
struct RateFailures {
  Index not_converged = 0;  ///< fits whose search ended before all tolerances were met; they are measured all the same
  Index below_truth = 0;    ///< fits with a lower likelihood than the truth has: not the maximum
  Index thrown = 0;         ///< replications without numbers, as the fit or a distance threw
  std::string first_error = {};  ///< what the first of those said
};

/// Result of rate_experiment(). Quantities, by name:
///   "D"                Voronoi loss as RateOptions::voronoi says; for linear gates of what they identify
///   "raw D"            for linear gates with an estimated temperature: the loss of (beta_1, tau, ...) as they are
///   "hellinger", "total variation"
///   "excess"           log-likelihood of the fit less that of the truth
///   "iterations"
/// With as many fitted experts as true ones, matched to them by least total distance in (a, b, nu), sums over experts
/// of absolute errors:
///   "beta1" "beta0" "a" "b" "nu", with an estimated temperature "tau" "beta1/tau" "beta0/tau", and for top-1 of two
///   experts on one input, "boundary": where the active expert changes
/// With more, means over the fitted experts that share a Voronoi cell, and over those that do not:
///   "shared beta1" "shared a" "shared b" "shared nu" "single beta1" "single a" "single b" "single nu"
///   and with an activation and an estimated temperature "tau"
struct RateExperiment {
  std::vector<Index> rows = {}, replications = {};  ///< n, and replications at each
  std::vector<RateMetric> metrics = {};
  std::vector<RateFailures> failures = {};  ///< at each n
  double seconds = 0;

  /// The quantity of that name. Throws std::invalid_argument if it was not measured.
  const RateMetric& operator()(std::string_view name) const {
    for (const RateMetric& metric : metrics)
      if (metric.name == name) return metric;
    fail("moe::RateExperiment: '", name, "' was not measured; see its docstring for what is");
  }
};

namespace detail {

/// Statistics and slopes of a metric whose values are filled in.
inline void summarise(const std::vector<Index>& rows, RateSlopeOptions options, RateMetric& metric) {
  constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
  for (std::vector<double>& values : metric.values) {
    std::vector<double> finite;
    for (double& value : values)
      if (std::isfinite(value))
        finite.push_back(value);
      else
        value = kMissing;
    metric.counts.push_back(static_cast<Index>(finite.size()));
    const double mean = finite.empty() ? kMissing : mean_of(finite);
    double squares = 0;
    for (const double value : finite) squares += (value - mean) * (value - mean);
    metric.mean.push_back(mean);
    metric.median.push_back(finite.empty() ? kMissing : median_of(finite));
    metric.deviation.push_back(finite.size() < 2 ? kMissing
                                                 : std::sqrt(squares / static_cast<double>(finite.size() - 1)));
  }
  options.statistic = RateStatistic::Mean;
  metric.slope_of_mean = rate_slope(rows, metric.values, options);
  options.statistic = RateStatistic::Median;
  metric.slope_of_median = rate_slope(rows, metric.values, options);
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
