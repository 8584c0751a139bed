// SPDX-License-Identifier: MIT
// Owners by load: equal places, near the best that there is, and estimates of loads.
#include "moe/mpi/heterogeneous_sharding.hpp"

#include <functional>

#include "moe/mpi/load_estimate.hpp"
#include "mpi/skewed_loads.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::mpi::Placement;
using moe::mpi::Topology;

namespace {

/// The least that the busiest rank can have with equal places: all ways to own the experts.
double least_of_all(const std::vector<double>& loads, Index ranks) {
  const Index experts = std::ssize(loads);
  std::vector<double> of(static_cast<std::size_t>(ranks));
  std::vector<Index> used(of.size());
  double least = 1e300;
  const std::function<void(std::size_t)> place = [&](std::size_t e) {
    if (e == loads.size()) {
      Index more = 0;
      for (const Index n : used) more += n > experts / ranks ? 1 : 0;
      if (more <= experts % ranks) least = std::min(least, std::ranges::max(of));
      return;
    }
    for (std::size_t r = 0; r < of.size(); ++r) {
      if (used[r] > experts / ranks) continue;
      ++used[r], of[r] += loads[e];
      place(e + 1);
      --used[r], of[r] -= loads[e];
    }
  };
  place(0);
  return least;
}

}  // namespace

TEST_CASE("heterogeneous_sharding: one owner for each expert, equal places on all ranks", "[mpi][property]") {
  for (const Topology& topology : {Topology{.ranks = 1}, {.ranks = 3}, {.ranks = 8, .ranks_per_node = 4}})
    for (std::uint64_t seed = 0; seed < 10; ++seed)
      for (const Index overlap : {0, 1, 3, 20}) {
        const std::vector<std::vector<double>> loads = {
            pareto_loads(16, seed), pareto_loads(11, seed + 100), {}, pareto_loads(16, seed + 200)};
        const auto shards = moe::mpi::heterogeneous_sharding(loads, topology, overlap);
        CAPTURE(topology.ranks, seed, overlap);
        REQUIRE(shards.size() == loads.size());
        for (std::size_t layer = 0; layer < loads.size(); ++layer) {
          CHECK(shards[layer].experts() == std::ssize(loads[layer]));
          CHECK(shards[layer].copies() == 0);
        }
        for (Index rank = 0; rank < topology.ranks; ++rank) {
          Index owned = 0;
          for (const Placement& of : shards) owned += std::ssize(of.owned_by(rank));
          CHECK(owned >= 43 / topology.ranks);
          CHECK(owned <= (43 + topology.ranks - 1) / topology.ranks);
        }
      }
}

TEST_CASE("heterogeneous_sharding: within 4/3 of the best owners, whatever the names of nodes", "[mpi][property]") {
  for (std::uint64_t seed = 0; seed < 300; ++seed)
    for (const Index experts : {1, 3, 4, 5, 6})
      for (const Index ranks : {1, 2, 3}) {
        const std::vector<std::vector<double>> loads = {pareto_loads(experts, seed)};
        const auto shards = moe::mpi::heterogeneous_sharding(loads, {.ranks = ranks}, 0);
        const auto found = moe::mpi::rank_loads(loads[0], shards[0], {.ranks = ranks});
        CAPTURE(seed, experts, ranks);
        CHECK(std::ranges::max(found) <= 4.0 / 3 * least_of_all(loads[0], ranks));
      }
  // Ranks one to a node, or all on one: the same rule, the same owners.
  const std::vector<std::vector<double>> loads = {pareto_loads(12, 1), pareto_loads(12, 2)};
  CHECK(moe::mpi::heterogeneous_sharding(loads, {.ranks = 4, .ranks_per_node = 1}, 2) ==
        moe::mpi::heterogeneous_sharding(loads, {.ranks = 4}, 2));
}

TEST_CASE("heterogeneous_sharding: what is not copied is balanced better than in order", "[mpi][property]") {
  const Topology topology{.ranks = 8, .ranks_per_node = 4};
  double in_order = 0, by_load = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const std::vector<std::vector<double>> loads = {pareto_loads(32, seed), pareto_loads(32, seed + 1000)};
    const auto shards = moe::mpi::heterogeneous_sharding(loads, topology, 2);
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const auto imbalance = [&](const Placement& of) {
        const auto copies = moe::mpi::materialise(of, loads[layer], topology, {.overlap = 2, .memory = 2});
        return moe::mpi::rank_imbalance(moe::mpi::rank_loads(loads[layer], copies, topology)) / 200;
      };
      in_order += imbalance(Placement::contiguous(32, 8));
      by_load += imbalance(shards[layer]);
    }
  }
  CAPTURE(in_order, by_load);
  CHECK(by_load < 1 + (in_order - 1) / 2);
}

TEST_CASE("LoadEstimate: the mean of the last iterations", "[mpi]") {
  moe::mpi::LoadEstimate estimate(2, 3);
  CHECK(std::vector<double>(estimate.mean().begin(), estimate.mean().end()) == std::vector<double>{0, 0});
  const double expected[][2] = {{3, 0}, {2, 2}, {4, 2}, {4, 4}};
  const std::vector<Index> loads[] = {{3, 0}, {1, 4}, {8, 2}, {3, 6}};
  for (std::size_t i = 0; i < 4; ++i) {
    estimate.add(loads[i]);
    CHECK(estimate.mean()[0] == expected[i][0]);
    CHECK(estimate.mean()[1] == expected[i][1]);
  }
  CHECK(estimate.iterations() == 4);
  CHECK_THROWS_AS(estimate.add(std::vector<Index>{1}), std::invalid_argument);
  CHECK_THROWS_AS(moe::mpi::LoadEstimate(2, 0), std::invalid_argument);
  const std::vector<std::vector<double>> bad = {{1, -1}};
  CHECK_THROWS_AS(moe::mpi::heterogeneous_sharding(bad, {.ranks = 2}, 0), std::invalid_argument);
  const std::vector<std::vector<double>> good = {{1, 1}};
  CHECK_THROWS_AS(moe::mpi::heterogeneous_sharding(good, {.ranks = 2}, -1), std::invalid_argument);
  CHECK_THROWS_AS(moe::mpi::heterogeneous_sharding(good, {.ranks = 3, .ranks_per_node = 2}, 0), std::invalid_argument);
}
