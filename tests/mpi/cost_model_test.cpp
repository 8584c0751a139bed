// SPDX-License-Identifier: MIT
// What a step should take: fits of made-up measurements, formulas of exchanges, and what copies are worth.
#include "moe/mpi/cost_model.hpp"

#include "mpi/skewed_loads.hpp"
#include "support/catch.hpp"

using Catch::Matchers::WithinRel;
using moe::Index;
using moe::mpi::CostModel;
using moe::mpi::LinearCost;
using moe::mpi::Measured;
using moe::mpi::Placement;
using moe::mpi::RankMatrix;
using moe::mpi::Topology;

namespace {

constexpr double kRounding = 1e-12;  // some hundred sums and products of doubles
const CostModel kModel{.within_node = {1e-6, 1e-10}, .between_nodes = {2e-5, 1e-9}, .compute = {1e-5, 1e-11}};

RankMatrix rows_of(const std::vector<double>& loads, Index ranks) {
  RankMatrix rows(ranks, std::ssize(loads));
  for (Index r = 0; r < ranks; ++r)
    for (Index e = 0; e < rows.cols(); ++e)
      rows(r, e) = loads[static_cast<std::size_t>(e)] / static_cast<double>(ranks);
  return rows;
}

}  // namespace

TEST_CASE("fit_cost: finds alpha and beta of measurements with noise within 1%", "[mpi]") {
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    for (const LinearCost& cost : {LinearCost{2e-6, 3e-10}, {5e-5, 1e-9}, {1e-7, 4e-11}}) {
      const moe::RandomField random(moe::Purpose::User, seed);
      std::vector<Measured> measured;
      for (Index i = 0; i < 300; ++i) {  // 20 sizes, 15 times each, 2% of noise
        const double amount = std::exp2(static_cast<double>(3 + i % 20)), starts = static_cast<double>(1 + i % 3);
        measured.push_back({starts, amount, cost.seconds(starts, amount) * (1 + 0.02 * random.normal(i))});
      }
      const LinearCost found = moe::mpi::fit_cost(measured);
      CAPTURE(seed, cost.per_start);
      CHECK_THAT(found.per_start, WithinRel(cost.per_start, 0.01));
      CHECK_THAT(found.per_amount, WithinRel(cost.per_amount, 0.01));
    }
  // Exactly, from two; and never below 0.
  const std::vector<Measured> two = {{1, 10, 3}, {1, 20, 4}};
  CHECK_THAT(moe::mpi::fit_cost(two).per_start, WithinRel(2.0, kRounding));
  CHECK_THAT(moe::mpi::fit_cost(two).per_amount, WithinRel(0.1, kRounding));
  const LinearCost without_start = moe::mpi::fit_cost(std::vector<Measured>{{1, 10, 1}, {1, 20, 3}});
  CHECK(without_start.per_start == 0);
  CHECK_THAT(without_start.per_amount, WithinRel((10.0 + 20.0 / 3) / (100 + 400.0 / 9), kRounding));
  const LinearCost without_amount = moe::mpi::fit_cost(std::vector<Measured>{{1, 10, 3}, {1, 20, 1}});
  CHECK(without_amount.per_amount == 0);
  CHECK_THAT(without_amount.per_start, WithinRel((1.0 / 3 + 1) / (1.0 / 9 + 1), kRounding));
  CHECK_THAT(moe::mpi::fit_cost(std::vector<Measured>{{1, 10, 1}, {2, 20, 2}}).seconds(3, 30),
             WithinRel(3.0, kRounding));
}

TEST_CASE("exchange seconds: the formulas, where all parts are equal", "[mpi]") {
  for (const Topology& topology : {Topology{.ranks = 1},
                                   {.ranks = 8, .ranks_per_node = 4},
                                   {.ranks = 6, .ranks_per_node = 2},
                                   {.ranks = 5, .ranks_per_node = 1}}) {
    const Index p = topology.ranks, g = topology.per_node();
    const double n = 1000;
    const RankMatrix bytes = RankMatrix::Constant(p, p, n);
    const auto times = [](const LinearCost& cost, Index messages, double each) {
      return static_cast<double>(messages) * (cost.per_start + cost.per_amount * each);
    };
    CAPTURE(p, g);
    CHECK_THAT(moe::mpi::flat_exchange_seconds(kModel, topology, bytes),
               WithinRel(times(kModel.within_node, g - 1, n) + times(kModel.between_nodes, p - g, n), kRounding));
    CHECK_THAT(moe::mpi::hierarchical_exchange_seconds(kModel, topology, bytes),
               WithinRel(times(kModel.within_node, g - 1, n * static_cast<double>(p / g)) +
                             times(kModel.between_nodes, p / g - 1, n * static_cast<double>(g)),
                         kRounding));
  }
  // Small messages between many ranks: fewer of them are faster; large ones are not.
  const Topology many{.ranks = 64, .ranks_per_node = 8};
  const auto gain = [&](double n) {
    const RankMatrix bytes = RankMatrix::Constant(64, 64, n);
    return moe::mpi::flat_exchange_seconds(kModel, many, bytes) /
           moe::mpi::hierarchical_exchange_seconds(kModel, many, bytes);
  };
  CHECK(gain(10) > 4);
  CHECK(gain(1e6) < 1);
}

