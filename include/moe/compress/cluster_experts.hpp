// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "moe/compress/expert_plan.hpp"
#include "moe/core/visit.hpp"
#include "moe/expert/pool.hpp"
#include "moe/numeric/k_means.hpp"

// Plans in which one expert stands for a cluster of alike ones.
namespace moe::inline MOE_ABI {

namespace detail {

/// Two clusters, each named by its lowest expert, that become one.
struct Linkage {
  Index into, from;
  double height;  ///< the largest distance between their experts
};

/// Complete linkage down to one cluster: each time the closest pair, ties to the lowest experts. O(E^3).
inline std::vector<Linkage> complete_linkages(const char* function, const Matrix<double>& distance) {
  const Index n = distance.rows();
  require_shape(function, "distance", distance, n, n);
  if (n < 1) fail(function, ": distance is of 0 experts, expected at least 1");
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < n; ++j)
      if (!std::isfinite(distance(i, j)) || distance(i, j) != distance(j, i))
        fail(function, ": the distances of experts ", i, " and ", j, " are ", distance(i, j), " and ", distance(j, i),
             ", expected a finite number twice");
  Matrix<double> between = distance;
  std::vector<Index> alive(static_cast<std::size_t>(n));
  std::iota(alive.begin(), alive.end(), Index{0});
  std::vector<Linkage> result;
  while (alive.size() > 1) {
    Linkage closest{-1, -1, std::numeric_limits<double>::infinity()};
    for (std::size_t a = 0; a < alive.size(); ++a)
      for (std::size_t b = a + 1; b < alive.size(); ++b)
        if (closest.into < 0 || between(alive[a], alive[b]) < closest.height)
          closest = {alive[a], alive[b], between(alive[a], alive[b])};
    std::erase(alive, closest.from);
    for (const Index other : alive)
      between(closest.into, other) = between(other, closest.into) =
          std::max(between(closest.into, other), between(closest.from, other));
    result.push_back(closest);
  }
  return result;
}

inline ExpertPlan plan_after(Index num_experts, std::span<const Linkage> linkages) {
  std::vector<Index> labels(static_cast<std::size_t>(num_experts));
  std::iota(labels.begin(), labels.end(), Index{0});
  for (const Linkage& linkage : linkages) std::ranges::replace(labels, linkage.from, linkage.into);
  return ExpertPlan::of_clusters(labels);
}

}  // namespace detail

/// `count` clusters by complete linkage: time and again the two become one whose farthest experts are closest. Each is
/// represented by its first expert, see represented_by() and nearest_to_means().
///   distance  [num_experts, num_experts], symmetric, finite; of any sign, the diagonal is not read
/// Throws std::invalid_argument for another matrix, and a count out of range. O(num_experts^3).
/// With router_distance() the first half of STUN, Lee et al. (arXiv:2409.06211).
inline ExpertPlan complete_linkage(const Matrix<double>& distance, Index count) {
  constexpr const char* kFunction = "moe::complete_linkage";
  const auto linkages = detail::complete_linkages(kFunction, distance);
  detail::require_count(kFunction, "count", count, 1, distance.rows());
  return detail::plan_after(distance.rows(),
                            std::span(linkages).first(static_cast<std::size_t>(distance.rows() - count)));
}
/// Clusters of experts that are no farther from each other than `threshold`, each pair of a cluster.
inline ExpertPlan complete_linkage_within(const Matrix<double>& distance, double threshold) {
  constexpr const char* kFunction = "moe::complete_linkage_within";
  if (std::isnan(threshold)) fail(kFunction, ": threshold is NaN, expected a number");
  const auto linkages = detail::complete_linkages(kFunction, distance);
  const auto end = std::ranges::find_if(linkages, [&](const auto& linkage) { return linkage.height > threshold; });
  return detail::plan_after(distance.rows(), std::span(linkages.begin(), end));
}
/// The same over the layers of a model with one threshold, found such that `total` clusters are left: layers may keep
/// different numbers, but `least` each. Ties go to the earlier layer. Throws std::invalid_argument as the others.
inline std::vector<ExpertPlan> complete_linkage(const std::vector<Matrix<double>>& distances, Index total,
                                                Index least = 1) {
  constexpr const char* kFunction = "moe::complete_linkage";
  std::vector<std::vector<detail::Linkage>> linkages;
  Index clusters = 0;
  for (const Matrix<double>& distance : distances) {
    linkages.push_back(detail::complete_linkages(kFunction, distance));
    detail::require_count(kFunction, "least", least, 1, distance.rows());
    clusters += distance.rows();
  }
  detail::require_count(kFunction, "total", total, least * std::ssize(distances), clusters);
  std::vector<std::size_t> done(distances.size(), 0);
  for (; clusters > total; --clusters) {
    std::size_t next = distances.size();
    for (std::size_t l = 0; l < distances.size(); ++l) {
      if (distances[l].rows() - static_cast<Index>(done[l]) <= least) continue;
      if (next == distances.size() || linkages[l][done[l]].height < linkages[next][done[next]].height) next = l;
    }
    ++done[next];
  }
  std::vector<ExpertPlan> plans;
  for (std::size_t l = 0; l < distances.size(); ++l)
    plans.push_back(detail::plan_after(distances[l].rows(), std::span(linkages[l]).first(done[l])));
  return plans;
}

