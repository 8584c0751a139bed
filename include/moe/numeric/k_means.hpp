// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/random.hpp"

namespace moe::inline MOE_ABI {

struct KMeansOptions {
  Index rounds = 100;  ///< of Lloyd's algorithm at most; >= 1
  /// Of the points [n], finite and > 0: a point of weight w counts as w points that are alike. None: 1 each.
  std::span<const double> weights = {};

  double weight(Index point) const { return weights.empty() ? 1 : weights[static_cast<std::size_t>(point)]; }
};

/// Result of k_means().
template <class S>
struct KMeans {
  std::vector<Index> labels = {};  ///< [n], the nearest centre of each point; ties go to the lower number
  Matrix<S> centres = {};          ///< [k, d]
  double sum_of_squares = 0;       ///< of the distances of the points from their centres, by weights
  Index rounds = 0;                ///< how often points were assigned
  bool converged = false;          ///< the last round changed no label: a minimum that no single point can improve
};

namespace detail {

/// k points as centres: the first at random by weights, each other one with probability proportional to its weight and
/// its squared distance from the nearest before it. A point that coincides with all before is taken only where nothing
/// else is left.
template <class S>
Matrix<S> k_means_seeds(const Matrix<S>& points, Index k, const RandomField& random,
                        const KMeansOptions& options = {}) {
  const Index n = points.rows();
  Matrix<S> centres(k, points.cols());
  Eigen::Matrix<S, Eigen::Dynamic, 1> distance(n);
  for (Index j = 0; j < k; ++j) {
    Index next = 0;
    const auto find = [&](double left, auto&& mass) {
      while (next + 1 < n && (left -= mass(next)) > 0) ++next;
    };
    if (j == 0) {
      if (options.weights.empty())
        next = static_cast<Index>(random.below(static_cast<std::uint64_t>(n), j, 1));
      else
        find(random.uniform(j, 1) * std::accumulate(options.weights.begin(), options.weights.end(), 0.0),
             [&](Index i) { return options.weight(i); });
      distance.setConstant(std::numeric_limits<S>::max());
    } else {
      const auto mass = [&](Index i) { return options.weight(i) * static_cast<double>(distance(i)); };
      double total = distance.template cast<double>().sum();
      if (!options.weights.empty()) {
        total = 0;
        for (Index i = 0; i < n; ++i) total += mass(i);
      }
      find(random.uniform(j, 5) * total, mass);
      while (next > 0 && distance(next) == 0) --next;  // the last point, by rounding
    }
    centres.row(j) = points.row(next);
    distance = distance.cwiseMin((points.rowwise() - centres.row(j)).rowwise().squaredNorm());
  }
  return centres;
}

/// Gives every point its nearest centre. Returns whether a label has changed.
template <class S>
bool assign_to_centres(const Matrix<S>& points, const KMeansOptions& options, KMeans<S>& result) {
  bool changed = false;
  result.sum_of_squares = 0;
  Eigen::Matrix<S, Eigen::Dynamic, 1> squares(result.centres.rows());
  for (Index i = 0; i < points.rows(); ++i) {
    // Into a part, which is never resized: g++ 12 else warns of memory used after it is freed.
    squares.head(squares.size()) = (result.centres.rowwise() - points.row(i)).rowwise().squaredNorm();
    const Index nearest = std::min_element(squares.data(), squares.data() + squares.size()) - squares.data();
    Index& label = result.labels[static_cast<std::size_t>(i)];
    changed = changed || label != nearest;
    label = nearest;
    result.sum_of_squares += options.weight(i) * static_cast<double>(squares(nearest));
  }
  return changed;
}

/// Moves every centre to the mean of its points; one without points stays.
template <class S>
void move_centres(const Matrix<S>& points, KMeans<S>& result, const KMeansOptions& options = {}) {
  Matrix<S> sums = Matrix<S>::Zero(result.centres.rows(), result.centres.cols());
  std::vector<double> counts(static_cast<std::size_t>(sums.rows()));
  for (Index i = 0; i < points.rows(); ++i) {
    const Index label = result.labels[static_cast<std::size_t>(i)];
    sums.row(label) += static_cast<S>(options.weight(i)) * points.row(i);
    counts[static_cast<std::size_t>(label)] += options.weight(i);
  }
  for (Index j = 0; j < sums.rows(); ++j)
    if (const double count = counts[static_cast<std::size_t>(j)]; count > 0)
      result.centres.row(j) = sums.row(j) / static_cast<S>(count);
}

}  // namespace detail

/// Splits points into k clusters with a small sum of squared distances from their means: seeds by k-means++, then
/// rounds of Lloyd, who assigns every point to its nearest centre and moves centres to the means of their points, until
/// no label changes. The sum of squares never rises; it ends at a local minimum.
///   points  [n, d], d >= 1, finite, with squared distances that do not overflow      k  in [1, n]
///   random  what the draws of the seeds are pure functions of
/// A cluster that loses all points keeps its centre, and may stay empty; with k = n and distinct points each is a
/// centre. The result is a function of the arguments alone: everything runs on the calling thread.
/// Throws std::invalid_argument for k or rounds out of range, no column, numbers that are not finite, and weights that
/// are not > 0 or not as many as points.
/// O(rounds * n * k * d); allocates [n] and [k, d].
/// Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 1982; Arthur & Vassilvitskii, "k-means++: the
/// advantages of careful seeding", SODA 2007.
template <class S>
KMeans<S> k_means(const Matrix<S>& points, Index k, const RandomField& random, const KMeansOptions& options = {}) {
  constexpr const char* kName = "moe::k_means";
  if (points.cols() < 1) fail(kName, ": points have ", points.cols(), " columns, expected at least 1");
  if (k < 1 || k > points.rows()) fail(kName, ": k is ", k, ", expected 1 to the number of points = ", points.rows());
  if (options.rounds < 1) fail(kName, ": rounds is ", options.rounds, ", expected at least 1");
  if (!points.allFinite()) fail(kName, ": a number of the points is not finite");
  if (!options.weights.empty() && std::ssize(options.weights) != points.rows())
    fail(kName, ": weights has ", options.weights.size(), " numbers, expected as many as points, ", points.rows());
  for (const double weight : options.weights)
    if (!(weight > 0 && std::isfinite(weight))) fail(kName, ": a weight is ", weight, ", expected finite numbers > 0");
  KMeans<S> result{.labels = std::vector<Index>(static_cast<std::size_t>(points.rows()), -1),
                   .centres = detail::k_means_seeds(points, k, random, options)};
  while (true) {
    result.converged = !detail::assign_to_centres(points, options, result);
    if (++result.rounds == options.rounds || result.converged) return result;
    detail::move_centres(points, result, options);
  }
}

}  // namespace moe::inline MOE_ABI
