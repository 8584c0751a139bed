// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/theory/near_truth.hpp"
#include "moe/gaussian/theory/rate_slope.hpp"
#include "moe/gaussian/theory/voronoi.hpp"

namespace moe::inline MOE_ABI {

/// Law of the inputs: fills x [n, d], which has its size already, from a field of random numbers; x(i, c) should depend
/// on field, i and c alone. Called from several threads.
using InputLaw = std::function<void(const RandomField& random, Matrix<double>& x)>;

/// Independent uniform inputs on (low, high).
inline InputLaw uniform_inputs(double low, double high) {
  if (!(low < high && std::isfinite(high - low)))
    fail("moe::uniform_inputs: the bounds are ", low, " and ", high, ", expected finite numbers, low < high");
  return [=](const RandomField& random, Matrix<double>& x) {
    for (Index i = 0; i < x.rows(); ++i)
      for (Index c = 0; c < x.cols(); ++c) x(i, c) = low + (high - low) * random.uniform(i, c);
  };
}

/// Independent normal inputs.
inline InputLaw normal_inputs(double mean = 0, double deviation = 1) {
  if (!(deviation > 0 && std::isfinite(deviation) && std::isfinite(mean)))
    fail("moe::normal_inputs: mean and deviation are ", mean, " and ", deviation, ", expected finite, deviation > 0");
  return [=](const RandomField& random, Matrix<double>& x) {
    for (Index i = 0; i < x.rows(); ++i)
      for (Index c = 0; c < x.cols(); ++c) x(i, c) = mean + deviation * random.normal(i, c);
  };
}

/// n equally spaced numbers from low to high, ends included; for d = 1 (all inputs are the same number otherwise).
inline InputLaw grid_inputs(double low, double high) {
  if (!(low < high && std::isfinite(high - low)))
    fail("moe::grid_inputs: the bounds are ", low, " and ", high, ", expected finite numbers, low < high");
  return [=](const RandomField&, Matrix<double>& x) {
    const double step = x.rows() > 1 ? (high - low) / static_cast<double>(x.rows() - 1) : 0;
    for (Index i = 0; i < x.rows(); ++i) x.row(i).setConstant(low + static_cast<double>(i) * step);
  };
}

/// Sample sizes from `first` to `last`, evenly spaced on a log scale, `per_decade` to a factor of ten, rounded.
inline std::vector<Index> geometric_rows(Index first, Index last, Index per_decade = 2) {
  if (first < 1 || last < first || per_decade < 1)
    fail("moe::geometric_rows: first, last and per_decade are ", first, ", ", last, " and ", per_decade,
         ", expected 1 <= first <= last and per_decade >= 1");
  std::vector<Index> rows;
  const double ratio = std::log10(static_cast<double>(last) / static_cast<double>(first));
  const auto steps = static_cast<Index>(std::floor(ratio * static_cast<double>(per_decade) + 1e-9));
  for (Index i = 0; i <= steps; ++i)
    rows.push_back(std::llround(static_cast<double>(first) *
                                std::pow(10.0, static_cast<double>(i) / static_cast<double>(per_decade))));
  return rows;
}

/// Which true experts the fitted ones start at.
enum class StartAllocation {
  Automatic,  ///< Every for more fitted than true experts, else Random
  Random,     ///< a random map onto the true experts
  Every       ///< each way to share the surplus experts out
};

/// Reports how far an experiment is.
struct RateProgress {
  Index fits_done = 0, fits = 0;  ///< pairs of n and replication
  double fraction = 0;            ///< share of the work, taken as proportional to n
  double seconds = 0;             ///< since the start
  double seconds_left = 0;        ///< estimate; 0 at the end
};

/// All numbers of a rate experiment.
struct RateOptions {
  std::vector<Index> rows = geometric_rows(100, 100'000);  ///< sample sizes n, ascending
  std::vector<Index> replications = {20};                  ///< one per n, or a single number for all
  InputLaw inputs = uniform_inputs(-1, 1);
  Index num_experts = 0;  ///< fitted ones, at least the true ones; 0: as many
  Index active = 0;       ///< fitted experts with a weight, of a TopKGate; 0: as many as in the truth
  StartAllocation allocation = StartAllocation::Automatic;
  Index starts = 1;  ///< starts per replication and allocation; the best log-likelihood is kept
  StartNoise noise = {};
  FitOptions fit = {};  ///< of each fit; its starts, seed and progress are not used
  VoronoiOptions voronoi = {.shift = VoronoiShift::Centred};  ///< of the loss "D"
  Index distance_inputs = 128;  ///< x that density distances are averaged over, the same everywhere; 0: no distances
  RateSlopeOptions slope = {};  ///< of the regressions; its statistic is not used
  std::uint64_t seed = 1;
  std::function<void(const RateProgress&)> progress = {};  ///< called from one thread at a time

  Index replications_at(std::size_t i) const { return replications.size() == 1 ? replications[0] : replications[i]; }

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(const char* function) const {
    if (rows.empty()) fail(function, ": rows is empty, expected at least one sample size");
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (rows[i] < 1 || (i > 0 && rows[i] <= rows[i - 1]))
        fail(function, ": rows[", i, "] is ", rows[i], ", expected ascending numbers >= 1");
    if (replications.size() != 1 && replications.size() != rows.size())
      fail(function, ": replications has ", replications.size(), " entries, expected 1 or one per n = ", rows.size());
    for (const Index count : replications)
      if (count < 1) fail(function, ": replications holds ", count, ", expected at least 1");
    if (!inputs) fail(function, ": inputs is empty, expected a law such as uniform_inputs(-1, 1)");
    if (starts < 1) fail(function, ": starts is ", starts, ", expected at least 1");
    if (active < 0) fail(function, ": active is ", active, ", expected at least 0");
    if (distance_inputs < 0) fail(function, ": distance_inputs is ", distance_inputs, ", expected at least 0");
    noise.validate(function);
    detail::require_losses({}, {}, slope);
  }
};

}  // namespace moe::inline MOE_ABI
