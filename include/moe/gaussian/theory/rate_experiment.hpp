// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <mutex>
#include <optional>

#include "moe/core/parallel.hpp"
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/predict/sample.hpp"
#include "moe/gaussian/theory/rate_errors.hpp"
#include "moe/gaussian/theory/rate_result.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

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
template <class Gate, class Estimate>
class RateRunner {
 public:
  RateRunner(const GaussianMoe<Gate>& truth, const RateOptions& options, const Estimate& estimate)
      : options_(options),
        truth_(truth),
        estimate_(estimate),
        k_(options.num_experts > 0 ? options.num_experts : truth.num_experts()),
        measurement_(truth, options, distance_inputs()) {
    const bool every = options.allocation == StartAllocation::Every ||
                       (options.allocation == StartAllocation::Automatic && k_ > truth.num_experts());
    if (every) allocations_ = expert_allocations(k_, truth.num_experts());
    const std::vector<GaussianMoe<Gate>> starts = starts_of(options.rows.front(), 0);  // throws here, not in a task
    measurement_.check(starts.front());
  }

  void run(RateTask& task) const {
    const Index n = options_.rows[task.size];
    try {
      const RegressionData data = draw_data(n, task.replication);
      std::optional<GaussianFit<Gate>> best;
      for (const GaussianMoe<Gate>& start : starts_of(n, task.replication)) {
        GaussianFit<Gate> fit = estimate_(data, start);
        if (!best || fit.log_likelihood > best->log_likelihood) best = std::move(fit);
      }
      const double reference = log_likelihood(truth_, data);
      task.converged = best->converged;
      // rounding of a sum of n terms
      task.below_truth = !(best->log_likelihood > reference - 1e-9 * (1 + std::abs(reference)));
      task.measured = measurement_(*best, reference);
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

  std::vector<GaussianMoe<Gate>> starts_of(Index n, Index replication) const {
    const RandomField seeds(Purpose::Initialise, options_.seed, n, replication);
    const bool keep_last = last_expert_is_fixed(truth_);
    std::vector<GaussianMoe<Gate>> starts;
    for (Index s = 0; s < options_.starts; ++s) {
      if (allocations_.empty()) {
        const auto cells = random_allocation(k_, truth_.num_experts(), keep_last, seeds.bits(s, 0));
        starts.push_back(start_near(cells, {n, seeds.bits(s, 1)}));
      }
      for (std::size_t a = 0; a < allocations_.size(); ++a)
        starts.push_back(start_near(allocations_[a], {n, seeds.bits(s, static_cast<Index>(a) + 2)}));
    }
    return starts;
  }

  GaussianMoe<Gate> start_near(const std::vector<Index>& cells, const StartDraw& draw) const {
    GaussianMoe<Gate> start = near_truth(truth_, cells, options_.noise, draw);
    if (options_.active == 0) return start;
    if constexpr (std::is_same_v<Gate, TopKGate>)
      start.gate.k = options_.active;
    else
      fail("moe::rate_experiment: active is ", options_.active, " for a gate that is no TopKGate, expected 0");
    start.validate("moe::rate_experiment");
    return start;
  }

  const RateOptions& options_;
  GaussianMoe<Gate> truth_;
  const Estimate& estimate_;
  Index k_;
  RateMeasurement<Gate> measurement_;
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
///   estimate   GaussianFit<Gate>(const RegressionData&, const GaussianMoe<Gate>& start): how one fit is made; called
///              from several threads
/// Starts are near the truth, so that rates are those of the maximum next to it, not of the search for one. Their noise
/// shrinks by default as in the authors' simulations; with a linear gate and an estimated temperature, whose estimate
/// is where it started, that is deceptive: use StartNoise::log_temperature = {0.2, 0}.
/// Draws are pure functions of seed, n and replication: independent over n, and the same for all truths and options.
/// Pairs of n and replication run in parallel, the largest n first; the result is the same for any number of threads.
/// A fit that does not converge, or throws, is counted in RateExperiment::failures.
/// Throws std::invalid_argument for a bad truth or options, fewer fitted experts than true ones, and gates without a
/// Voronoi loss (a bias inside of the activation). About sum(n * replications) * starts times an EM iteration times
/// 20 to 50. Memory: threads times the largest n times d.
/// Nguyen, Nguyen & Ho (arXiv:2305.03288); top-K: Nguyen et al. (arXiv:2309.13850); temperature and activation: Nguyen,
/// Akbarian & Ho (arXiv:2401.13875).
template <LikelihoodGate Gate, class Estimate>
RateExperiment rate_experiment(const GaussianMoe<Gate>& truth, const RateOptions& options, const Estimate& estimate) {
  constexpr const char* kName = "moe::rate_experiment";
  options.validate(kName);
  options.fit.validate(kName);
  truth.validate(kName);
  if (options.num_experts != 0) detail::require_experts(kName, options.num_experts, truth.num_experts());
  const detail::RateRunner<Gate, Estimate> runner(truth, options, estimate);
  std::vector<detail::RateTask> tasks;
  double work = 0;
  for (std::size_t i = 0; i < options.rows.size(); ++i)
    for (Index r = 0; r < options.replications_at(i); ++r) {
      tasks.push_back({.size = i, .replication = r});
      work += static_cast<double>(options.rows[i]);
    }
  const auto count = static_cast<Index>(tasks.size());
  detail::RateClock clock(count, work, options.progress);
  parallel_for(count, [&](Index t, Index) {
    detail::RateTask& task = tasks[static_cast<std::size_t>(count - 1 - t)];  // n ascends
    runner.run(task);
    clock.done(static_cast<double>(options.rows[task.size]));
  });
  RateExperiment result = detail::collect(tasks, options);
  result.seconds = clock.seconds();
  return result;
}

/// The same with fit_from() as the estimator.
template <LikelihoodGate Gate>
RateExperiment rate_experiment(const GaussianMoe<Gate>& truth, const RateOptions& options = {}) {
  return rate_experiment(truth, options, [&](const RegressionData& data, const GaussianMoe<Gate>& start) {
    return fit_from(data, start, options.fit);
  });
}

}  // namespace moe::inline MOE_ABI
