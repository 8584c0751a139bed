// SPDX-License-Identifier: MIT
// Who holds which experts: properties of the sparse materialisation, the published imbalance, and where tokens go.
#include "moe/mpi/materialise.hpp"

#include <numeric>
#include <set>

#include "mpi/skewed_loads.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::mpi::Placement;
using moe::mpi::Topology;

namespace {

const Topology kTopologies[] = {
    {.ranks = 1}, {.ranks = 3}, {.ranks = 8, .ranks_per_node = 4}, {.ranks = 6, .ranks_per_node = 2}};

}  // namespace

TEST_CASE("Placement: contiguous shards, owners and holders", "[mpi]") {
  for (const Index ranks : {1, 2, 3, 8})
    for (const Index experts : {0, 1, 5, 8, 17}) {
      const auto shards = Placement::contiguous(experts, ranks);
      CAPTURE(ranks, experts);
      REQUIRE(shards.experts() == experts);
      std::vector<Index> all;
      for (Index r = 0; r < ranks; ++r) {
        const auto own = shards.owned_by(r);
        CHECK(std::ssize(own) >= experts / ranks);
        CHECK(std::ssize(own) <= (experts + ranks - 1) / ranks);
        CHECK(own == shards.held_by(r));
        all.insert(all.end(), own.begin(), own.end());
      }
      std::vector<Index> expected(static_cast<std::size_t>(experts));
      std::iota(expected.begin(), expected.end(), Index{0});
      CHECK(all == expected);
    }
  Placement placement({2, 0, 1}, 3);
  const auto before = placement.hash();
  placement.add(0, 0), placement.add(0, 2), placement.add(0, 0);
  CHECK(std::vector<Index>(placement.holders(0).begin(), placement.holders(0).end()) == std::vector<Index>{0, 2});
  CHECK(placement.owner(0) == 2);
  CHECK(placement.copies() == 1);
  CHECK(placement.held_by(0) == std::vector<Index>{0, 1});
  CHECK(placement.owned_by(0) == std::vector<Index>{1});
  CHECK(placement.hash() != before);
  CHECK(placement.shards() == Placement({2, 0, 1}, 3));
  CHECK(placement.shards().hash() == before);
}

TEST_CASE("materialise: only the busiest are copied, within the memory of every rank", "[mpi][property]") {
  for (const Topology& topology : kTopologies)
    for (std::uint64_t seed = 0; seed < 10; ++seed)
      for (const Index overlap : {0, 1, 3, 7, 40})
        for (const Index memory : {0, 1, 2, 5, 40}) {
          const std::vector<double> loads = pareto_loads(13, seed);
          const auto shards = Placement::contiguous(13, topology.ranks);
          const auto placement = moe::mpi::materialise(shards, loads, topology, {overlap, memory});
          CAPTURE(topology.ranks, seed, overlap, memory);
          CHECK(placement.shards() == shards);
          std::set<double, std::greater<>> top(loads.begin(), loads.end());
          for (Index e = 0; e < 13; ++e) {
            CHECK(placement.holds(placement.owner(e), e));
            const auto rank_of_load = std::distance(top.begin(), top.find(loads[static_cast<std::size_t>(e)]));
            if (rank_of_load >= overlap) CHECK(placement.holders(e).size() == 1);
          }
          Index copies = 0;
          for (Index r = 0; r < topology.ranks; ++r) {
            copies += moe::mpi::copies_received(placement, r);
            CHECK(moe::mpi::copies_received(placement, r) <= std::min(memory, overlap));
          }
          CHECK(copies == placement.copies());
          if (overlap == 0 || memory == 0 || topology.ranks == 1) CHECK(placement == shards);
          if (overlap <= memory) CHECK(copies == std::min<Index>(overlap, 13) * (topology.ranks - 1));
          if (overlap > memory && memory > 0 && topology.ranks > 1) CHECK(copies >= 1);
        }
}

TEST_CASE("materialise: copies follow loads, and go to other nodes first", "[mpi]") {
  // 8 copies for loads 6 : 1 : 1 of the three busiest: 6, 1 and 1.
  const std::vector<double> loads = {0, 0, 0, 6, 1, 1, 0, 0};
  const Topology topology{.ranks = 8, .ranks_per_node = 2};
  const auto placement =
      moe::mpi::materialise(Placement::contiguous(8, 8), loads, topology, {.overlap = 3, .memory = 1});
  CHECK(placement.holders(3).size() == 7);
  CHECK(placement.holders(4).size() == 2);
  CHECK(placement.holders(5).size() == 2);
  // Two copies each: those of the first two are on the other nodes, the last one has what is left, but for its owner.
  const auto copies = moe::mpi::materialise(Placement({0, 0, 0}, 6), std::vector<double>{1, 1, 1},
                                            {.ranks = 6, .ranks_per_node = 2}, {.overlap = 3, .memory = 1});
  CHECK((copies.holds(2, 0) && copies.holds(4, 0)));
  CHECK((copies.holds(3, 1) && copies.holds(5, 1)));
  CHECK(copies.held_by(1) == std::vector<Index>{2});
  CHECK(copies.copies() == 5);
}

