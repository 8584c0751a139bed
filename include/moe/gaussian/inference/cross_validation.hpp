// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "moe/gaussian/pass/likelihood.hpp"

namespace moe::inline MOE_ABI {

struct CrossValidationOptions {
  Index folds = 10;        ///< from 2 to the number of rows of weight above 0
  std::uint64_t seed = 1;  ///< of who is in which fold
  FitOptions fit = {};     ///< of every fit
};

/// How well numbers of experts predict rows that they were not fitted to.
struct CrossValidation {
  struct Row {
    Index num_experts = 1;
    /// Mean of log p(y_i | x_i) over the rows, by their weights, of the fit that has not seen row i.
    double log_density = 0;
    double standard_error = 0;  ///< of that mean
    /// How far below the best number of experts: difference of the means, and its standard error, over the same rows.
    double loss = 0, loss_error = 0;
    Index unsound_fits = 0;  ///< of the folds: not FitFlags::interior()
  };
  std::vector<Row> rows = {};  ///< in ascending order of the number of experts
  Index best = 0;              ///< highest log_density; ties go to fewer experts
  Index fewest = 0;            ///< fewest experts whose loss is no more than its standard error
};

namespace detail {

/// Folds of n rows, [n]: sizes differ by one at most, rows in random order.
inline std::vector<Index> random_folds(Index n, Index folds, std::uint64_t seed) {
  const RandomField random(Purpose::User, seed, 0x666f6c64);
  std::vector<Index> fold(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) fold[static_cast<std::size_t>(i)] = i % folds;
  for (Index i = n - 1; i > 0; --i) {
    const auto other = static_cast<std::size_t>(random.below(static_cast<std::uint64_t>(i + 1), i, 0));
    std::swap(fold[static_cast<std::size_t>(i)], fold[other]);
  }
  return fold;
}

/// The rows for which keep(i).
template <class Keep>
RegressionData some_rows(const RegressionData& data, Keep&& keep) {
  std::vector<Index> rows;
  for (Index i = 0; i < data.num_rows(); ++i)
    if (keep(i)) rows.push_back(i);
  return rows_of(data, rows);
}

/// Mean of numbers by the weights of rows, and its standard error: that of sum w_i v_i / sum w_i for independent rows,
/// as of w_i rows that are alike: sd / sqrt(sum w_i).
inline std::pair<double, double> weighted_mean(const Eigen::VectorXd& values, const RegressionData& data) {
  const double total = data.total_weight();
  double mean = 0, squares = 0;
  for (Index i = 0; i < values.size(); ++i) mean += data.weight(i) * values(i) / total;
  for (Index i = 0; i < values.size(); ++i) squares += data.weight(i) * std::pow(values(i) - mean, 2);
  return {mean, std::sqrt(squares / total / (total - 1))};
}

}  // namespace detail

/// Cross-validation of the number of experts: the rows are dealt into folds at random, each fold is predicted by a fit
/// to all others, and the mean log density of what was predicted tells numbers of experts apart. It assumes nothing of
/// maxima and ranks, so it serves where the expansions behind AIC and BIC do not hold, for prediction rather than to
/// find the true number; differences are judged by their own standard errors, as all numbers predict the same rows.
/// A row of weight w is in one fold as a whole. Depends on arguments alone, not on the number of threads, unless
/// `fit.seconds` ends a search. Costs `folds` fits per number. Throws as fit does for the rows outside of a fold (of
/// few rows with a rare level its column may be constant there), for a range that is empty or begins below 1, and for
/// folds out of range. Smyth, "Model selection for probabilistic clustering using cross-validated likelihood",
/// Statistics and Computing 2000; fewest: after the one-standard-error rule of Breiman et al., "Classification and
/// regression trees", 1984, with the error of the difference in place of that of the best mean.
template <LikelihoodGate G = SoftmaxGate>
CrossValidation cross_validate(const RegressionData& data, const ExpertRange& range, const G& gate = {},
                               const CrossValidationOptions& options = {}) {
  constexpr const char* kName = "moe::cross_validate";
  data.validate(kName);
  if (range.least < 1 || range.most < range.least)
    fail(kName, ": range is ", range.least, " to ", range.most, ", expected 1 <= least <= most");
  const detail::CountedRows counted(data);
  const RegressionData& rows = counted.data();
  const Index n = rows.num_rows();
  if (!(rows.total_weight() > 1))
    fail(kName, ": weights has the sum ", rows.total_weight(), ", expected that of more than one row");
  if (options.folds < 2 || options.folds > n)
    fail(kName, ": folds is ", options.folds, ", expected 2 to the number of rows, ", n);
  const std::vector<Index> fold = detail::random_folds(n, options.folds, options.seed);
  const auto in = [&](Index f) { return [&fold, f](Index i) { return fold[static_cast<std::size_t>(i)] == f; }; };
  CrossValidation out;
  std::vector<Eigen::VectorXd> densities;
  for (Index k = range.least; k <= range.most; ++k) {
    CrossValidation::Row row{.num_experts = k};
    Eigen::VectorXd density(n);
    for (Index f = 0; f < options.folds; ++f) {
      const auto held = in(f);
      GaussianFit<G> fit;
      try {
        fit = moe::fit(detail::some_rows(rows, [&](Index i) { return !held(i); }), k, detail::gate_for(gate, k),
                       options.fit);
      } catch (const std::invalid_argument& error) {
        fail(kName, ": the rows outside of fold ", f, " of ", options.folds, ", ", k, " experts: ", error.what());
      }
      row.unsound_fits += fit.flags.interior() ? 0 : 1;
      const Eigen::VectorXd predicted = log_density(fit.model, detail::some_rows(rows, held));
      for (Index i = 0, next = 0; i < n; ++i)
        if (held(i)) density(i) = predicted(next++);
    }
    std::tie(row.log_density, row.standard_error) = detail::weighted_mean(density, rows);
    out.rows.push_back(row);
    densities.push_back(std::move(density));
  }
  const auto best = std::max_element(out.rows.begin(), out.rows.end(),
                                     [](const auto& a, const auto& b) { return a.log_density < b.log_density; });
  out.best = best->num_experts;
  const Eigen::VectorXd& highest = densities[static_cast<std::size_t>(best - out.rows.begin())];
  for (std::size_t r = 0; r < out.rows.size(); ++r)
    std::tie(out.rows[r].loss, out.rows[r].loss_error) = detail::weighted_mean(highest - densities[r], rows);
  const auto fewest =
      std::find_if(out.rows.begin(), out.rows.end(), [](const auto& row) { return row.loss <= row.loss_error; });
  out.fewest = fewest == out.rows.end() ? out.best : fewest->num_experts;  // infinite densities have no difference
  return out;
}

/// For other gates: GaussianMoe says in a sentence what they lack.
template <class G>
  requires(!LikelihoodGate<G>)
CrossValidation cross_validate(const RegressionData&, const ExpertRange&, const G& = {},
                               const CrossValidationOptions& = {}) {
  return {};
}

}  // namespace moe::inline MOE_ABI
