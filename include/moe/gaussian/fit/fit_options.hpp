// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "moe/gaussian/model/model.hpp"

namespace moe::inline MOE_ABI {

/// How the gate is improved within EM.
enum class GateStep {
  Automatic,  ///< Newton up to 200 gate parameters, else Majorise
  Newton,     ///< IRLS; with an activation Newton on (beta_0, tau) and Gauss-Newton on beta_1 in turn
  /// Fixed curvature of Boehning & Lindsay 1988, for linear gates: an iteration costs O(n k d^2), where Newton's costs
  /// O(n k^2 d^2), and there are more of them.
  Majorise,
};

/// What maximises the likelihood itself once EM is near.
enum class DirectMethod {
  Automatic,    ///< Newton up to 200 parameters, else QuasiNewton
  Newton,       ///< damped by a trust region, with the observed information
  QuasiNewton,  ///< L-BFGS
  Off           ///< EM to the end
};

/// Reports how far a fit is.
struct FitProgress {
  /// Short runs, of starts and moves. Of an adaptive search `starts` is where no search begins any more, and what was
  /// made once it has ended.
  Index starts_done = 0, starts = 0;
  Index runs_done = 0, runs = 0;  ///< long runs
  /// Best so far; from a sample of the rows scaled to all until the first long run on all of them has ended.
  double log_likelihood = -std::numeric_limits<double>::infinity();
};

/// All numbers of an estimation; every one has a default that suits.
struct FitOptions {
  /// Random starts: short runs of EM. 0: as many as it takes. Searches of 12 starts each, which know nothing of each
  /// other and go on from their best ends by moves that split and merge experts, until `wanted_hits` of them (of at
  /// least six on small data) have ended at the best maximum, or a budget ends: `most_starts`, or `seconds`.
  /// A search costs 12 short runs and 3 long ones, then rounds of 6 and 2 while that gains and twice more: at least 24
  /// and 7, at most 192 and 63.
  Index starts = 0;
  Index wanted_hits = 4;  ///< independent searches, or ends of given starts, that should agree; else not_reproduced
  /// Short runs, of starts and moves, after which an adaptive search begins no search; the first is always made.
  /// 0: 288 to 1200, fewer where they take longer.
  Index most_starts = 0;
  /// After which an adaptive search begins no search but the first; 0: no limit, else the machine has a part in the
  /// result. A search that has begun goes on to its end.
  double seconds = 0;
  Index short_iterations = 20;  ///< EM iterations of a short run
  Index short_rows =
      20'000;           ///< rows that short runs see, evenly spaced by weight, where there are more than twice as many
  Index long_runs = 0;  ///< of given starts, the best that go on to the end; 0: a tenth of them, at least 5
  Index em_iterations = 40;     ///< EM iterations of a long run before direct maximisation takes over
  Index max_iterations = 2000;  ///< all iterations of a long run
  GateStep gate_step = GateStep::Automatic;
  DirectMethod direct = DirectMethod::Automatic;
  double relative_tolerance = 1e-8;   ///< |change of l| / (1 + |l|)
  double remaining_tolerance = 1e-6;  ///< gain still to come, extrapolated (Aitken; Newton: half the decrement)
  double score_tolerance = 1e-6;      ///< largest score per row, on the standardised scale
  double ridge = 0;  ///< lambda of lambda / 2 |standardised gate coefficients|^2; >= 0; none where one expert is active
  /// Relative to Var(y); 0: 1e-6, or 1e-5 below 500 rows. True experts are below it where lines are far apart against
  /// the noise around them, as those through 0 with different slopes are at inputs far from 0: a lower one finds them.
  double variance_floor = 0;
  /// a_n of the MAP penalty -a_n sum_j (Var(y) / nu_j + log nu_j), an inverse-gamma prior whose mode is Var(y); >= 0, 0
  /// for none. For few rows: every nu_j is at least 2 a_n Var(y) / (n + 2 a_n), so that what is maximised has a
  /// maximum. 1 / n leaves estimates nearly alone, 1 / sqrt(n) still consistent. Criteria are of the likelihood without
  /// it; a fit that it moves by more than a little is no maximum of the likelihood, and has no standard errors. Chen,
  /// Tan & Zhang, "Inference for normal mixtures in mean and variance", Statistica Sinica 2008.
  double variance_penalty = 0;
  /// What an expert must rest on to be taken for more than chance, where there are two or more. Around a plane through
  /// d + 1 of the rows always lie a few more, and the likelihood rises without end as that band narrows: the "spurious
  /// local maximisers" of McLachlan & Peel, "Finite mixture models", 2000, 3.10. Asked of every expert are
  ///   n_j >= 2 (d + 2) rows, and
  ///   (n_j - d - 1) log(1 / rho_j) >= support log C(n, d + 1) if its standard deviation is rho_j < 0.2 of the widest:
  /// so improbable is it that n_j - d - 1 rows are within such a band, against the number of planes that there are to
  /// choose from (a bound on the ratio, as Hathaway, Ann. Statist. 1985, that weakens as rows support it). The factor
  /// is calibrated: with 3, BIC takes pure noise for two experts in a few per cent of samples of 30 or 50 rows. 0 asks
  /// for d + 2 rows alone.
  double support = 3;
  double gate_box = 500;  ///< bound of the standardised gate coefficients; > 0
  /// What identifies the last expert: of fit(); fit_from() has that of its model.
  LastSlope last_slope = LastSlope::Zero;
  std::uint64_t seed = 1;
  std::function<void(const FitProgress&)> progress = {};  ///< called from one thread at a time

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(const char* function) const;
};

inline void FitOptions::validate(const char* function) const {
  constexpr Index kMostRuns = 1'000'000'000;  // all of them are kept
  const auto at_least = [&](const char* name, double value, double least) {
    if (!(value >= least && std::isfinite(value)))
      fail(function, ": ", name, " is ", value, ", expected a finite number >= ", least);
  };
  at_least("starts", static_cast<double>(starts), 0);
  if (starts > kMostRuns) fail(function, ": starts is ", starts, ", expected at most ", kMostRuns);
  if (wanted_hits > kMostRuns) fail(function, ": wanted_hits is ", wanted_hits, ", expected at most ", kMostRuns);
  at_least("wanted_hits", static_cast<double>(wanted_hits), 1);
  at_least("most_starts", static_cast<double>(most_starts), 0);
  at_least("seconds", seconds, 0);
  at_least("short_iterations", static_cast<double>(short_iterations), 0);
  at_least("short_rows", static_cast<double>(short_rows), 100);
  at_least("long_runs", static_cast<double>(long_runs), 0);
  at_least("em_iterations", static_cast<double>(em_iterations), 0);
  at_least("max_iterations", static_cast<double>(max_iterations), 1);
  at_least("relative_tolerance", relative_tolerance, 0);
  at_least("remaining_tolerance", remaining_tolerance, 0);
  at_least("score_tolerance", score_tolerance, 0);
  at_least("ridge", ridge, 0);
  at_least("support", support, 0);
  at_least("variance_floor", variance_floor, 0);
  at_least("variance_penalty", variance_penalty, 0);
  if (!(gate_box > 0 && std::isfinite(gate_box))) fail(function, ": gate_box is ", gate_box, ", expected > 0");
}

namespace detail {

/// The floor of variances, relative to Var(y), that an option asks for; 0 is the default.
inline double variance_floor_of(double option, double num_rows) {
  if (option > 0) return option;
  return num_rows < 500 ? 1e-5 : 1e-6;
}

/// Is a variance at the floor? Both on standardised data.
inline bool at_variance_floor(const GaussianParameters& model, double floor) {
  return model.variance.minCoeff() <= floor * (1 + 1e-9);
}

}  // namespace detail

/// What happened to a fit that a careful person wants to know.
struct FitFlags {
  bool separated = false;  ///< the gate separates: made infinitely steep, it loses nothing of the criterion
  bool at_box = false;     ///< a gate coefficient is at gate_box, or a temperature at 1e-4 or 1e4: no maximum in them
  bool at_floor = false;   ///< a variance is at the floor: the likelihood is unbounded there
  bool small_expert = false;  ///< an expert holds less than 5 (d + 2) rows
  bool revived = false;       ///< an expert without rows was started anew
  bool dead_expert = false;   ///< an expert holds less than d + 2 rows at the end
  bool unsupported = false;   ///< an expert may well be chance: too few rows, or too narrow for them (support)
  bool decreased = false;     ///< an iteration could not improve though its score is not small
  bool singular = false;      ///< the observed information has no full rank at the end
  /// Fewer than wanted_hits searches ended there (of given starts with fewer long runs: not all of them did), so a
  /// better maximum may well exist.
  bool not_reproduced = false;
  bool discarded = false;  ///< an end of higher likelihood was given up: see GaussianFit::discarded_log_likelihood
  /// The gate sees beta_1 . x without a bias of its own (see GateForm), and x = 0 is farther from the mean of x than
  /// every row: centred inputs would be another, richer model.
  bool far_origin = false;

