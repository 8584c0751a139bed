// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/predict/sample.hpp"
#include "moe/gaussian/theory/near_truth.hpp"
#include "moe/gaussian/theory/rate_errors.hpp"
#include "moe/gaussian/theory/rate_slope.hpp"
#include "moe/gaussian/theory/voronoi.hpp"

// Long, as an experiment is its options, its result and what leads from the one to the other.
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
/// of absolute errors; of cosines "beta1" is what the weights know of it (see voronoi_loss()), "raw beta1" all of it,
/// which does not converge:
///   "beta1" "beta0" "a" "b" "nu", with an estimated temperature "tau" "beta1/tau" "beta0/tau", and for top-1 of two
///   experts on one input, "boundary": where the active expert changes; where the maximum is a regular one,
///   "gate wald": squared error of what data know of the gate, in units of its standard errors (see gate_level())
/// With more, means over the fitted experts that share a Voronoi cell, and over those that do not:
///   "shared beta1" "shared a" "shared b" "shared nu" "single beta1" "single a" "single b" "single nu"
///   and with an activation and an estimated temperature "tau"
struct RateExperiment {
  std::vector<Index> rows = {}, replications = {};  ///< n, and replications at each
  std::vector<RateMetric> metrics = {};
  std::vector<RateFailures> failures = {};  ///< at each n
  /// Parameters that data identify, and those of the gate; 0 where the maximum is no regular one (surplus experts,
  /// borders that parameters move).
  Index identified = 0, identified_gate = 0;
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

/// Work done so far, for RateOptions::progress.
class RateClock {
 public:
  RateClock(Index fits, double work, const std::function<void(const RateProgress&)>& report)
      : report_(report), work_(work) {
    progress_.fits = fits;
  }

  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  void done(double work) {
    if (!report_) return;
    const std::lock_guard lock(mutex_);
    done_ += work;
    ++progress_.fits_done;
    progress_.fraction = progress_.fits_done == progress_.fits ? 1 : done_ / work_;
    progress_.seconds = seconds();
    progress_.seconds_left = progress_.seconds * (1 - progress_.fraction) / progress_.fraction;
    report_(progress_);
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const std::function<void(const RateProgress&)>& report_;
  std::mutex mutex_;
  double work_ = 1, done_ = 0;
  RateProgress progress_;
};

/// A pair of n and replication, and what became of it.
struct RateTask {
  std::size_t size = 0;  ///< index of n
  Index replication = 0;
  Measured measured = {};
  bool converged = false, below_truth = false;
  std::string error = {};
};

/// Draws, fits and measures. Immutable, share freely.
template <class G, class Estimate>
class RateRunner {
 public:
  RateRunner(const GaussianMoe<G>& truth, const RateOptions& options, const Estimate& estimate)
      : options_(options),
        truth_(truth),
        estimate_(estimate),
        k_(options.num_experts > 0 ? options.num_experts : truth.num_experts()),
        measurement_(truth, options.voronoi, distance_inputs()) {
    const bool every = options.allocation == StartAllocation::Every ||
                       (options.allocation == StartAllocation::Automatic && k_ > truth.num_experts());
    if (every) allocations_ = expert_allocations(k_, truth.num_experts());
    const std::vector<GaussianMoe<G>> starts = starts_of(options.rows.front(), 0);  // throws here, not in a task
    measurement_.check(starts.front());
  }

  Index num_experts() const { return k_; }

  void run(RateTask& task) const {
    const Index n = options_.rows[task.size];
    try {
      const RegressionData data = draw_data(n, task.replication);
      std::optional<GaussianFit<G>> best;
      for (const GaussianMoe<G>& start : starts_of(n, task.replication)) {
        GaussianFit<G> fit = estimate_(data, start);
        if (!best || fit.log_likelihood > best->log_likelihood) best = std::move(fit);
      }
      const double reference = log_likelihood(truth_, data);
      task.converged = best->converged;
      // rounding of a sum of n terms
      task.below_truth = !(best->log_likelihood > reference - 1e-9 * (1 + std::abs(reference)));
      task.measured = measurement_(*best, data, reference);
    } catch (const std::exception& error) {
      task.error = error.what();
    }
  }

  /// The same rows for every truth, gate and option but the law of inputs: experiments can be compared row by row.
  RegressionData draw_data(Index n, Index replication) const {
    RegressionData data;
    data.x.resize(n, truth_.input_dim());
    options_.inputs(RandomField(Purpose::Draw, options_.seed, n, replication), data.x);
    data.y = sample(truth_, data.x, RandomField(Purpose::User, options_.seed, n, replication).bits(0, 0));
    return data;
  }

 private:
  Matrix<double> distance_inputs() const {
    Matrix<double> x(options_.distance_inputs, truth_.input_dim());
    if (x.rows() > 0) options_.inputs(RandomField(Purpose::Jitter, options_.seed), x);
    return x;
  }

  std::vector<GaussianMoe<G>> starts_of(Index n, Index replication) const {
    const RandomField seeds(Purpose::Initialise, options_.seed, n, replication);
    const LastExpert last = last_expert_is_fixed(truth_) ? LastExpert::Last : LastExpert::Any;
    std::vector<GaussianMoe<G>> starts;
    for (Index s = 0; s < options_.starts; ++s) {
      if (allocations_.empty()) {
        const auto cells = random_allocation(k_, truth_.num_experts(), last, seeds.bits(s, 0));
        starts.push_back(start_near(cells, {n, seeds.bits(s, 1)}));
      }
      for (std::size_t a = 0; a < allocations_.size(); ++a)
        starts.push_back(start_near(allocations_[a], {n, seeds.bits(s, static_cast<Index>(a) + 2)}));
    }
    return starts;
  }

