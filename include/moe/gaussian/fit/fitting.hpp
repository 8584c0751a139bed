// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <numeric>

#include "moe/gaussian/fit/search.hpp"
#include "moe/gaussian/fit/separation.hpp"
#include "moe/gaussian/model/row_counts.hpp"
#include "moe/gaussian/pass/held_intercept.hpp"
#include "moe/gaussian/pass/standardise.hpp"

// Long, as given starts, independent searches and samples of the rows end in the same report.
namespace moe::inline MOE_ABI::detail {

/// Everything that is fixed during a fit, of data that have been validated.
template <class G>
class Fitting {
 public:
  using Inner = typename GateModel<G>::Inner;
  static constexpr bool kLinear = std::is_same_v<Inner, Identity>;

  Fitting(const char* function, const RegressionData& data, GaussianMoe<G> shape, const FitOptions& options)
      : Fitting(function, CountedRows(data), std::move(shape), options) {}

  /// The best end, how many starts there were, and how many searches ended there.
  Run search(GaussianFit<G>& fit) {
    if (at_.num_experts == 1) return from_starts(1, fit);  // a line has one maximum
    if (options_.starts > 0) return from_starts(options_.starts, fit);
    return adaptive(fit);
  }

  /// One long run from given parameters on the data's scale.
  Run from(GaussianParameters start) const {
    to_standard_scale(by_, start);
    return runner_.long_run(std::move(start));
  }

  void report_run(const Run& run, GaussianFit<G>& fit) const {
    fit.model = GaussianMoe<G>(run.model, shape_.gate);
    fit.log_likelihood = on_data_scale(run.criterion + objective_.penalty()(run.model, at_));
    fit.penalised_log_likelihood = on_data_scale(run.criterion);
    to_data_scale(by_, fit.model);
    fit.expert_rows = run.expert_rows;
    sort_experts(fit);
    fit.converged = run.converged;
    fit.iterations = run.iterations;
    fit.score_norm = run.score_norm;
    fit.flags = run.flags;
    const double highest = std::max(discarded_, run.given_up);
    fit.flags.discarded = highest > run.criterion + kSameEnd;
    if (fit.flags.discarded) fit.discarded_log_likelihood = on_data_scale(highest);
    fit.flags.far_origin = keeps_origin(shape_) && origin_is_far(rows_, at_.gate_inputs);
    const Separation separation(objective_, run.model);
    fit.flags.separated = separation.exists() || (run.flags.at_box && separation.exists_beyond(bounds_.gate_box));
    for (const double value : run.path) fit.path.push_back(on_data_scale(value));
    fit.num_parameters = at_.size();
    fit.num_rows = rows_.num_rows();
    fit.total_weight = rows_.total_weight();
    fit.variance_floor = options_.variance_floor;
  }

  double on_data_scale(double criterion) const { return criterion - rows_.total_weight() * std::log(by_.y_scale); }

 private:
  Fitting(const char* function, const CountedRows& counted, GaussianMoe<G> shape, const FitOptions& options)
      : options_((options.validate(function), options)),
        shape_(std::move(shape)),
        form_(shape_.form()),
        at_(moe::layout(shape_)),
        by_(standardised(function, counted.data())),
        rows_((check(function, counted.data()), counted.data()), by_),
        objective_(rows_, at_, form_, {.ridge = ridge(), .map = options.variance_penalty}),
        bounds_{.variance_floor = variance_floor_of(options.variance_floor, rows_.total_weight()),
                .gate_box = options.gate_box},
        starts_(rows_, at_, form_, Starts<>::template function<Inner>(), options.seed),
        runner_(objective_, bounds_, options_, starts_) {
    if (rows_.num_rows() > 2 * options.short_rows) sample_ = std::make_unique<Sample>(counted.data(), *this);
  }

