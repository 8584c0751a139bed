// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/take.hpp"
#include "moe/layer/structure.hpp"

// Plans say which experts stay, and scores make plans: data, to look at, to change and to apply (see prune(), merge()).
namespace moe::inline MOE_ABI {

/// Where the experts of a layer have gone: statistics, placements and traces of the old layer stay of use.
struct ExpertMap {
  static constexpr Index kDropped = -1;

  std::vector<Index> place = {};  ///< [old experts]: the new expert that does the work of each, or kDropped
  Index num_experts = 0;          ///< new ones

  Index operator[](Index old) const { return place[static_cast<std::size_t>(old)]; }
  /// This map, and then another one. Throws std::invalid_argument unless that begins with as many experts, and for a
  /// place that is not there, in either.
  ExpertMap then(const ExpertMap& next) const {
    if (std::ssize(next.place) != num_experts)
      fail("moe::ExpertMap::then: the next is of ", next.place.size(), " experts, expected ", num_experts);
    require_places("moe::ExpertMap::then");
    next.require_places("moe::ExpertMap::then");
    ExpertMap result{.place = place, .num_experts = next.num_experts};
    for (Index& to : result.place)
      if (to != kDropped) to = next[to];
    return result;
  }
  /// Throws std::invalid_argument, in the name of a function, unless every place is kDropped or below num_experts.
  void require_places(const char* function) const {
    for (std::size_t e = 0; e < place.size(); ++e)
      if (place[e] != kDropped && (place[e] < 0 || place[e] >= num_experts))
        fail(function, ": expert ", e, " goes to ", place[e], ", expected ", kDropped, " or one below ", num_experts);
  }
};

/// Which experts stay. Expert i of the result is kept[i], which stands for the experts that `map` sends to it: itself,
/// and in a plan of clusters the others of its cluster.
struct ExpertPlan {
  std::vector<Index> kept = {};  ///< ascending
  ExpertMap map = {};

  Index num_experts() const { return std::ssize(map.place); }
  Index num_kept() const { return std::ssize(kept); }
  /// Experts that the i-th one stands for, ascending.
  std::vector<Index> members(Index i) const {
    std::vector<Index> result;
    for (Index e = 0; e < num_experts(); ++e)
      if (map[e] == i) result.push_back(e);
    return result;
  }

  /// These experts stay, all others go. Throws std::invalid_argument for no ids, one out of range, or one twice.
  static ExpertPlan keep(ExpertIds ids, Index num_experts) {
    constexpr const char* kFunction = "moe::ExpertPlan::keep";
    const std::span<const Index> all = ids;
    detail::require_ids(kFunction, all, num_experts);
    ExpertPlan plan{.kept = {all.begin(), all.end()}, .map = {}};
    std::ranges::sort(plan.kept);
    if (const auto twice = std::ranges::adjacent_find(plan.kept); twice != plan.kept.end())
      fail(kFunction, ": expert ", *twice, " is there twice, expected each once");
    plan.map.place.assign(static_cast<std::size_t>(num_experts), ExpertMap::kDropped);
    plan.map.num_experts = plan.num_kept();
    for (Index i = 0; i < plan.num_kept(); ++i)
      plan.map.place[static_cast<std::size_t>(plan.kept[static_cast<std::size_t>(i)])] = i;
    return plan;
  }
  /// One expert of every cluster stays, the first of it: experts with the same label are a cluster. Labels are any
  /// numbers. Throws std::invalid_argument for no labels.
  static ExpertPlan of_clusters(std::span<const Index> labels) {
    std::vector<Index> first;
    for (std::size_t e = 0; e < labels.size(); ++e)
      if (std::find(labels.begin(), labels.begin() + static_cast<std::ptrdiff_t>(e), labels[e]) ==
          labels.begin() + static_cast<std::ptrdiff_t>(e))
        first.push_back(static_cast<Index>(e));
    return of_clusters(labels, first);
  }
  /// The same with the given expert of each cluster. Throws std::invalid_argument unless there is one of each.
  static ExpertPlan of_clusters(std::span<const Index> labels, std::span<const Index> representatives) {
    ExpertPlan plan = keep(representatives, std::ssize(labels));
    for (std::size_t e = 0; e < labels.size(); ++e) {
      Index found = 0;
      for (Index i = 0; i < plan.num_kept(); ++i)
        if (labels[static_cast<std::size_t>(plan.kept[static_cast<std::size_t>(i)])] == labels[e])
          plan.map.place[e] = i, ++found;
      if (found != 1)
        fail("moe::ExpertPlan::of_clusters: the cluster of expert ", e, " has ", found,
             " representatives, expected one");
    }
    return plan;
  }
};

namespace detail {

/// Throws std::invalid_argument, in the name of a function, for a plan whose parts do not fit: both can be written.
inline void require_plan(const char* function, const ExpertPlan& plan) {
  if (plan.map.num_experts != plan.num_kept())
    fail(function, ": the map of the plan is to ", plan.map.num_experts, " experts, expected ", plan.num_kept(),
         " as are kept");
  for (std::size_t i = 0; i < plan.kept.size(); ++i) {
    const Index e = plan.kept[i], least = i == 0 ? 0 : plan.kept[i - 1] + 1;
    if (e < least || e >= plan.num_experts())
      fail(function, ": kept[", i, "] of the plan is ", e, ", expected ascending ids below ", plan.num_experts());
    if (plan.map[e] != static_cast<Index>(i))
      fail(function, ": the plan keeps expert ", e, " as ", i, ", but maps it to ", plan.map[e], ", expected the same");
  }
  plan.map.require_places(function);
}

/// Throws std::invalid_argument unless all numbers are finite.
inline void require_scores(const char* function, std::span<const double> scores) {
  for (std::size_t e = 0; e < scores.size(); ++e)
    if (!std::isfinite(scores[e]))
      fail(function, ": the score of expert ", e, " is ", scores[e], ", expected a finite number");
}
inline void require_count(const char* function, const char* name, Index count, Index least, Index most) {
  if (count < least || count > most)
    fail(function, ": ", name, " is ", count, ", expected at least ", least, " and at most ", most);
}

/// Numbers of the scores, the best first; ties go to the lower number.
inline std::vector<Index> best_first(std::span<const double> scores) {
  std::vector<Index> order(scores.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](Index e) { return scores[static_cast<std::size_t>(e)]; });
  return order;
}

}  // namespace detail