  GaussianMoe<G> start_near(const std::vector<Index>& cells, const StartDraw& draw) const {
    GaussianMoe<G> start = near_truth(truth_, cells, options_.noise, draw);
    if (options_.active == 0) return start;
    if constexpr (std::is_same_v<G, TopKGate>)
      start.gate.k = options_.active;
    else
      fail("moe::rate_experiment: active is ", options_.active, " for a gate that is no TopKGate, expected 0");
    start.validate("moe::rate_experiment");
    return start;
  }

  const RateOptions& options_;
  GaussianMoe<G> truth_;
  const Estimate& estimate_;
  Index k_;
  RateMeasurement<G> measurement_;
  std::vector<std::vector<Index>> allocations_;
};

/// Tasks into metrics and failures; tasks in order of n and replication.
inline RateExperiment collect(const std::vector<RateTask>& tasks, const RateOptions& options) {
  RateExperiment result;
  result.rows = options.rows;
  for (std::size_t i = 0; i < options.rows.size(); ++i) result.replications.push_back(options.replications_at(i));
  result.failures.resize(options.rows.size());
  for (const RateTask& task : tasks) {
    RateFailures& failures = result.failures[task.size];
    if (!task.error.empty() && failures.thrown++ == 0) failures.first_error = task.error;
    if (!task.error.empty()) continue;
    failures.not_converged += !task.converged;
    failures.below_truth += task.below_truth;
    if (!result.metrics.empty()) continue;
    for (const std::string& name : task.measured.names) result.metrics.push_back({.name = name});
  }
  for (std::size_t m = 0; m < result.metrics.size(); ++m) {
    RateMetric& metric = result.metrics[m];
    metric.values.resize(options.rows.size());
    for (const RateTask& task : tasks)
      metric.values[task.size].push_back(task.error.empty() ? task.measured.values[m]
                                                            : std::numeric_limits<double>::quiet_NaN());
    summarise(options.rows, options.slope, metric);
  }
  return result;
}

}  // namespace detail

/// Convergence rates by simulation: draws data from `truth` at each n, `replications` times, fits a model with as many
/// or more experts, measures how far it is off (see RateExperiment), and regresses the logarithms of mean and median
/// over the replications on log n.
///   estimate   GaussianFit<G>(const RegressionData&, const GaussianMoe<G>& start): how one fit is made; called
///              from several threads
/// Starts are near the truth, so that rates are those of the maximum next to it, not of the search for one. Their noise
/// shrinks by default as in the authors' simulations; with a linear gate and an estimated temperature, whose estimate
/// is where it started, that is deceptive: use StartNoise::log_temperature = {0.2, 0}.
/// Draws are pure functions of seed, n and replication: independent over n, and the same for all truths and options.
/// Pairs of n and replication run in parallel, the largest n first; the result is the same for any number of threads.
/// A fit that does not converge, or throws, is counted in RateExperiment::failures.
/// Throws std::invalid_argument for a bad truth or options, and fewer fitted experts than true ones. About sum(n *
/// replications) * starts times an EM iteration times 20 to 50. Memory: threads times the largest n times d. Nguyen,
/// Nguyen & Ho (arXiv:2305.03288); top-K: Nguyen et al. (arXiv:2309.13850); temperature and activation: Nguyen,
/// Akbarian & Ho (arXiv:2401.13875).
template <LikelihoodGate G, class Estimate>
RateExperiment rate_experiment(const GaussianMoe<G>& truth, const RateOptions& options, const Estimate& estimate) {
  constexpr const char* kName = "moe::rate_experiment";
  options.validate(kName);
  options.fit.validate(kName);
  truth.validate(kName);
  if (options.num_experts != 0) detail::require_experts(kName, options.num_experts, truth.num_experts());
  const detail::RateRunner<G, Estimate> runner(truth, options, estimate);
  std::vector<detail::RateTask> tasks;
  double work = 0;
  for (std::size_t i = 0; i < options.rows.size(); ++i)
    for (Index r = 0; r < options.replications_at(i); ++r) {
      tasks.push_back({.size = i, .replication = r});
      work += static_cast<double>(options.rows[i]);
    }
  const auto count = static_cast<Index>(tasks.size());
  detail::RateClock clock(count, work, options.progress);
  parallel_in_order(count, [&](Index t, Index) {
    detail::RateTask& task = tasks[static_cast<std::size_t>(count - 1 - t)];  // n ascends
    runner.run(task);
    clock.done(static_cast<double>(options.rows[task.size]));
  });
  RateExperiment result = detail::collect(tasks, options);
  if (detail::has_regular_maximum(truth, runner.num_experts(), options.active)) {
    const ParameterLayout at = layout(truth);
    result.identified_gate = detail::num_identified_gate(truth);
    result.identified = result.identified_gate + at.size() - at.num_gate();
  }
  result.seconds = clock.seconds();
  return result;
}

/// The same with fit_from() as the estimator.
template <LikelihoodGate G>
RateExperiment rate_experiment(const GaussianMoe<G>& truth, const RateOptions& options = {}) {
  return rate_experiment(truth, options, [&](const RegressionData& data, const GaussianMoe<G>& start) {
    return fit_from(data, start, options.fit);
  });
}

}  // namespace moe::inline MOE_ABI
