// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"
#include "moe/routing/plan_view.hpp"

namespace moe::inline MOE_ABI {

/// What is loaded in one piece, and computed when it has come: level `level` of an expert, of which those below have to
/// be there.
struct LoadJob {
  Index expert = 0, level = 0;
  Index rows = 0;                ///< that need this level: those of higher levels, too
  double load = 0, compute = 0;  ///< seconds, >= 0
};

/// An order of loading: a permutation of the jobs, in which the levels of an expert ascend.
using LoadSchedule = std::function<std::vector<Index>(std::span<const LoadJob>)>;

namespace detail {

/// Throws std::invalid_argument unless `order` names every job once.
inline void require_permutation(const char* function, Index jobs, std::span<const Index> order) {
  if (std::ssize(order) != jobs) fail(function, ": an order of ", order.size(), " jobs, expected ", jobs);
  std::vector<bool> seen(order.size());
  for (const Index job : order) {
    if (job < 0 || job >= jobs || seen[static_cast<std::size_t>(job)])
      fail(function, ": job ", job, " of an order, expected each of [0, ", jobs, ") once");
    seen[static_cast<std::size_t>(job)] = true;
  }
}

/// Jobs by expert, and of an expert by level. Throws std::invalid_argument for a level of an expert that comes twice.
inline std::vector<Index> jobs_by_expert(const char* function, std::span<const LoadJob> jobs) {
  std::vector<Index> order(jobs.size());
  std::iota(order.begin(), order.end(), Index{0});
  const auto key = [&](Index job) {
    const LoadJob& of = jobs[static_cast<std::size_t>(job)];
    return std::pair(of.expert, of.level);
  };
  std::ranges::stable_sort(order, {}, key);
  for (std::size_t i = 1; i < order.size(); ++i)
    if (key(order[i - 1]) == key(order[i]))
      fail(function, ": level ", key(order[i]).second, " of expert ", key(order[i]).first, " twice, expected it once");
  return order;
}

}  // namespace detail

/// Throws std::invalid_argument unless `order` is a schedule of these jobs: each once, the levels of an expert
/// ascending.
inline void require_schedule(const char* function, std::span<const LoadJob> jobs, std::span<const Index> order) {
  detail::require_permutation(function, std::ssize(jobs), order);
  std::vector<Index> place(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) place[static_cast<std::size_t>(order[i])] = static_cast<Index>(i);
  const std::vector<Index> chains = detail::jobs_by_expert(function, jobs);
  for (std::size_t i = 1; i < chains.size(); ++i) {
    const auto before = static_cast<std::size_t>(chains[i - 1]), job = static_cast<std::size_t>(chains[i]);
    if (jobs[before].expert == jobs[job].expert && place[before] > place[job])
      fail(function, ": level ", jobs[job].level, " of expert ", jobs[job].expert, " comes before level ",
           jobs[before].level, ", expected ascending ones");
  }
}

/// Seconds until all is computed, where one loads and another computes what has come, both in the given order:
///   a += load;  c = max(a, c) + compute
/// the flow shop of two machines. Throws std::invalid_argument for an order that is no permutation. O(jobs).
inline double makespan(std::span<const LoadJob> jobs, std::span<const Index> order) {
  detail::require_permutation("moe::makespan", std::ssize(jobs), order);
  double loaded = 0, computed = 0;
  for (const Index job : order) {
    const LoadJob& of = jobs[static_cast<std::size_t>(job)];
    loaded += of.load;
    computed = std::max(loaded, computed) + of.compute;
  }
  return computed;
}

/// Expert by expert, each with all of its levels. O(jobs log jobs).
inline std::vector<Index> expert_id_order(std::span<const LoadJob> jobs) {
  return detail::jobs_by_expert("moe::expert_id_order", jobs);
}

/// Hottest expert, bit first: of the next levels of the experts always the one that most rows need, of equal ones that
/// of the lower expert. Loading starts with what gives most to compute, so that computing does not wait. A rule
/// of thumb, which needs no seconds: on jobs of load_jobs() with loads of 2 and 1 and 0.15 per row, 4 experts of two
/// levels, it has the least makespan in 161 of 200 draws, and is up to 23% above it; johnson_chains() has it in all.
/// Throws std::invalid_argument for a level of an expert that comes twice. O(jobs log jobs).
/// "D2MoE: dual routing and dynamic scheduling for efficient on-device MoE-based LLM serving" (arXiv:2504.15299).
inline std::vector<Index> hottest_expert_bit_first(std::span<const LoadJob> jobs) {
  const std::vector<Index> chains = detail::jobs_by_expert("moe::hottest_expert_bit_first", jobs);
  const auto of = [&](std::size_t at) -> const LoadJob& { return jobs[static_cast<std::size_t>(chains[at])]; };
  using Head = std::tuple<Index, Index, std::size_t>;  // rows, -expert, place in chains
  std::priority_queue<Head> heads;
  for (std::size_t i = 0; i < chains.size(); ++i)
    if (i == 0 || of(i - 1).expert != of(i).expert) heads.emplace(of(i).rows, -of(i).expert, i);
  std::vector<Index> order;
  while (!heads.empty()) {
    const std::size_t at = std::get<2>(heads.top());
    heads.pop();
    order.push_back(chains[at]);
    if (at + 1 < chains.size() && of(at + 1).expert == of(at).expert)
      heads.emplace(of(at + 1).rows, -of(at + 1).expert, at + 1);
  }
  return order;
}

/// What loading and computing take, measured: seconds per level, in which `load` has the base with its scales first.
struct LevelCosts {
  std::vector<double> load = {};         ///< of an expert
  std::vector<double> compute = {};      ///< of an expert, rows or not: planes are put together
  std::vector<double> compute_row = {};  ///< of each row at this level