/// The `count` experts with the highest scores stay; ties go to the lower id. Throws std::invalid_argument unless
/// 1 <= count <= the number of scores, and for scores that are not finite.
///   const auto plan = moe::keep_best(calibration.use().saliencies(), 32);
inline ExpertPlan keep_best(std::span<const double> scores, Index count) {
  constexpr const char* kFunction = "moe::keep_best";
  detail::require_scores(kFunction, scores);
  detail::require_count(kFunction, "count", count, 1, std::ssize(scores));
  std::vector<Index> order = detail::best_first(scores);
  order.resize(static_cast<std::size_t>(count));
  return ExpertPlan::keep(order, std::ssize(scores));
}

/// The same for a gate with `groups` of neighbouring experts (ExpertGroups::count): the best count / groups of each, as
/// groups stay equally large. Throws std::invalid_argument as keep_best(), and unless groups divides both numbers.
inline ExpertPlan keep_best_in_groups(std::span<const double> scores, Index count, Index groups) {
  constexpr const char* kFunction = "moe::keep_best_in_groups";
  detail::require_scores(kFunction, scores);
  detail::require_count(kFunction, "count", count, 1, std::ssize(scores));
  if (groups < 1 || std::ssize(scores) % groups != 0 || count % groups != 0)
    fail(kFunction, ": groups is ", groups, ", expected a divisor of ", scores.size(),
         " scores and of count = ", count);
  const Index size = std::ssize(scores) / groups;
  std::vector<Index> kept;
  for (Index first = 0; first < std::ssize(scores); first += size)
    for (const Index e :
         keep_best(scores.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(size)), count / groups)
             .kept)
      kept.push_back(first + e);
  return ExpertPlan::keep(kept, std::ssize(scores));
}

/// The same over the layers of a model, which may keep different numbers: `least` of each layer, as its gate chooses so
/// many, and of all others the best, `total` together. Ties go to the earlier layer. Scores of layers should be on one
/// scale (shares()). Throws std::invalid_argument as keep_best(), and unless `total` has room for `least` of each.
inline std::vector<ExpertPlan> keep_best(const std::vector<std::vector<double>>& layers, Index total, Index least = 1) {
  constexpr const char* kFunction = "moe::keep_best";
  Index all = 0;
  for (const auto& scores : layers) {
    detail::require_scores(kFunction, scores);
    detail::require_count(kFunction, "least", least, 1, std::ssize(scores));
    all += std::ssize(scores);
  }
  detail::require_count(kFunction, "total", total, least * std::ssize(layers), all);
  std::vector<std::vector<Index>> kept;
  std::vector<std::pair<double, std::pair<Index, Index>>> others;  // score, layer, expert
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::vector<Index> order = detail::best_first(layers[l]);
    kept.emplace_back(order.begin(), order.begin() + least);
    for (auto e = order.begin() + least; e != order.end(); ++e)
      others.push_back({layers[l][static_cast<std::size_t>(*e)], {static_cast<Index>(l), *e}});
  }
  std::ranges::stable_sort(others, std::ranges::greater{}, [](const auto& other) { return other.first; });
  for (Index i = 0; i < total - least * std::ssize(layers); ++i) {
    const auto [layer, expert] = others[static_cast<std::size_t>(i)].second;
    kept[static_cast<std::size_t>(layer)].push_back(expert);
  }
  std::vector<ExpertPlan> plans;
  for (std::size_t l = 0; l < layers.size(); ++l) plans.push_back(ExpertPlan::keep(kept[l], std::ssize(layers[l])));
  return plans;
}

/// `count` experts stay; the others go one by one, each time the one without which loss(kept ids) is least; ties drop
/// the higher id. `loss` is called num_experts^2 / 2 times at most. Throws std::invalid_argument for a count out of
/// range, and for a loss that is NaN.
template <class Loss>
ExpertPlan keep_greedily(Index num_experts, Index count, const Loss& loss) {
  constexpr const char* kFunction = "moe::keep_greedily";
  detail::require_count(kFunction, "count", count, 1, num_experts);
  std::vector<Index> kept(static_cast<std::size_t>(num_experts));
  std::iota(kept.begin(), kept.end(), Index{0});
  while (std::ssize(kept) > count) {
    std::size_t worst = kept.size();
    double least = 0;
    for (std::size_t i = kept.size(); i-- > 0;) {
      std::vector<Index> without = kept;
      without.erase(without.begin() + static_cast<std::ptrdiff_t>(i));
      const double value = loss(std::span<const Index>(without));
      if (std::isnan(value)) fail(kFunction, ": the loss without expert ", kept[i], " is NaN, expected a number");
      if (worst == kept.size() || value < least) worst = i, least = value;
    }
    kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(worst));
  }
  return ExpertPlan::keep(kept, num_experts);
}

}  // namespace moe::inline MOE_ABI