struct ClusterOptions {
  std::uint64_t seed = 0;
  Index starts = 10;  ///< of k-means, of which the best stays; >= 1
  Index rounds = 100;
};

/// `count` clusters by k_means() of a row per expert: those of a router (router_rows), or what experts compute
/// (output_rows). None is empty: one that would be gets the expert that is farthest from its centre. Throws
/// std::invalid_argument as k_means().
template <class S>
ExpertPlan cluster_experts(const Matrix<S>& rows, Index count, const ClusterOptions& options = {}) {
  constexpr const char* kFunction = "moe::cluster_experts";
  detail::require_count(kFunction, "starts", options.starts, 1, std::numeric_limits<Index>::max());
  KMeans<S> best;
  for (Index start = 0; start < options.starts; ++start) {
    KMeans<S> found =
        k_means(rows, count, RandomField(Purpose::Draw, options.seed, start), KMeansOptions{.rounds = options.rounds});
    if (start == 0 || found.sum_of_squares < best.sum_of_squares) best = std::move(found);
  }
  std::vector<Index> sizes(static_cast<std::size_t>(count));
  for (const Index label : best.labels) ++sizes[static_cast<std::size_t>(label)];
  for (Index c = 0; c < count; ++c) {
    if (sizes[static_cast<std::size_t>(c)] > 0) continue;
    std::size_t farthest = best.labels.size();
    double most = -1;
    for (std::size_t e = 0; e < best.labels.size(); ++e) {
      if (sizes[static_cast<std::size_t>(best.labels[e])] < 2) continue;
      const auto from = (rows.row(static_cast<Index>(e)) - best.centres.row(best.labels[e])).squaredNorm();
      if (static_cast<double>(from) > most) farthest = e, most = static_cast<double>(from);
    }
    --sizes[static_cast<std::size_t>(best.labels[farthest])];
    best.labels[farthest] = c, sizes[static_cast<std::size_t>(c)] = 1;
    best.centres.row(c) = rows.row(static_cast<Index>(farthest));
  }
  return ExpertPlan::of_clusters(best.labels);
}

/// The clusters of a plan, each represented by its expert with the highest score; ties go to the lower id. Experts that
/// the plan drops stay dropped. Throws std::invalid_argument for another number of scores, one that is not finite, and
/// a plan whose parts do not fit each other.
inline ExpertPlan represented_by(const ExpertPlan& plan, std::span<const double> scores) {
  constexpr const char* kFunction = "moe::represented_by";
  detail::require_plan(kFunction, plan);
  detail::require_scores(kFunction, scores);
  if (std::ssize(scores) != plan.num_experts())
    fail(kFunction, ": ", scores.size(), " scores, expected ", plan.num_experts(), " as experts in the plan");
  std::vector<std::pair<Index, Index>> order;  // representative, cluster
  for (Index i = 0; i < plan.num_kept(); ++i) {
    const std::vector<Index> members = plan.members(i);
    order.emplace_back(
        *std::ranges::max_element(members, {}, [&](Index e) { return scores[static_cast<std::size_t>(e)]; }), i);
  }
  std::ranges::sort(order);
  ExpertPlan result = plan;
  for (std::size_t i = 0; i < order.size(); ++i) {
    result.kept[i] = order[i].first;
    for (const Index e : plan.members(order[i].second))
      result.map.place[static_cast<std::size_t>(e)] = static_cast<Index>(i);
  }
  return result;
}