TEST_CASE("holder_for: the rank itself, its node, anybody, in equal parts", "[mpi][property]") {
  Placement placement({0, 5, 2}, 8);
  placement.add(0, 1), placement.add(0, 6), placement.add(2, 7);
  const Topology topology{.ranks = 8, .ranks_per_node = 4};
  for (Index source = 0; source < 8; ++source)
    for (Index e = 0; e < 3; ++e) {
      std::vector<Index> count(8);
      for (Index i = 0; i < 12; ++i)
        ++count[static_cast<std::size_t>(moe::mpi::holder_for(placement, topology, source, e, i))];
      std::vector<Index> expected;
      for (const Index rank : placement.holders(e))
        if (rank == source) expected = {rank};
      if (expected.empty())
        for (const Index rank : placement.holders(e))
          if (rank / 4 == source / 4) expected.push_back(rank);
      if (expected.empty()) expected.assign(placement.holders(e).begin(), placement.holders(e).end());
      CAPTURE(source, e);
      for (const Index rank : expected) CHECK(count[static_cast<std::size_t>(rank)] == 12 / std::ssize(expected));
    }
  // rank_loads is what holder_for does with many tokens from everywhere.
  const std::vector<double> loads = {96, 192, 48};
  std::vector<double> counted(8);
  for (std::size_t e = 0; e < 3; ++e)
    for (Index source = 0; source < 8; ++source)
      for (Index i = 0; i < static_cast<Index>(loads[e]) / 8; ++i)
        ++counted[static_cast<std::size_t>(
            moe::mpi::holder_for(placement, topology, source, static_cast<Index>(e), i))];
  const auto expected = moe::mpi::rank_loads(loads, placement, topology);
  for (std::size_t r = 0; r < 8; ++r) CHECK_THAT(counted[r], Catch::Matchers::WithinRel(expected[r], 1e-12));
}

TEST_CASE("materialise: the published imbalance, and the volume of its exchange", "[mpi][golden]") {
  // 32 experts, 8 ranks, loads of a Pareto distribution of shape 1.2. The means of 4000 draws are known to about 0.015.
  constexpr int kDraws = 4000;
  const auto shards = Placement::contiguous(32, 8);
  const std::pair<Index, double> published[] = {{0, 2.79}, {1, 1.68}, {2, 1.46}, {4, 1.27}};
  for (const auto& [overlap, imbalance] : published) {
    double mean = 0;
    for (std::uint64_t seed = 0; seed < kDraws; ++seed) {
      const std::vector<double> loads = pareto_loads(32, seed);
      const auto placement = moe::mpi::materialise(shards, loads, {.ranks = 8}, {overlap, overlap});
      mean += moe::mpi::rank_imbalance(moe::mpi::rank_loads(loads, placement, {.ranks = 8})) / kDraws;
      REQUIRE(moe::mpi::gather_volume(placement) == static_cast<double>(overlap) / 32);  // 3.1, 6.2, 12.5 %
    }
    CAPTURE(overlap, mean);
    CHECK(std::abs(mean - imbalance) < 0.04);
  }
}

TEST_CASE("materialise: other ranks, loads that are none and negative numbers are refused", "[mpi][error]") {
  const auto shards = Placement::contiguous(4, 2);
  const std::vector<double> loads(4, 1);
  const auto refused = [&](const std::vector<double>& of, const Topology& topology,
                           const moe::mpi::Materialisation& limits) {
    CHECK_THROWS_AS(moe::mpi::materialise(shards, of, topology, limits), std::invalid_argument);
  };
  refused(loads, {.ranks = 3}, {});
  refused(loads, {.ranks = 2, .ranks_per_node = 4}, {});
  refused(loads, {.ranks = 2, .ranks_per_node = -1}, {});
  refused(std::vector<double>(3, 1), {.ranks = 2}, {});
  refused(std::vector<double>{1, -1, 0, 0}, {.ranks = 2}, {});
  refused(std::vector<double>{1, std::nan(""), 0, 0}, {.ranks = 2}, {});
  refused(loads, {.ranks = 2}, {.overlap = -1});
  refused(loads, {.ranks = 2}, {.memory = -1});
  CHECK_THROWS_AS(Placement({0, 2}, 2), std::invalid_argument);
  CHECK_THROWS_AS(Placement({}, 0), std::invalid_argument);
  Placement placement({0, 1}, 2);
  CHECK_THROWS_AS(placement.add(2, 0), std::invalid_argument);
  CHECK_THROWS_AS(placement.add(0, 2), std::invalid_argument);
  CHECK_THROWS_AS(moe::mpi::overlap_degree(1, 0, 1), std::invalid_argument);
  CHECK(moe::mpi::overlap_degree(0.01, 1e9, 3e6) == 3);
  CHECK(moe::mpi::rank_imbalance(std::vector<double>(3, 0)) == 1);
}
