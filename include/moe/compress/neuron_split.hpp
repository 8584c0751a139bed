// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/core/serial_product.hpp"
#include "moe/expert/stage/hidden_rows.hpp"
#include "moe/expert/stage/staged_expert.hpp"
#include "moe/numeric/balanced_assignment.hpp"
#include "moe/numeric/k_means.hpp"

// Which hidden units of a dense expert go together, so that it becomes a mixture: see dense_to_mixture().
namespace moe::inline MOE_ABI {

/// Hidden units of an expert, cut into parts. Those of snake_split() and the like stand in one part or are shared; a
/// mask for each of several domains (domain_split()) may have units of another, and leave some out.
struct NeuronSplit {
  std::vector<std::vector<Index>> parts = {};  ///< ids of each part, ascending
  std::vector<Index> shared = {};              ///< what every token needs, ascending, in no part

  Index num_parts() const { return std::ssize(parts); }
  /// The units of a part and the shared ones, ascending: what an expert of the part alone is made of.
  std::vector<Index> with_shared(Index part) const {
    if (part < 0 || part >= num_parts())
      fail("moe::NeuronSplit::with_shared: part is ", part, ", expected one below ", num_parts());
    const std::vector<Index>& own = parts[static_cast<std::size_t>(part)];
    std::vector<Index> units;
    std::ranges::merge(own, shared, std::back_inserter(units));
    return units;
  }
};

/// How hidden units are cut.
struct SplitOptions {
  Index num_parts = 8;     ///< of sizes that differ by one at most; >= 1
  Index num_shared = 0;    ///< units, those of the highest scores, that go to NeuronSplit::shared
  std::uint64_t seed = 0;  ///< of draws
  Index rounds = 100;      ///< of balanced k-means at most; >= 1
};

namespace detail {

inline void require_neuron_scores(const char* function, std::span<const double> scores, const SplitOptions& options) {
  for (std::size_t j = 0; j < scores.size(); ++j)
    if (!std::isfinite(scores[j]))
      fail(function, ": the score of unit ", j, " is ", scores[j], ", expected a finite number");
  const Index hidden = std::ssize(scores);
  if (options.num_parts < 1) fail(function, ": num_parts is ", options.num_parts, ", expected at least 1");
  if (options.num_shared < 0 || options.num_shared > hidden - options.num_parts)
    fail(function, ": num_shared is ", options.num_shared, " and num_parts ", options.num_parts,
         ", expected a unit of ", hidden, " for each part");
}

/// Ids of units, the highest score first; ties go to the lower id.
inline std::vector<Index> units_by_score(std::span<const double> scores) {
  std::vector<Index> order(scores.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](Index j) { return scores[static_cast<std::size_t>(j)]; });
  return order;
}

inline NeuronSplit sorted(NeuronSplit split) {
  for (std::vector<Index>& part : split.parts) std::ranges::sort(part);
  std::ranges::sort(split.shared);
  return split;
}

/// Takes the shared units off the front of `order`.
inline NeuronSplit begin_split(std::vector<Index>& order, const SplitOptions& options) {
  NeuronSplit split{.parts = std::vector<std::vector<Index>>(static_cast<std::size_t>(options.num_parts)),
                    .shared = {order.begin(), order.begin() + options.num_shared}};
  order.erase(order.begin(), order.begin() + options.num_shared);
  return split;
}

}  // namespace detail

/// |a_j(x)| of every hidden unit j of an expert, an Mlp or a Glu, for every row x: [num_rows, hidden_dim], a what its
/// second matrix reads. Throws std::invalid_argument for rows of another width. 2 * num_rows * num_parameters
/// operations, and the memory of a training pass.
template <class E>
  requires(std::tuple_size_v<decltype(E::kStageNames)> == 2)
