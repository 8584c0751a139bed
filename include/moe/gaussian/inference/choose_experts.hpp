// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <utility>
#include <vector>

#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/inference/criteria.hpp"

namespace moe::inline MOE_ABI {

/// Fits with different numbers of experts, and which of them each criterion prefers.
template <class G>
struct ExpertSweep {
  struct Row {
    GaussianFit<G> fit = {};
    Criteria criteria = {};
    /// FitFlags::interior(): no variance at the floor, and every expert holds at least d + 2 rows and has its support.
    /// Only such fits are candidates.
    bool interior = false;

    Index num_experts() const { return fit.model.num_experts(); }
  };

  std::vector<Row> rows = {};                      ///< in ascending order of the number of experts
  Index best_aic = 0, best_bic = 0, best_icl = 0;  ///< numbers of experts; 0 if no fit is interior

  /// The row with k experts. Throws std::invalid_argument if there is none.
  const Row& operator[](Index k) const {
    for (const Row& row : rows)
      if (row.num_experts() == k) return row;
    fail("moe::ExpertSweep: there is no fit with ", k, " experts");
  }
};

namespace detail {

/// The gate for k experts: a bias that is the gate's own starts at 0, of that size.
template <class G>
G gate_for(const G& gate, Index num_experts) {
  using Likelihood = GateModel<G>;
  if (!Likelihood::bias_in_gate(gate)) return gate;
  return Likelihood::with(gate, Eigen::RowVectorXd::Zero(num_experts), Likelihood::temperature(gate));
}

template <class G>
Index best_of(const ExpertSweep<G>& sweep, double Criteria::*value) {
  Index best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (const auto& row : sweep.rows)
    if (row.interior && row.criteria.*value < least) {
      least = row.criteria.*value;
      best = row.num_experts();
    }
  return best;
}

}  // namespace detail

/// Numbers of experts to try, 1 <= least <= most.
struct ExpertRange {
  Index least = 1, most = 5;
};

/// Fits models with every number of experts of a range and compares AIC, BIC and ICL. Ties go to fewer experts.
/// The criteria assume what criteria() says; AIC tends to choose too many experts, ICL prefers experts that share few
/// rows. Each fit is only as good as its starts, of which larger models need more: a log-likelihood that falls as
/// experts are added says that there were too few. Top-K gates: `least` is at least K.
/// Costs a fit per number. Throws as fit does, and for a range that is empty or begins below 1.
template <LikelihoodGate G = SoftmaxGate>
ExpertSweep<G> sweep_experts(const RegressionData& data, const ExpertRange& range, const G& gate = {},
                             const FitOptions& options = {}) {
  constexpr const char* kName = "moe::sweep_experts";
  if (range.least < 1 || range.most < range.least)
    fail(kName, ": range is ", range.least, " to ", range.most, ", expected 1 <= least <= most");
  ExpertSweep<G> result;
  for (Index k = range.least; k <= range.most; ++k) {
    typename ExpertSweep<G>::Row row{.fit = fit(data, k, detail::gate_for(gate, k), options)};
    row.criteria = criteria(row.fit, data);
    row.interior = row.fit.flags.interior();
    result.rows.push_back(std::move(row));
  }
  result.best_aic = detail::best_of(result, &Criteria::aic);
  result.best_bic = detail::best_of(result, &Criteria::bic);
  result.best_icl = detail::best_of(result, &Criteria::icl);
  return result;
}

/// For other gates: GaussianMoe says in a sentence what they lack.
template <class G>
  requires(!LikelihoodGate<G>)
ExpertSweep<G> sweep_experts(const RegressionData&, const ExpertRange&, const G& = {}, const FitOptions& = {}) {
  return {};
}

}  // namespace moe::inline MOE_ABI
