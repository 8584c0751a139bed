// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <string_view>

#include "moe/gaussian/theory/rate_experiment.hpp"

namespace moe::inline MOE_ABI {

/// A mean over replications beside the mean of the law that it is drawn from, whatever n is: a check of a level, where
/// a slope says nothing of the factor in front of the power of n.
struct RateLevel {
  double mean = std::numeric_limits<double>::quiet_NaN();  ///< over all finite values; NaN without any
  double expected = 0;
  double error = 0;  ///< standard error of the mean, from the law, not from the values
  Index count = 0;   ///< finite values

  /// How many standard errors the mean is above what is expected.
  double standardised() const { return (mean - expected) / error; }
};

namespace detail {

/// Of a quantity that is `factor` times a chi-squared number with that many degrees of freedom.
inline RateLevel chi_squared_level(const RateMetric& metric, const std::vector<Index>& rows, Index smallest_rows,
                                   double degrees, double factor) {
  RateLevel level{.expected = factor * degrees};
  double sum = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (const double value : metric.values[i])
      if (rows[i] >= smallest_rows && std::isfinite(value)) sum += value, ++level.count;
  if (level.count == 0) return level;
  level.mean = sum / static_cast<double>(level.count);
  level.error = factor * std::sqrt(2 * degrees / static_cast<double>(level.count));
  return level;
}

inline void require_regular(const char* function, Index parameters) {
  if (parameters == 0)
    fail(function,
         ": the law of the quantity is not known, expected as many fitted experts as true ones, and borders "
         "of a sparse gate, if any, that the parameters do not move");
}

}  // namespace detail

/// Log-likelihood of the fits less that of the truth, with p identified parameters: twice it is chi-squared with p
/// degrees of freedom as n grows (Wilks, Ann. Math. Statist. 1938), so that the mean of R replications is p / 2 with
/// the standard error sqrt(p / (2 R)), whatever n >= smallest_rows is. A fit that stops short of the maximum is below,
/// one of more parameters than it should have above. At finite n the mean is off by a share of order 1 / n.
/// Throws std::invalid_argument where that law does not hold: RateExperiment::identified is 0.
inline RateLevel excess_level(const RateExperiment& result, Index smallest_rows = 1000) {
  detail::require_regular("moe::excess_level", result.identified);
  return detail::chi_squared_level(result("excess"), result.rows, smallest_rows, static_cast<double>(result.identified),
                                   0.5);
}

/// Squared errors of the gate's coefficients in units of their standard errors ("gate wald"): chi-squared with as many
/// degrees of freedom as identified ones, q, as n grows; the mean of R replications is q with the standard error
/// sqrt(2 q / R). Errors as for excess_level().
inline RateLevel gate_level(const RateExperiment& result, Index smallest_rows = 1000) {
  detail::require_regular("moe::gate_level", result.identified_gate);
  return detail::chi_squared_level(result("gate wald"), result.rows, smallest_rows,
                                   static_cast<double>(result.identified_gate), 1);
}

}  // namespace moe::inline MOE_ABI