Matrix<typename E::Scalar> hidden_activity(const E& expert, const MatrixView<typename E::Scalar>& rows) {
  using S = typename E::Scalar;
  detail::require_shape("moe::hidden_activity", "rows", rows, rows.rows(), expert.input_dim());
  const Step step;
  Scratch scratch;
  typename E::Tape tape;
  Matrix<S> out(rows.rows(), expert.output_dim()), activity(rows.rows(), expert.hidden_dim());
  expert.forward(rows, out, Context(step, scratch), tape);
  const Index offset[] = {0, rows.rows()};
  RowBuffer<S> memory;
  const auto hidden = detail::hidden_rows<E, 0>(
      {offset, 1}, [&](Index) -> const E& { return expert; }, tape.stages, memory);
  for (Index r = 0; r < rows.rows(); ++r)
    for (Index j = 0; j < activity.cols(); ++j) activity(r, j) = std::abs(hidden.row(r)[j]);
  return activity;
}

/// Mean over rows of an activity [num_rows, hidden_dim]: how much a unit is used. Those of several tasks may be added.
/// Throws std::invalid_argument without rows, and for a number that is not finite.
template <class S>
std::vector<double> neuron_scores(const Matrix<S>& activity) {
  if (activity.rows() < 1) fail("moe::neuron_scores: 0 rows, expected at least 1");
  if (!activity.allFinite()) fail("moe::neuron_scores: an activity is not finite, expected finite numbers");
  const Eigen::VectorXd mean = activity.template cast<double>().colwise().mean().transpose();
  return {mean.data(), mean.data() + mean.size()};
}

/// Parts of like sums of scores: units are dealt out from the highest score on, to the parts in turn, forth and back.
/// With 8 units in order and 2 parts {0, 3, 4, 7} and {1, 2, 5, 6}; where the parts come out even, sums of scores >= 0
/// differ by at most the largest. Ties go to the lower id. Throws std::invalid_argument for scores that are not finite,
/// and unless every part gets a unit.
/// He et al., "Understanding and harnessing sparsity in unified multimodal models", 2025.
inline NeuronSplit snake_split(std::span<const double> scores, const SplitOptions& options) {
  detail::require_neuron_scores("moe::snake_split", scores, options);
  std::vector<Index> order = detail::units_by_score(scores);
  NeuronSplit split = detail::begin_split(order, options);
  for (Index i = 0; i < std::ssize(order); ++i) {
    const Index turn = i / options.num_parts, place = i % options.num_parts;
    const Index part = turn % 2 == 0 ? place : options.num_parts - 1 - place;
    split.parts[static_cast<std::size_t>(part)].push_back(order[static_cast<std::size_t>(i)]);
  }
  return detail::sorted(std::move(split));
}

/// Parts of units drawn at random; shared are still those of the highest scores. What other splits are to be better
/// than. A function of the arguments alone. Throws std::invalid_argument as snake_split().
inline NeuronSplit random_split(std::span<const double> scores, const SplitOptions& options) {
  detail::require_neuron_scores("moe::random_split", scores, options);
  std::vector<Index> order = detail::units_by_score(scores);
  NeuronSplit split = detail::begin_split(order, options);
  const RandomField random(Purpose::Draw, options.seed);
  for (Index i = std::ssize(order) - 1; i > 0; --i)
    std::swap(order[static_cast<std::size_t>(i)],
              order[static_cast<std::size_t>(random.below(static_cast<std::uint64_t>(i) + 1, i))]);
  for (std::size_t i = 0; i < order.size(); ++i) split.parts[i % split.parts.size()].push_back(order[i]);
  return detail::sorted(std::move(split));
}