/// The plan with the experts that it drops in the clusters of those that it keeps, each with the kept expert that is
/// nearest, ties to the lower id: so the best experts stay and merge() takes over from the others what they do alike.
///   distance  [num_experts, num_experts], as for complete_linkage(): distance_of(output_similarity(..))
/// Throws std::invalid_argument for another shape, a distance that is NaN, and a plan that keeps none or whose parts do
/// not fit each other. Li et al., "M-SMoE" (arXiv:2310.01334).
inline ExpertPlan join_nearest(const ExpertPlan& plan, const Matrix<double>& distance) {
  constexpr const char* kFunction = "moe::join_nearest";
  detail::require_plan(kFunction, plan);
  detail::require_shape(kFunction, "distance", distance, plan.num_experts(), plan.num_experts());
  detail::require_count(kFunction, "kept", plan.num_kept(), 1, plan.num_experts());
  ExpertPlan result = plan;
  for (Index e = 0; e < plan.num_experts(); ++e) {
    if (plan.map[e] != ExpertMap::kDropped) continue;
    Index nearest = 0;
    for (Index i = 0; i < plan.num_kept(); ++i) {
      const Index kept = plan.kept[static_cast<std::size_t>(i)];
      if (std::isnan(distance(e, kept)))
        fail(kFunction, ": the distance of experts ", e, " and ", kept, " is NaN, expected a number");
      if (distance(e, kept) < distance(e, plan.kept[static_cast<std::size_t>(nearest)])) nearest = i;
    }
    result.map.place[static_cast<std::size_t>(e)] = nearest;
  }
  return result;
}

/// The clusters of a plan, each represented by the expert whose weights, all of them in a row, are nearest to the mean
/// of its cluster. Throws std::invalid_argument for a pool of another number of experts, or with different parameters,
/// and for a plan whose parts do not fit each other.
/// Lee et al., "STUN" (arXiv:2409.06211).
template <class E>
ExpertPlan nearest_to_means(const ExpertPlan& plan, const ExpertPool<E>& pool) {
  constexpr const char* kFunction = "moe::nearest_to_means";
  detail::require_plan(kFunction, plan);
  if (pool.size() != plan.num_experts())
    fail(kFunction, ": the pool has ", pool.size(), " experts, expected ", plan.num_experts(), " as the plan");
  const auto weights = [&](Index e) {
    std::vector<double> all;
    moe::visit(
        [&](const std::string&, const auto& leaf) {
          std::vector<double> values(static_cast<std::size_t>(parameter_size(leaf)));
          read_parameter(leaf, std::span<double>(values));
          all.insert(all.end(), values.begin(), values.end());
        },
        pool[e]);
    return all;
  };
  std::vector<double> scores(static_cast<std::size_t>(pool.size()));  // minus the distance
  for (Index i = 0; i < plan.num_kept(); ++i) {
    const std::vector<Index> members = plan.members(i);
    std::vector<double> mean = weights(members[0]);
    for (std::size_t m = 1; m < members.size(); ++m) {
      const std::vector<double> more = weights(members[m]);
      if (more.size() != mean.size())
        fail(kFunction, ": expert ", members[m], " has ", more.size(), " parameters, expected ", mean.size());
      for (std::size_t p = 0; p < mean.size(); ++p) mean[p] += more[p];
    }
    for (const Index e : members) {
      const std::vector<double> own = weights(e);
      for (std::size_t p = 0; p < mean.size(); ++p) {
        const double off = own[p] - mean[p] / static_cast<double>(members.size());
        scores[static_cast<std::size_t>(e)] -= off * off;
      }
    }
  }
  return represented_by(plan, scores);
}

}  // namespace moe::inline MOE_ABI