  /// Also writes the origin into the layout, and the unit of lengths into the form of the gate, and into a free
  /// temperature of starts.
  Standardisation standardised(const char* function, const RegressionData& data) {
    Standardisation by = standardisation_of(function, data, keeps_origin(shape_), at_);
    hold_origin(by, at_);
    if (form_.score.is_product()) return by;
    if (options_.ridge != 0)
      fail(function, ": ridge is ", options_.ridge, ", expected 0 for directions and centres, which 0 is no middle of");
    form_.score.unit = by.gate_unit;
    if (GateModel<G>::kFreeTemperature && form_.score.kind == GateScoreKind::Distance)
      shape_.temperature = by.gate_unit;
    return by;
  }

  /// Short runs from all starts, long runs from the best of them; the best first.
  Run from_starts(Index count, GaussianFit<G>& fit) {
    std::vector<StartReport>& reports = fit.runs;
    std::vector<Run> runs(static_cast<std::size_t>(count));
    reports.resize(runs.size());
    progress_.starts = count;
    for_each_run(sample_ ? options_.short_rows : rows_.num_rows(), count, [&](Index s) {
      Run& run = runs[static_cast<std::size_t>(s)];
      run = (sample_ ? sample_->runner : runner_).short_run(starts_(s, shape_));
      run.start = s;
      run.criterion *= scale();
      reports[static_cast<std::size_t>(s)] = {.kind = starts_.kind(s),
                                              .short_log_likelihood = on_data_scale(run.criterion),
                                              .log_likelihood = std::numeric_limits<double>::quiet_NaN()};
      report([&](FitProgress& p) { ++p.starts_done; }, run.criterion);
    });
    sort(runs);
    const Index chosen = options_.long_runs > 0 ? options_.long_runs : std::max<Index>(5, count / 10);
    drop(runs, static_cast<std::size_t>(std::min(chosen, count)));
    fit.searches = std::ssize(runs);
    if (sample_) {
      refine_on_sample(runs);
      on_all_rows(runs, runs.size(), fit);
    } else {
      climb(runs, reports);
      sort(runs);
      fit.hits = count_hits(runs, runs.front());
    }
    finish(runs);
    return std::move(runs.front());
  }

  /// Independent searches until enough agree, in the order of their numbers: threads beyond what is needed at least
  /// run ahead, and what they find counts only if the searches before it do not end the matter.
  Run adaptive(GaussianFit<G>& fit) {
    const auto began = std::chrono::steady_clock::now();
    const auto late = [&](Index search) {
      const std::chrono::duration<double> past = std::chrono::steady_clock::now() - began;
      return options_.seconds > 0 && search > 0 && past.count() > options_.seconds;
    };
    const Index rows = sample_ ? options_.short_rows : rows_.num_rows();
    const double each = static_cast<double>(rows * at_.num_experts * (at_.input_dim + 2));
    const Index most = most_starts(each), ahead = rows > kRowsInParallel ? 1 : num_workers();
    const Index fewest = each * kFewest * Search<>::kLeastRuns < kCheap ? kFewest : 1;
    const Search<> search(sample_ ? sample_->runner : runner_, starts_, shape_);
    std::vector<SearchEnd> ends, group;
    Index made = 0;
    progress_.starts = most;
    for (bool more = true; more;) {
      const Index first = std::ssize(ends), needed = std::max(options_.wanted_hits - fit.hits, fewest - first);
      const Index affordable = (most - made - 1) / Search<>::kLeastRuns + 1;
      group.assign(static_cast<std::size_t>(std::min({std::max(needed, ahead), affordable, kGroup})), {});
      for_each_run(rows, std::ssize(group), [&](Index s) {
        if (late(first + s)) return;
        SearchEnd& end = group[static_cast<std::size_t>(s)];
        end = search(first + s);
        report([&](FitProgress& p) { p.starts_done += end.short_runs; }, scale() * end.best.criterion);
      });
      for (SearchEnd& end : group) {
        more = more && !end.starts.empty();  // else it was late
        if (!more) break;
        made += end.short_runs;
        ends.push_back(std::move(end));
        fit.hits = hits_of(ends);
        more = (fit.hits < options_.wanted_hits || std::ssize(ends) < fewest) && made < most;
      }
    }
    fit.searches = std::ssize(ends);
    report([&](FitProgress& p) { p.starts = p.starts_done = made; }, -std::numeric_limits<double>::infinity());
    report_starts(ends, fit);
    note_highest(ends);
    std::vector<Run> runs;
    for (SearchEnd& end : ends) runs.push_back(std::move(end.best));
    sort(runs);
    if (sample_) on_all_rows(runs, kRefined, fit);
    finish(runs);
    return std::move(runs.front());
  }

