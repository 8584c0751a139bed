// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/expert/concept.hpp"

// Who of several experts should answer a row, and from which probability on: what fit_gate() decides with.
namespace moe::inline MOE_ABI::detail {

/// Which rows an expert gets right: its largest score, the first of equal ones, is that of the label.
template <class E, class S>
std::vector<std::uint8_t> right_answers(const E& expert, const ConstMatrixRef<S>& rows, std::span<const Index> labels) {
  const Step step;
  Scratch scratch;
  Matrix<S> scores(rows.rows(), expert.output_dim());
  expert.forward(rows, scores, Context(step, scratch));
  std::vector<std::uint8_t> right;
  for (Index t = 0; t < scores.rows(); ++t) {
    const S* const score = scores.row(t).data();
    right.push_back(std::max_element(score, score + scores.cols()) - score == labels[static_cast<std::size_t>(t)]);
  }
  return right;
}

inline double share(const std::vector<std::uint8_t>& of) {
  return static_cast<double>(std::ranges::count(of, 1)) / static_cast<double>(of.size());
}

/// Who should answer: the first local expert that is right where expert 0 is wrong, else expert 0.
///   right  [experts][rows]
inline std::vector<Index> gate_targets(const std::vector<std::vector<std::uint8_t>>& right) {
  std::vector<Index> targets(right[0].size(), 0);
  for (std::size_t t = 0; t < targets.size(); ++t)
    for (std::size_t e = right.size() - 1; e > 0 && !right[0][t]; --e)
      if (right[e][t]) targets[t] = static_cast<Index>(e);
  return targets;
}

/// One over the number of rows with a row's target: all targets count alike.
inline std::vector<double> balanced_weights(std::span<const Index> targets) {
  std::vector<double> weights, count(targets.empty() ? 0 : static_cast<std::size_t>(std::ranges::max(targets)) + 1);
  for (const Index target : targets) count[static_cast<std::size_t>(target)] += 1;
  for (const Index target : targets) weights.push_back(1 / count[static_cast<std::size_t>(target)]);
  return weights;
}

/// Rows in two halves, the first for the gating network and the second for its threshold: in the order of whose they
/// are, target, label and row, by turns.
inline std::pair<std::vector<Index>, std::vector<Index>> gate_halves(std::span<const Index> targets,
                                                                     std::span<const Index> labels, Index num_user) {
  std::vector<Index> order(targets.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::ranges::sort(order, {}, [&](Index t) {
    const auto at = static_cast<std::size_t>(t);
    return std::tuple(t >= num_user, -targets[at], labels[at], t);
  });
  std::pair<std::vector<Index>, std::vector<Index>> halves;
  for (std::size_t i = 0; i < order.size(); ++i) (i % 2 == 0 ? halves.first : halves.second).push_back(order[i]);
  return halves;
}

inline constexpr double kNeverLocal = 2;  // probabilities differ by 1 at most

/// A row at the gate, and what changes if its local expert answers instead of expert 0.
struct LocalAnswer {
  double margin = 0;  ///< probability of the best local expert, less that of expert 0
  Index gain = 0;     ///< right answers: -1, 0 or 1
  bool is_user = false;
};

/// The threshold on the margin that gets most rows of the user right, then most generic ones, and is then nearest to 0,
/// of those that lose at most `allowed` generic ones; kNeverLocal where none is better than that. It is 0 or in the
/// middle of two margins, and clear of them by `apart`, so that the gate, which rounds, divides the rows as this does.
inline double best_threshold(std::vector<LocalAnswer> rows, Index allowed, double apart) {
  std::ranges::sort(rows, [](const auto& a, const auto& b) { return a.margin > b.margin; });
  double best = kNeverLocal;
  Index best_user = 0, best_generic = 0, user = 0, generic = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    (rows[i].is_user ? user : generic) += rows[i].gain;  // rows 0 to i are answered by local experts
    const double above = rows[i].margin, below = i + 1 < rows.size() ? rows[i + 1].margin : -1 - 4 * apart;
    if (above - below < 4 * apart || generic < -allowed) continue;
    const double threshold = below + apart <= 0 && 0 <= above - apart ? 0 : (above + below) / 2;
    const bool better = user != best_user         ? user > best_user
                        : generic != best_generic ? generic > best_generic
                                                  : best < kNeverLocal && std::abs(threshold) < std::abs(best);
    if (better) best = threshold, best_user = user, best_generic = generic;
  }
  return best;
}

}  // namespace moe::inline MOE_ABI::detail
