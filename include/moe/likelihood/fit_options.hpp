// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/gaussian/fit/flag_words.hpp"
#include "moe/likelihood/model.hpp"

namespace moe::inline MOE_ABI {

/// All numbers of fit_mixture(); every one has a default that suits.
struct MixtureFitOptions {
  /// Searches of 12 short runs, the three best of which go to their ends, are made until `wanted_hits` of them have
  /// ended at the best maximum, or `most_starts` short runs have been made: then the fit says not_reproduced.
  Index wanted_hits = 3;
  Index most_starts = 144;
  Index short_iterations = 10;        ///< EM iterations of a short run
  Index em_iterations = 40;           ///< of a long run before Newton's method takes over; 0: none
  Index max_iterations = 1000;        ///< all iterations of a long run
  double remaining_tolerance = 1e-9;  ///< gain still to come: half of Newton's decrement
  double ridge = 0;           ///< lambda of lambda / 2 |standardised gate coefficients|^2; none where one is active
  double variance_floor = 0;  ///< of continuous families, relative to Var(y); 0: 1e-6, or 1e-5 below 500 rows
  double support = 3;         ///< as FitOptions::support, for continuous families
  double gate_box = 500;      ///< bound of the standardised gate coefficients; > 0
  std::uint64_t seed = 1;

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(const char* function) const {
    const auto at_least = [&](const char* name, double value, double least) {
      if (!(value >= least && std::isfinite(value)))
        fail(function, ": ", name, " is ", value, ", expected a finite number >= ", least);
    };
    at_least("wanted_hits", static_cast<double>(wanted_hits), 1);
    at_least("most_starts", static_cast<double>(most_starts), 1);
    at_least("short_iterations", static_cast<double>(short_iterations), 1);
    at_least("em_iterations", static_cast<double>(em_iterations), 0);
    at_least("max_iterations", static_cast<double>(max_iterations), 1);
    at_least("remaining_tolerance", remaining_tolerance, 0);
    at_least("ridge", ridge, 0);
    at_least("variance_floor", variance_floor, 0);
    at_least("support", support, 0);
    if (!(gate_box > 0 && std::isfinite(gate_box))) fail(function, ": gate_box is ", gate_box, ", expected > 0");
  }
};

/// What happened to the fit of a mixture that a careful person wants to know.
struct MixtureFlags : FitFlags {
  /// Counts or classes of an expert have no finite maximum: some linear predictor has a standard error above 30.
  bool expert_separated = false;
  bool shape_at_bound = false;  ///< degrees of freedom, say, are at a bound: a normal expert, or nearly a spike
};

/// The flags that are set, in words.
inline std::vector<FlagWords> flag_words(const MixtureFlags& flags) {
  std::vector<FlagWords> all = flag_words(static_cast<const FitFlags&>(flags));
  if (flags.expert_separated)
    all.push_back({"expert_separated",
                   "counts or classes of an expert have no finite maximum (all 0, or told apart by a plane): its "
                   "coefficients are where nothing is gained any more"});
  if (flags.shape_at_bound)
    all.push_back({"shape_at_bound", "degrees of freedom are at a bound: a normal expert, or nearly a spike"});
  return all;
}

/// A fitted mixture and how it came about. Numbers are on the original scale of the data.
template <class F, class G>
struct MixtureFit {
  /// Experts in ascending order of the intercept of their first predictor, but for the last component of a gate that is
  /// pinned by an activation, and noise, which is last; the gate in normal form.
  MixtureRegression<F, G> model = {};
  double log_likelihood = 0;            ///< of y given x, natural logarithm
  double penalised_log_likelihood = 0;  ///< minus the ridge; what was maximised
  bool converged = false;  ///< the gain to come is within tolerance; sparse gates: no border that was tried is better
  Index iterations = 0;    ///< EM and Newton ones of the best run
  Index starts = 0;        ///< short runs that were made
  Index searches = 0;      ///< of 12 starts each
  Index hits = 0;          ///< searches that ended within 1e-3 of the best; see GaussianFit::hits
  double seconds = 0;
  double score_norm = 0;                ///< largest score per row on standardised inputs, at free coordinates
  std::vector<double> path = {};        ///< criterion per iteration of the best run: it never falls
  Eigen::RowVectorXd expert_rows = {};  ///< n_j = sum_i w_i r_ij of all components
  MixtureFlags flags = {};

  Index num_parameters = 0;  ///< free ones
  double num_rows = 0;       ///< those that the weights stand for
};

}  // namespace moe::inline MOE_ABI