  /// Short runs, of starts and moves, after which no search begins, where each costs rows * experts * (d + 2).
  Index most_starts(double each) const {
    if (options_.most_starts > 0) return options_.most_starts;
    return static_cast<Index>(std::clamp(kAffordable / each, kLeastBudget, kMostBudget));
  }

  static bool same_end(const Run& a, const Run& b) {
    return a.standing() == b.standing() && std::abs(a.criterion - b.criterion) < kSameEnd;
  }

  static Index hits_of(const std::vector<SearchEnd>& ends) {
    const auto worse = [](const SearchEnd& a, const SearchEnd& b) { return b.best.better_than(a.best); };
    const Run& best = std::max_element(ends.begin(), ends.end(), worse)->best;
    return std::count_if(ends.begin(), ends.end(), [&](const SearchEnd& end) { return same_end(end.best, best); });
  }

  static Index count_hits(const std::vector<Run>& runs, const Run& best) {
    return std::count_if(runs.begin(), runs.end(), [&](const Run& run) { return same_end(run, best); });
  }

  /// From criteria of what short runs see to those of all rows.
  double scale() const { return sample_ ? rows_.total_weight() / sample_->rows.total_weight() : 1; }

  void report_starts(const std::vector<SearchEnd>& ends, GaussianFit<G>& fit) const {
    for (const SearchEnd& end : ends)
      for (StartReport at : end.starts) {
        at.short_log_likelihood = on_data_scale(scale() * at.short_log_likelihood);
        at.log_likelihood = sample_ ? std::numeric_limits<double>::quiet_NaN() : on_data_scale(at.log_likelihood);
        fit.runs.push_back(at);
      }
  }

  void note_highest(const std::vector<SearchEnd>& ends) {
    if (!sample_) {
      for (const SearchEnd& end : ends) discarded_ = std::max({discarded_, end.highest.criterion, end.given_up});
      return;
    }
    const auto highest = std::max_element(ends.begin(), ends.end(), [](const SearchEnd& a, const SearchEnd& b) {
      return a.highest.criterion < b.highest.criterion;
    });
    discarded_ = std::max(discarded_, objective_.value(highest->highest.model));
  }

  /// Takes the best of different ends on the sample, sorted, to the maxima on all rows; hits go with them.
  void on_all_rows(std::vector<Run>& runs, std::size_t most, GaussianFit<G>& fit) {
    std::vector<Run> different;
    std::vector<Index> hits;
    for (Run& run : runs) {
      if (different.empty() || !same_end(run, different.back())) {
        if (different.size() == most) break;
        different.push_back(std::move(run));
        hits.push_back(0);
      }
      ++hits.back();
    }
    runs = std::move(different);
    climb(runs, fit.runs);
    const auto better = [](const Run& a, const Run& b) { return a.better_than(b); };
    const Run best = *std::min_element(runs.begin(), runs.end(), better);
    fit.hits = 0;
    for (std::size_t r = 0; r < runs.size(); ++r)
      if (same_end(runs[r], best)) fit.hits += hits[r];
    sort(runs);
  }

  /// Long runs on all rows.
  void climb(std::vector<Run>& runs, std::vector<StartReport>& reports) {
    progress_.runs = static_cast<Index>(runs.size());
    for_each_run(rows_.num_rows(), progress_.runs, [&](Index r) {
      Run& run = runs[static_cast<std::size_t>(r)];
      const Index start = run.start, before = run.iterations;
      run = runner_.long_run(std::move(run.model));
      run.start = start;
      run.iterations += before;
      StartReport& at = reports[static_cast<std::size_t>(start)];
      at.log_likelihood = on_data_scale(run.criterion);
      at.interior = run.interior;
      report([&](FitProgress& p) { ++p.runs_done; }, run.criterion);
    });
  }