TEST_CASE("exchange seconds: the busiest rank, in or out, and nothing for what is kept", "[mpi]") {
  RankMatrix bytes = RankMatrix::Zero(4, 4);
  bytes.diagonal().setConstant(1e9);
  const Topology topology{.ranks = 4, .ranks_per_node = 2};
  CHECK(moe::mpi::flat_exchange_seconds(kModel, topology, bytes) == 0);
  CHECK(moe::mpi::hierarchical_exchange_seconds(kModel, topology, bytes) == 0);
  bytes(0, 1) = 3000, bytes(2, 1) = 500, bytes(3, 1) = 100;
  CHECK_THAT(moe::mpi::flat_exchange_seconds(kModel, topology, bytes),
             WithinRel(kModel.within_node.seconds(1, 3000) + kModel.between_nodes.seconds(2, 600), kRounding));
  // Rank 2 hands 500 bytes to rank 3, which sends them on with its own.
  CHECK_THAT(moe::mpi::hierarchical_exchange_seconds(kModel, topology, bytes),
             WithinRel(kModel.within_node.seconds(1, 3000) + kModel.between_nodes.seconds(1, 600), kRounding));
  CHECK_THROWS_AS(moe::mpi::flat_exchange_seconds(kModel, {.ranks = 3}, bytes), std::invalid_argument);
  CHECK_THROWS_AS(moe::mpi::hierarchical_exchange_seconds(kModel, {.ranks = 3}, bytes), std::invalid_argument);
}

TEST_CASE("rows_between_ranks: no row is lost, and ranks get their loads", "[mpi][property]") {
  for (std::uint64_t seed = 0; seed < 10; ++seed)
    for (const Topology& topology : {Topology{.ranks = 3}, {.ranks = 8, .ranks_per_node = 2}}) {
      const std::vector<double> loads = pareto_loads(13, seed);
      const Placement placement = moe::mpi::materialise(Placement::contiguous(13, topology.ranks), loads, topology,
                                                        {.overlap = 4, .memory = 2});
      const RankMatrix rows = rows_of(loads, topology.ranks);
      const RankMatrix between = moe::mpi::rows_between_ranks(rows, placement, topology);
      const std::vector<double> of_ranks = moe::mpi::rank_loads(loads, placement, topology);
      CAPTURE(seed, topology.ranks);
      for (Index r = 0; r < topology.ranks; ++r) {
        CHECK_THAT(between.row(r).sum(), WithinRel(rows.row(r).sum(), kRounding));
        CHECK_THAT(between.col(r).sum(), WithinRel(of_ranks[static_cast<std::size_t>(r)], kRounding));
        CHECK(moe::mpi::copies_between_ranks(placement).col(r).sum() ==
              static_cast<double>(moe::mpi::copies_received(placement, r)));
      }
      CHECK_THROWS_AS(moe::mpi::rows_between_ranks(rows.leftCols(12), placement, topology), std::invalid_argument);
    }
}

TEST_CASE("step_time: copies take time to come, and save more where loads are uneven", "[mpi]") {
  const Topology topology{.ranks = 8};
  const Placement shards = Placement::contiguous(32, 8);
  const std::vector<double> even(32, 1000);
  std::vector<double> uneven = even;
  uneven[0] = 20000;
  const moe::mpi::StepWork work{
      .row_bytes = 4096, .row_operations = 6e6, .calls = 12, .expert_bytes = 4e6, .other_seconds = 1e-3};
  const auto time = [&](const std::vector<double>& loads, Index overlap) {
    return moe::mpi::step_time(kModel, topology, work, rows_of(loads, 8),
                               moe::mpi::materialise(shards, loads, topology, {overlap, overlap}));
  };
  const auto ep = time(even, 0);
  CHECK_THAT(ep.compute, WithinRel(12 * 1e-5 + 4000 * 6e6 * 1e-11, kRounding));
  CHECK_THAT(ep.exchange, WithinRel(4 * 7 * (1e-6 + 500 * 4096 * 1e-10), kRounding));
  CHECK(ep.gather == 0);
  CHECK_THAT(ep.total(), WithinRel(ep.compute + ep.exchange + 1e-3, kRounding));
  // The owner of the one expert that is copied sends it seven times, twice (parameters, gradients).
  CHECK_THAT(time(even, 1).gather, WithinRel(2 * 7 * (1e-6 + 4e6 * 1e-10) - 1e-3, kRounding));
  CHECK(time(even, 1).total() > ep.total());
  CHECK(time(uneven, 1).total() < 0.5 * time(uneven, 0).total());
}

TEST_CASE("fit_cost: measurements that say nothing are refused", "[mpi][error]") {
  const auto refused = [](const std::vector<Measured>& measured) {
    CHECK_THROWS_AS(moe::mpi::fit_cost(measured), std::invalid_argument);
  };
  refused({{1, 1, 1}});
  refused({{1, 1, 1}, {1, 2, 0}});
  refused({{1, 1, 1}, {1, -2, 1}});
  refused({{1, 1, 1}, {1, 2, std::nan("")}});
  refused({{1, 0, 1}, {2, 0, 1}});
}
