// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>

#include "moe/gaussian/fit/fitting.hpp"
#include "moe/gaussian/pass/likelihood.hpp"

namespace moe::inline MOE_ABI {

/// Maximum likelihood (or penalised likelihood) for a Gaussian mixture of experts, by short EM runs from random starts,
/// long runs of EM and Newton's method from the best of them, and moves that split and merge experts of the best end,
/// in independent searches until several agree (FitOptions::starts; a given number of starts is made without moves).
/// Among the ends, those whose variances are above the floor and whose experts have their support (FitOptions::support)
/// come first: the likelihood itself is unbounded where an expert interpolates a few rows; a higher end that was given
/// up for that is told (discarded_log_likelihood), and so is a best end that too few have reached (not_reproduced). All
/// that happened is in the result; a fit that does not converge is no error. The result depends on data, options and
/// seed alone, not on the number of threads, unless `seconds` ends the search. A short iteration costs O(n k d^2).
/// By default small data (n k (d + 2) < 7000) get six searches or more, larger ones as few as agree, four: at least 96
/// short and 28 long runs, three times that before the search gives up, and more where moves lead on and on.
/// Extra memory: one copy of the data. Throws std::invalid_argument for data that are not finite, constant or linearly
/// dependent columns of x among those that the experts or the gate read, weights with a sum below the number of
/// parameters, num_experts < 1, and gates or options out of range.
template <LikelihoodGate G = SoftmaxGate>
GaussianFit<G> fit(const RegressionData& data, Index num_experts, const G& gate = {}, const FitOptions& options = {}) {
  const auto started = std::chrono::steady_clock::now();
  constexpr const char* kName = "moe::fit";
  detail::Fitting<G> fitting(kName, data, detail::shape_of(kName, data, num_experts, gate, options), options);
  GaussianFit<G> fit;
  fitting.report_run(fitting.search(fit), fit);
  fit.starts = static_cast<Index>(fit.runs.size());
  const Index wanted = options.starts > 0 ? std::min(options.wanted_hits, fit.searches) : options.wanted_hits;
  fit.flags.not_reproduced = num_experts > 1 && fit.hits < wanted;
  fit.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return fit;
}

/// For other gates: GaussianMoe says in a sentence what they lack.
template <class G>
  requires(!LikelihoodGate<G>)
GaussianFit<G> fit(const RegressionData&, Index, const G& = {}, const FitOptions& = {}) {
  return {};
}

/// The same from one given model, by a single long run: for simulations that start near the truth, and for refits.
/// The inputs of the gate and the experts, and whether there is an intercept, are those of the model. Errors as for
/// fit, for a model that is bad or not in normal form, and for data that say other inputs.
template <LikelihoodGate G>
GaussianFit<G> fit_from(const RegressionData& data, const GaussianMoe<G>& start, const FitOptions& options = {}) {
  const auto started = std::chrono::steady_clock::now();
  detail::require_normal_form("moe::fit_from", start);
  if ((data.gate_inputs && data.gate_inputs != start.gate_inputs) ||
      (data.expert_inputs && data.expert_inputs != start.expert_inputs))
    fail(
        "moe::fit_from: the data say other inputs of the gate or the experts than the model, expected the same or "
        "none");
  if (data.expert_intercept == Intercept::Zero && start.expert_intercept == Intercept::Free)
    fail("moe::fit_from: the data say no intercept and the model has one, expected the same (expert_intercept)");
  detail::Evaluation<G>::check("moe::fit_from", start, data);
  const detail::Fitting<G> fitting("moe::fit_from", data, start, options);
  GaussianFit<G> fit;
  fitting.report_run(fitting.from(start), fit);
  fit.starts = fit.searches = fit.hits = 1;
  fit.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return fit;
}

}  // namespace moe::inline MOE_ABI