  /// The last remedies, of sorted runs.
  void finish(std::vector<Run>& runs) {
    if (ridge() > 0 && kLinear) try_other_pins(runs.front());
    for (std::size_t r = 1; r < runs.size(); ++r) discard(runs[r]);
  }

  /// Evenly spaced rows, by their weights, for the short runs of large data: they rank starts as well, and cost a
  /// fraction.
  struct Sample {
    Sample(const RegressionData& data, const Fitting& f)
        : rows(thinned(data, f.options_.short_rows), f.by_),
          objective(rows, f.at_, f.form_, f.objective_.penalty()),
          runner(objective, f.bounds_, f.options_, f.starts_) {}
    RowBlocks rows;
    ObjectiveOf<Inner> objective;
    Runner<> runner;
  };

  static RegressionData thinned(const RegressionData& data, Index count) {
    if (data.weighted()) {
      const RowCounts drawn =
          proportional_rows(data.num_rows(), data.total_weight(), count, [&](Index i) { return data.weights(i); });
      RegressionData part = rows_of(data, drawn.rows);
      part.weights = Eigen::Map<const Eigen::VectorXd>(drawn.counts.data(), std::ssize(drawn.counts));
      return part;
    }
    std::vector<Index> rows;
    for (Index i = 0; i < count; ++i) rows.push_back(i * (data.num_rows() / count));
    return rows_of(data, rows);
  }

  /// The weights of a top-1 gate are those of any multiple of it: a ridge would take it to 0, where ranks lose digits.
  double ridge() const { return form_.active > 1 ? options_.ridge : 0; }

  void check(const char* function, const RegressionData& data) const {
    if (data.total_weight() < static_cast<double>(at_.size()))
      fail(function, ": there are ", data.total_weight(), data.weighted() ? " rows by their weights" : " rows",
           ", expected at least as many as parameters, ", at_.size());
    require_independent_columns(function, data, by_, at_.expert_inputs);
    if (at_.num_experts > 1 && at_.gate_inputs != at_.expert_inputs)
      require_independent_columns(function, data, by_, at_.gate_inputs);
  }

  /// Over runs in parallel while a run is small, in their order, as time may end them; else one run after the other
  /// with its rows in parallel.
  template <class F>
  void for_each_run(Index num_rows, Index count, F&& f) const {
    if (num_rows <= kRowsInParallel && count > 1) return parallel_in_order(count, [&](Index r, Index) { f(r); });
    for (Index r = 0; r < count; ++r) f(r);
  }

  template <class Count>
  void report(Count&& count, double criterion) {
    if (!options_.progress) return;
    const std::lock_guard lock(mutex_);
    const bool samples = sample_ && progress_.runs_done == 0;  // do not compare with all rows
    count(progress_);
    progress_.starts = std::max(progress_.starts, progress_.starts_done);
    const double value = on_data_scale(criterion);
    if (value > progress_.log_likelihood || (samples && progress_.runs_done > 0)) progress_.log_likelihood = value;
    options_.progress(progress_);
  }