  /// A variance is at the floor, or an expert holds less than d + 2 rows.
  bool collapsed() const { return at_floor || dead_expert; }
  /// No variance is at the floor, and every expert holds at least d + 2 rows and has its support.
  bool interior() const { return !collapsed() && !unsupported; }
};

/// One of the starts.
struct StartReport {
  const char* kind = "";            ///< how it began
  double short_log_likelihood = 0;  ///< criterion after the short run
  double log_likelihood = 0;        ///< criterion after the long run, NaN without one
  bool interior = false;            ///< after the long run: FitFlags::interior()
};

/// A fitted model and how it came about. Numbers are on the original scale of the data.
template <class G>
struct GaussianFit {
  /// Experts in ascending order of intercept, but for the last of an activation gate whose slope is pinned at 0; the
  /// gate in normal form.
  GaussianMoe<G> model = {};
  double log_likelihood = 0;            ///< of y given x, natural logarithm
  double penalised_log_likelihood = 0;  ///< minus ridge and variance penalties; what was maximised
  /// The highest penalised log-likelihood that was found and not taken, as a variance was at the floor there or an
  /// expert had too few rows (FitOptions::support); NaN if nothing was higher than the result. Where a part of y
  /// repeats itself exactly, an expert on it may be the truth: give that part a model of its own.
  double discarded_log_likelihood = std::numeric_limits<double>::quiet_NaN();
  bool converged = false;  ///< all three tolerances are met; sparse gates: or no border that was tried is better
  Index iterations = 0;    ///< EM and direct ones of the best run
  Index starts = 0;        ///< random starts that were made
  Index searches = 0;      ///< independent searches of 12 starts each; of given starts the long runs
  /// Searches that ended within 1e-3 of the best; ends on a sample of the rows that are one agree on all rows, too.
  /// Agreement is no proof: a higher maximum that one search in twenty meets is missed by most fits.
  Index hits = 0;
  double seconds = 0;
  double score_norm = 0;                ///< largest score per row, standardised scale, at free coordinates
  std::vector<double> path = {};        ///< criterion per iteration of the best run
  Eigen::RowVectorXd expert_rows = {};  ///< n_j = sum_i r_ij
  FitFlags flags = {};
  std::vector<StartReport> runs = {};

  Index num_parameters = 0;   ///< free ones
  Index num_rows = 0;         ///< those of weight above 0
  double total_weight = 0;    ///< rows that their weights stand for
  double variance_floor = 0;  ///< FitOptions::variance_floor, which standard_errors() has to know
};

}  // namespace moe::inline MOE_ABI
