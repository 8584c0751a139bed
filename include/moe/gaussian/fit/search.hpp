// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/moves.hpp"
#include "moe/gaussian/fit/run.hpp"

namespace moe::inline MOE_ABI::detail {

/// What an independent search has found.
struct SearchEnd {
  Run best;
  /// The run of highest criterion, and the highest that was left to start an expert anew.
  Run highest;
  double given_up = -std::numeric_limits<double>::infinity();
  std::vector<StartReport> starts;  // criteria on standardised data; empty if the search has not been made
  Index short_runs = 0;             // of starts and moves
};

/// A search of its own: short runs from some starts, long ones from the best of them, and moves from the best end until
/// several in a row have led nowhere better. As searches know nothing of each other, an end that several of them
/// have found is one that another search will probably find, too.
template <class = WhenUsed>
class Search {
 public:
  static constexpr Index kStarts = 12;                               ///< twice each kind
  static constexpr Index kMoves = 6;                                 ///< of a round
  static constexpr int kFailures = 2;                                ///< rounds that end a search
  static constexpr Index kLeastRuns = kStarts + kFailures * kMoves;  ///< short ones

  Search(const Runner<>& runner, const Starts<>& starts, const GaussianParameters& shape)
      : runner_(runner), starts_(starts), moves_(starts), shape_(shape) {}

  SearchEnd operator()(Index search) const {
    SearchEnd end;
    std::vector<Run> runs;
    for (Index s = search * kStarts; s < (search + 1) * kStarts; ++s) {
      runs.push_back(runner_.short_run(starts_(s, shape_)));
      runs.back().start = s;
      end.starts.push_back({.kind = starts_.kind(s),
                            .short_log_likelihood = runs.back().criterion,
                            .log_likelihood = std::numeric_limits<double>::quiet_NaN()});
    }
    end.short_runs = kStarts;
    climb(runs, kLongRuns, end);
    for (const Run& run : runs) {
      StartReport& at = end.starts[static_cast<std::size_t>(run.start - search * kStarts)];
      at.log_likelihood = run.criterion;
      at.interior = run.interior;
    }
    end.best = runs.front();
    Index move = 0;
    for (int round = 0, failures = 0; round < kRounds && failures < kFailures; ++round)
      failures = improve(search, move, end) ? 0 : failures + 1;
    return end;
  }

 private:
  static constexpr std::size_t kLongRuns = 3, kLongMoves = 2;
  static constexpr int kRounds = 30;

  static bool better(const Run& a, const Run& b) { return a.better_than(b); }

  /// Takes the best of some short runs to their ends, the best of which comes first, and drops the others.
  void climb(std::vector<Run>& runs, std::size_t kept, SearchEnd& end) const {
    std::stable_sort(runs.begin(), runs.end(), better);
    for (const Run& run : runs) note(run, end);
    runs.resize(std::min(kept, runs.size()));
    for (Run& run : runs) {
      const Index start = run.start, before = run.iterations;
      run = runner_.long_run(std::move(run.model));
      run.start = start;
      run.iterations += before;
      note(run, end);
    }
    std::stable_sort(runs.begin(), runs.end(), better);
  }

  bool improve(Index search, Index& move, SearchEnd& end) const {
    std::vector<Run> runs;
    for (Index i = 0; i < kMoves; ++i) {
      runs.push_back(runner_.short_run(moves_(end.best.model, search, move++)));
      runs.back().start = end.best.start;
    }
    end.short_runs += kMoves;
    climb(runs, kLongMoves, end);
    const Run& found = runs.front();
    if (!found.better_than(end.best)) return false;
    const bool gains = found.standing() != end.best.standing() || found.criterion > end.best.criterion + kSameEnd;
    end.best = found;
    return gains;
  }

  static void note(const Run& run, SearchEnd& end) {
    end.given_up = std::max(end.given_up, run.given_up);
    if (run.criterion > end.highest.criterion) end.highest = run;
  }

  const Runner<>& runner_;
  const Starts<>& starts_;
  Moves<> moves_;
  GaussianParameters shape_;
};

}  // namespace moe::inline MOE_ABI::detail