  /// Throws std::invalid_argument unless there are no numbers, or those of so many levels, finite and >= 0.
  void require(const char* function, Index levels) const {
    for (const auto* each : {&load, &compute, &compute_row}) {
      if (!each->empty() && std::ssize(*each) != levels)
        fail(function, ": costs of ", each->size(), " levels, expected none or ", levels);
      for (const double seconds : *each)
        if (!(seconds >= 0 && std::isfinite(seconds)))
          fail(function, ": a level costs ", seconds, ", expected finite numbers >= 0");
    }
  }
};

/// The jobs of a plan over virtual experts e * levels + l: those levels of each expert that rows have, or rows of
/// higher levels. Rows of a level are computed when it has come. Without costs the seconds are 0. Throws
/// std::invalid_argument for a plan of other experts than of whole levels, and for costs of other levels.
inline std::vector<LoadJob> load_jobs(const PlanView& plan, Index levels, const LevelCosts& costs = {}) {
  constexpr const char* kFunction = "moe::load_jobs";
  if (levels < 1 || plan.num_experts() % levels != 0)
    fail(kFunction, ": a plan of ", plan.num_experts(), " virtual experts, expected a multiple of levels = ", levels,
         ", at least 1");
  costs.require(kFunction, levels);
  const auto of = [](const std::vector<double>& each, Index level) {
    return each.empty() ? 0.0 : each[static_cast<std::size_t>(level)];
  };
  std::vector<LoadJob> jobs;
  for (Index e = 0; e < plan.num_experts() / levels; ++e) {
    Index rows = plan.offset((e + 1) * levels) - plan.offset(e * levels);
    for (Index l = 0; l < levels && rows > 0; ++l) {
      const Index own = plan.rows_of(e * levels + l);
      const double compute = of(costs.compute, l) + static_cast<double>(own) * of(costs.compute_row, l);
      jobs.push_back({e, l, rows, of(costs.load, l), compute});
      rows -= own;
    }
  }
  return jobs;
}

/// The order of the least makespan where levels need not ascend: first what loads faster than it computes, in the order
/// of rising loads, then the rest, in that of falling computations. Its makespan is a lower bound of those of all
/// schedules. O(jobs log jobs). Johnson, "Optimal two- and three-stage production schedules with setup times included",
/// Naval Research Logistics Quarterly 1954.
inline std::vector<Index> johnson_order(std::span<const LoadJob> jobs) {
  std::vector<Index> order(jobs.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::ranges::stable_sort(order, {}, [&](Index job) {
    const LoadJob& of = jobs[static_cast<std::size_t>(job)];
    return of.load <= of.compute ? std::pair(0, of.load) : std::pair(1, -of.compute);
  });
  return order;
}

/// A schedule of the least makespan, where all experts fit beside each other. Levels of an expert that would come
/// before those below, were they free, are joined to one piece with them: of jobs with loads a_i and computations b_i,
/// and sums A and B of both,
///   load needed before it computes without a wait  alpha = max_k (a_1 + .. + a_k - b_1 - .. - b_(k-1))
///   computing left when it has been loaded         beta  = alpha - A + B
/// Pieces of all experts then come by Johnson's rule on alpha and beta, which keeps the levels ascending. It needs the
/// seconds of jobs: give LevelCosts to PipelinedExperts. Throws std::invalid_argument for a level of an expert that
/// comes twice. O(jobs log jobs). Kurisu, "Two-machine scheduling under required precedence among jobs", Journal of the
/// Operations Research Society of Japan 1976; Sidney, "The two-machine maximum flow time problem with series parallel
/// precedence relations", Operations Research 1979.
inline std::vector<Index> johnson_chains(std::span<const LoadJob> jobs) {
  struct Piece {
    double alpha, beta, load, compute;
    std::size_t begin, end;  // of chains
    auto key() const { return alpha <= beta ? std::pair(0, alpha) : std::pair(1, -beta); }
  };
  const std::vector<Index> chains = detail::jobs_by_expert("moe::johnson_chains", jobs);
  std::vector<Piece> pieces;
  std::size_t first = 0;  // piece of the expert
  for (std::size_t i = 0; i < chains.size(); ++i) {
    const LoadJob& of = jobs[static_cast<std::size_t>(chains[i])];
    if (i > 0 && jobs[static_cast<std::size_t>(chains[i - 1])].expert != of.expert) first = pieces.size();
    Piece piece{of.load, of.compute, of.load, of.compute, i, i + 1};
    for (; pieces.size() > first && piece.key() <= pieces.back().key(); pieces.pop_back()) {
      const Piece& before = pieces.back();
      const double load = before.load + piece.load, compute = before.compute + piece.compute;
      const double alpha = std::max(before.alpha, before.load - before.compute + piece.alpha);
      piece = {alpha, alpha - load + compute, load, compute, before.begin, piece.end};
    }
    pieces.push_back(piece);
  }
  std::ranges::stable_sort(pieces, {}, &Piece::key);
  std::vector<Index> order;
  for (const Piece& piece : pieces)
    for (std::size_t i = piece.begin; i < piece.end; ++i) order.push_back(chains[i]);
  return order;
}

}  // namespace moe::inline MOE_ABI
