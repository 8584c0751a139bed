// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "moe/core/random.hpp"

namespace moe::inline MOE_ABI {

/// What a loss is summed up to at each n before the regression.
enum class RateStatistic { Mean, Median };

struct RateSlopeOptions {
  RateStatistic statistic = RateStatistic::Mean;
  Index smallest_rows = 1000;    ///< n below it are left out: a rate is about large n
  Index bootstrap_draws = 1000;  ///< >= 0; 0: no interval
  double level = 0.95;           ///< of the interval, in (0, 1)
  std::uint64_t seed = 1;
};

/// loss = constant * n^slope, by least squares on the logarithms. NaN where less than two n have a positive statistic.
struct RateSlope {
  double slope = std::numeric_limits<double>::quiet_NaN();
  double constant = std::numeric_limits<double>::quiet_NaN();
  double low = std::numeric_limits<double>::quiet_NaN();  ///< bootstrap interval of the slope
  double high = std::numeric_limits<double>::quiet_NaN();
};

namespace detail {

inline double mean_of(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

/// Reorders its argument. The middle one, or the mean of the two in the middle.
inline double median_of(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

/// Quantile of sorted values, linear between them.
inline double sorted_quantile(std::span<const double> sorted, double level) {
  const double at = level * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

inline double statistic_of(std::vector<double>& values, RateStatistic statistic) {
  if (values.empty()) return 0;
  return statistic == RateStatistic::Mean ? mean_of(values) : median_of(values);
}

/// Line through (log n, log statistic), over positive finite statistics.
inline RateSlope log_log_line(std::span<const double> log_rows, std::span<const double> statistics) {
  double count = 0, x_mean = 0, y_mean = 0, xx = 0, xy = 0;
  const auto usable = [&](std::size_t i) { return statistics[i] > 0 && std::isfinite(statistics[i]); };
  for (std::size_t i = 0; i < statistics.size(); ++i)
    if (usable(i)) ++count, x_mean += log_rows[i], y_mean += std::log(statistics[i]);
  x_mean /= count, y_mean /= count;
  for (std::size_t i = 0; i < statistics.size(); ++i)
    if (usable(i)) {
      xx += (log_rows[i] - x_mean) * (log_rows[i] - x_mean);
      xy += (log_rows[i] - x_mean) * (std::log(statistics[i]) - y_mean);
    }
  RateSlope line;
  if (count < 2 || !(xx > 0)) return line;
  line.slope = xy / xx;
  line.constant = std::exp(y_mean - line.slope * x_mean);
  return line;
}

inline void require_losses(std::span<const Index> rows, std::span<const std::vector<double>> losses,
                           const RateSlopeOptions& options) {
  constexpr const char* kName = "moe::rate_slope";
  if (losses.size() != rows.size())
    fail(kName, ": losses has ", losses.size(), " entries, expected one per n = ", rows.size());
  if (options.bootstrap_draws < 0)
    fail(kName, ": bootstrap_draws is ", options.bootstrap_draws, ", expected at least 0");
  if (!(options.level > 0 && options.level < 1))
    fail(kName, ": level is ", options.level, ", expected a number in (0, 1)");
  for (const Index n : rows)
    if (n < 1) fail(kName, ": rows holds ", n, ", expected numbers >= 1");
}

}  // namespace detail

/// Rate of a loss: regression of log(mean or median over replications) on log n, with a bootstrap percentile interval
/// that resamples the replications inside each n.
///   rows    sample sizes n, one per entry of losses       losses[i]  one loss per replication at rows[i], any number
/// Entries that are not finite count as missing; an n without a positive statistic is left out.
/// Throws std::invalid_argument for lists of different lengths, n < 1 and options out of range.
/// O(bootstrap_draws * losses); a pure function of its arguments.
/// Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
inline RateSlope rate_slope(std::span<const Index> rows, std::span<const std::vector<double>> losses,
                            const RateSlopeOptions& options = {}) {
  detail::require_losses(rows, losses, options);
  std::vector<double> log_rows, statistics;
  std::vector<std::vector<double>> kept;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < options.smallest_rows) continue;
    log_rows.push_back(std::log(static_cast<double>(rows[i])));
    std::vector<double>& finite = kept.emplace_back();
    std::copy_if(losses[i].begin(), losses[i].end(), std::back_inserter(finite),
                 [](double loss) { return std::isfinite(loss); });
    std::vector<double> copy = finite;
    statistics.push_back(detail::statistic_of(copy, options.statistic));
  }
  RateSlope line = detail::log_log_line(log_rows, statistics);
  const RandomField random(Purpose::Shuffle, options.seed);
  std::vector<double> slopes, resampled;
  for (Index draw = 0; draw < options.bootstrap_draws && std::isfinite(line.slope); ++draw) {
    Index column = 0;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      resampled.clear();
      for (std::size_t r = 0; r < kept[i].size(); ++r)
        resampled.push_back(kept[i][random.below(kept[i].size(), draw, column++)]);
      statistics[i] = detail::statistic_of(resampled, options.statistic);
    }
    const double slope = detail::log_log_line(log_rows, statistics).slope;
    if (std::isfinite(slope)) slopes.push_back(slope);
  }
  if (slopes.empty()) return line;
  std::sort(slopes.begin(), slopes.end());
  line.low = detail::sorted_quantile(slopes, 0.5 - 0.5 * options.level);
  line.high = detail::sorted_quantile(slopes, 0.5 + 0.5 * options.level);
  return line;
}

}  // namespace moe::inline MOE_ABI