/// Parts of units that are active on the same rows: k-means of equal clusters over the columns of an activity, each
/// divided by its norm. Rounds of Lloyd, who here assigns by balanced_assignment(), until no unit moves; the sum of
/// squares never rises, up to 2048 units (of more, assignments are within 1e-3 a unit of the best). Units that are
/// never active go where there is room.
///   activity  [num_rows, hidden_dim], >= 0, finite: hidden_activity() of some hundred rows does
/// Shared units are those of the highest mean activity. A function of the arguments alone; one thread. Throws
/// std::invalid_argument as snake_split(), and for rounds < 1. O(rounds * (hidden_dim * num_rows * num_parts +
/// hidden_dim^2 * num_parts)); two copies of the activity in double.
/// After Zhang et al., "MoEfication: transformer feed-forward layers are mixtures of experts" (arXiv:2110.01786), who
/// cluster the weights of units, or the graph of their co-activation.
template <class S>
NeuronSplit coactivation_split(const Matrix<S>& activity, const SplitOptions& options) {
  constexpr const char* kFunction = "moe::coactivation_split";
  const std::vector<double> scores = neuron_scores(activity);
  detail::require_neuron_scores(kFunction, scores, options);
  if (options.rounds < 1) fail(kFunction, ": rounds is ", options.rounds, ", expected at least 1");
  std::vector<Index> order = detail::units_by_score(scores);
  NeuronSplit split = detail::begin_split(order, options);
  std::ranges::sort(order);
  Matrix<double> profile(std::ssize(order), activity.rows());
  for (Index i = 0; i < profile.rows(); ++i) {
    profile.row(i) = activity.col(order[static_cast<std::size_t>(i)]).template cast<double>().transpose();
    if (const double norm = profile.row(i).norm(); norm > 0) profile.row(i) /= norm;
  }
  Matrix<double> centres =
      detail::k_means_seeds(profile, options.num_parts, RandomField(Purpose::Draw, options.seed, 1));
  std::vector<Index> part_of;
  for (Index round = 0; round < options.rounds; ++round) {
    Matrix<double> nearness = 2 * detail::serial_product(profile, centres.transpose());  // |p|^2 - |p - c|^2
    nearness.rowwise() -= centres.rowwise().squaredNorm().transpose();
    std::vector<Index> next = balanced_assignment(nearness);
    if (next == part_of) break;
    part_of = std::move(next);
    KMeans<double> means{.labels = part_of, .centres = std::move(centres)};
    detail::move_centres(profile, means);
    centres = std::move(means.centres);
  }
  for (std::size_t i = 0; i < order.size(); ++i) split.parts[static_cast<std::size_t>(part_of[i])].push_back(order[i]);
  return detail::sorted(std::move(split));
}

/// A mask for each of several domains: the `keep` units that its rows use most, of which those that are in all masks
/// are shared. Ties go to the lower id.
///   scores  [num_domains, hidden_dim], a row of neuron_scores() each      keep  in [1, hidden_dim]
/// A part is empty where its domain uses what all others do. Throws std::invalid_argument for no domain, scores that
/// are not finite, and a number out of range. Cai et al., "Read-ME: refactorizing LLMs as router-decoupled mixture of
/// experts" (arXiv:2410.19123).
inline NeuronSplit domain_split(const Matrix<double>& scores, Index keep) {
  constexpr const char* kFunction = "moe::domain_split";
  const Index domains = scores.rows(), hidden = scores.cols();
  if (domains < 1) fail(kFunction, ": 0 domains, expected at least 1");
  if (!scores.allFinite()) fail(kFunction, ": a score is not finite, expected finite numbers");
  if (keep < 1 || keep > hidden) fail(kFunction, ": keep is ", keep, ", expected 1 <= keep <= hidden_dim = ", hidden);
  std::vector<Index> masks(static_cast<std::size_t>(hidden));  // in how many a unit is
  NeuronSplit split{.parts = {}, .shared = {}};
  for (Index d = 0; d < domains; ++d) {
    std::vector<Index> order = detail::units_by_score({scores.row(d).data(), static_cast<std::size_t>(hidden)});
    order.resize(static_cast<std::size_t>(keep));
    for (const Index j : order) ++masks[static_cast<std::size_t>(j)];
    split.parts.push_back(std::move(order));
  }
  const auto in_all = [&](Index j) { return masks[static_cast<std::size_t>(j)] == domains; };
  for (Index j = 0; j < hidden; ++j)
    if (in_all(j)) split.shared.push_back(j);
  for (std::vector<Index>& part : split.parts) std::erase_if(part, in_all);
  return detail::sorted(std::move(split));
}

}  // namespace moe::inline MOE_ABI