  static void sort(std::vector<Run>& runs) {
    std::stable_sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.better_than(b); });
  }

  /// Remembers the criterion of a run that may not be the result.
  void discard(const Run& run) { discarded_ = std::max({discarded_, run.criterion, run.given_up}); }  // not NaN

  /// Keeps the first of the short runs, and remembers the highest: also long runs may end below where they began, where
  /// an expert is started anew or borders are moved. On a sample of the rows the highest of the others counts, by its
  /// criterion on all rows.
  void drop(std::vector<Run>& runs, std::size_t kept) {
    const auto first = runs.begin() + (sample_ ? static_cast<std::ptrdiff_t>(kept) : 0);
    const auto highest =
        std::max_element(first, runs.end(), [](const Run& a, const Run& b) { return a.criterion < b.criterion; });
    if (highest != runs.end()) {
      if (sample_) highest->criterion = objective_.value(highest->model);
      discard(*highest);
    }
    runs.resize(kept);
  }

  /// Takes the runs to the maxima of the sample.
  void refine_on_sample(std::vector<Run>& runs) const {
    for_each_run(options_.short_rows, static_cast<Index>(runs.size()), [&](Index r) {
      Run& run = runs[static_cast<std::size_t>(r)];
      const Index start = run.start, before = run.iterations;
      run = sample_->runner.long_run(std::move(run.model));
      run.start = start;
      run.iterations += before;
    });
    sort(runs);
  }

  /// The ridge weighs gate coefficients relative to the pinned expert, so which one is pinned matters.
  void try_other_pins(Run& best) {
    const Index last = at_.num_experts - 1;
    const Run original = best;
    for (Index j = 0; j < last; ++j) {
      std::vector<Index> order(static_cast<std::size_t>(last + 1));
      std::iota(order.begin(), order.end(), Index{0});
      std::swap(order[static_cast<std::size_t>(j)], order.back());
      GaussianParameters m = permuted(original.model, order);
      m.gate_slope.rowwise() -= Eigen::RowVectorXd(m.gate_slope.row(last));
      m.gate_bias.array() -= double(m.gate_bias(last));
      Run run = runner_.long_run(std::move(m));
      run.start = original.start;
      run.iterations += original.iterations;
      if (run.better_than(best)) std::swap(best, run);
      discard(run);
    }
  }

  /// Ascending intercepts, or first slopes where there are none, among the experts that may change places: a slope
  /// pinned at 0 stays with the last one.
  void sort_experts(GaussianFit<G>& fit) const {
    const bool all = kLinear || fit.model.last_slope == LastSlope::Free;
    std::vector<Index> order(static_cast<std::size_t>(at_.num_experts));
    std::iota(order.begin(), order.end(), Index{0});
    std::stable_sort(order.begin(), all ? order.end() : order.end() - 1,
                     [&](Index a, Index b) { return first_of(fit.model, a) < first_of(fit.model, b); });
    const Eigen::RowVectorXd rows = fit.expert_rows;
    for (std::size_t i = 0; i < order.size(); ++i) fit.expert_rows(static_cast<Index>(i)) = rows(order[i]);
    fit.model = permuted(fit.model, order);
    normalise(fit.model);
  }

  double first_of(const GaussianParameters& m, Index expert) const {
    return at_.has_intercept() ? m.intercept(expert) : m.slope(expert, at_.expert_input(0));
  }

  static constexpr Index kFewest = 6, kGroup = 64;  ///< searches that small data always get; most that run at once
  static constexpr double kLeastBudget = 288, kMostBudget = 1200;  ///< short runs: of 12 easy searches, and of 50
  static constexpr double kAffordable = 1.2e7, kCheap = 1e6;       ///< rows * experts * (d + 2) of all short runs
  static constexpr std::size_t kRefined = 5;         ///< ends on a sample that an adaptive search takes to all rows
  static constexpr Index kRowsInParallel = 100'000;  ///< of a run; with fewer, runs are parallel

  FitOptions options_;
  GaussianMoe<G> shape_;
  GateForm form_;
  ParameterLayout at_;
  Standardisation by_;
  RowBlocks rows_;
  ObjectiveOf<Inner> objective_;
  Bounds bounds_;
  Starts<> starts_;
  Runner<> runner_;
  std::unique_ptr<Sample> sample_;
  std::mutex mutex_;
  FitProgress progress_;
  double discarded_ = -std::numeric_limits<double>::infinity();
};

template <class G>
GaussianMoe<G> shape_of(const char* function, const RegressionData& data, Index num_experts, const G& gate,
                        const FitOptions& options) {
  if (num_experts < 1) fail(function, ": num_experts is ", num_experts, ", expected at least 1");
  data.validate(function);
  GaussianMoe<G> shape = GaussianMoe<G>::zero(num_experts, data.input_dim(), gate);
  if (!ScoredInner<typename GateModel<G>::Inner>) shape.last_slope = options.last_slope;
  shape.gate_inputs = data.gate_inputs;
  shape.expert_inputs = data.expert_inputs;
  shape.expert_intercept = data.expert_intercept;
  shape.validate(function);
  return shape;
}

}  // namespace moe::inline MOE_ABI::detail
