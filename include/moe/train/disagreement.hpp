// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/routing/balance/token_sum.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Best class of every row of every prediction, [num_rows, num_predictions], ties to the lower class. Throws
/// std::invalid_argument for a NaN in a valid row.
template <class S>
Matrix<Index> best_classes(const char* function, const std::vector<Matrix<S>>& scores, const Step& step) {
  Matrix<Index> best = Matrix<Index>::Zero(scores.front().rows(), std::ssize(scores));
  for (Index p = 0; p < best.cols(); ++p)
    for (Index t = 0; t < best.rows(); ++t) {
      if (!step.is_valid(t)) continue;
      const auto& of_pass = scores[static_cast<std::size_t>(p)];
      const S *row = of_pass.row(t).data(), *end = row + of_pass.cols();
      if (const S* nan = std::find_if(row, end, [](S score) { return std::isnan(score); }); nan != end)
        fail(function, ": score of prediction ", p, ", row ", t, ", class ", nan - row, " is ", *nan,
             ", expected a number");
      best(t, p) = std::max_element(row, end) - row;
    }
  return best;
}

}  // namespace detail

/// How much predictions of the same tokens disagree: the share of pairs of them whose best classes differ, mean over
/// valid rows; in [0, 1], 0 without valid rows. For the passes of a stochastic gate, or the experts one by one, it says
/// how far they are from serving each other's tokens; training with symmetric_kl() brings it down.
///   scores  at least two matrices [num_tokens, num_classes]: logits or probabilities, of which only the order counts;
///           ties go to the lower class
/// Throws std::invalid_argument for fewer than two, shapes that differ, no classes, and a NaN in a valid row.
/// O(num_tokens * predictions * (num_classes + predictions)).
/// Zuo et al., "Taming sparsely activated transformer with stochastic experts", ICLR 2022 (arXiv:2110.04260).
template <class S>
double disagreement(const std::vector<Matrix<S>>& scores, const Step& step = {}) {
  constexpr const char* kName = "moe::disagreement";
  if (scores.size() < 2) fail(kName, ": ", scores.size(), " predictions, expected at least 2");
  const Index num_tokens = scores.front().rows();
  if (scores.front().cols() == 0) fail(kName, ": scores have 0 classes, expected at least 1");
  step.validate(kName, num_tokens);
  for (const Matrix<S>& of_pass : scores)
    detail::require_shape(kName, "scores", of_pass, num_tokens, scores.front().cols());
  const Index num_valid = step.num_valid(num_tokens);
  if (num_valid == 0) return 0;

  const Matrix<Index> best = detail::best_classes(kName, scores, step);
  const auto differing = detail::sum_over_tokens(num_tokens, 1, step, [&](Index t, double* pairs) {
    for (Index a = 0; a < best.cols(); ++a)
      for (Index b = 0; b < a; ++b) *pairs += best(t, a) != best(t, b) ? 1 : 0;
  });
  const auto predictions = static_cast<double>(best.cols());
  return differing[0] / (static_cast<double>(num_valid) * predictions * (predictions - 1) / 2);
}

}  // namespace moe::inline MOE_ABI
