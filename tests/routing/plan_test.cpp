// SPDX-License-Identifier: MIT
#include "moe/routing/plan.hpp"

#include <array>
#include <tuple>

#include "moe/routing/balance/statistics.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using moe::DispatchPlan;
using moe::Index;

namespace {

DispatchPlan plan_of(const moe::Routing<double>& routing, Index num_experts) {
  DispatchPlan plan;
  plan.build(routing, num_experts);
  return plan;
}

/// (expert, token, assignment) of every served choice, sorted: what a plan has to list.
std::vector<std::tuple<Index, Index, Index>> expected_rows(const moe::Routing<double>& routing) {
  std::vector<std::tuple<Index, Index, Index>> rows;
  for (Index t = 0; t < routing.num_tokens(); ++t)
    for (Index a = routing.begin(t); a < routing.end(t); ++a)
      if (!routing.dropped()[static_cast<std::size_t>(a)])
        rows.emplace_back(routing.experts()[static_cast<std::size_t>(a)], t, a);
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::vector<std::tuple<Index, Index, Index>> rows_of(const DispatchPlan& plan) {
  std::vector<std::tuple<Index, Index, Index>> rows;
  for (Index e = 0; e < plan.num_experts(); ++e)
    for (Index r = plan.offset(e); r < plan.offset(e + 1); ++r)
      rows.emplace_back(e, plan.token_of_row()[static_cast<std::size_t>(r)],
                        plan.assignment_of_row()[static_cast<std::size_t>(r)]);
  return rows;
}

void drop_every_third(moe::Routing<double>& routing) {
  for (Index a = 0; a < routing.num_assignments(); a += 3) routing.drop(a, moe::kDroppedByGate);
}

}  // namespace

TEST_CASE("DispatchPlan: rows are the served choices, each once, by expert and then by token", "[plan]") {
  const Index num_experts = GENERATE(1, 2, 7, 64);
  const Index num_tokens = GENERATE(0, 1, 2, 33, 500);
  CAPTURE(num_experts, num_tokens);
  auto routing = test::random_ragged_routing(num_tokens, num_experts);
  drop_every_third(routing);
  CHECK(rows_of(plan_of(routing, num_experts)) == expected_rows(routing));
}

TEST_CASE("DispatchPlan: row of assignment inverts assignment of row, -1 where dropped", "[plan]") {
  auto routing = test::random_ragged_routing(200, 5);
  drop_every_third(routing);
  const DispatchPlan plan = plan_of(routing, 5);
  Index served = 0;
  for (Index a = 0; a < routing.num_assignments(); ++a) {
    const auto at = static_cast<std::size_t>(a);
    const Index row = plan.row_of_assignment()[at];
    CAPTURE(a, row);
    CHECK((row == -1) == (routing.dropped()[at] != 0));
    if (row >= 0) CHECK(plan.assignment_of_row()[static_cast<std::size_t>(row)] == a);
    served += row >= 0 ? 1 : 0;
  }
  CHECK(served == plan.num_rows());
}

TEST_CASE("DispatchPlan: offsets rise and count the rows of each expert", "[plan]") {
  const DispatchPlan plan = plan_of(test::routing_of({{3, 0}, {}, {3, 1}, {3}}), 5);
  std::vector<Index> rows;
  for (Index e = 0; e < 5; ++e) rows.push_back(plan.rows_of(e));
  CHECK(rows == std::vector<Index>{1, 1, 0, 3, 0});
  CHECK(plan.offset(0) == 0);
  CHECK(plan.offset(5) == plan.num_rows());
  CHECK(plan.num_tokens() == 4);
}

TEST_CASE("DispatchPlan: all tokens on one expert stay in order", "[plan]") {
  const Index expert = GENERATE(0, 3, 7);
  const DispatchPlan plan = plan_of(test::routing_of(std::vector<std::vector<Index>>(100, {expert})), 8);
  CHECK(plan.rows_of(expert) == 100);
  CHECK(std::is_sorted(plan.token_of_row().begin(), plan.token_of_row().end()));
}

TEST_CASE("DispatchPlan: experts whose rows lie a power of two apart", "[plan][property]") {
  // Their next rows share a set of the caches, and go there by lines; some begin inside a line.
  const auto sizes =
      GENERATE(std::array<Index, 3>{16, 512, 0}, std::array<Index, 3>{64, 128, 0}, std::array<Index, 3>{40, 512, 5},
               std::array<Index, 3>{33, 1024, 17}, std::array<Index, 3>{7, 512, 0}, std::array<Index, 3>{8, 511, 0},
               std::array<Index, 3>{9, 513, 0},     // at these three it depends on addresses
               std::array<Index, 3>{16, 8704, 3});  // shared among workers
  const Index num_experts = sizes[0], num_tokens = sizes[1], before = sizes[2];
  const bool drop = GENERATE(false, true);
  CAPTURE(num_experts, num_tokens, before, drop);
  moe::Routing<double> routing;  // every expert, but expert 0 for some tokens only; last expert first
  routing.resize_ragged(num_tokens, [&](Index t) { return t < before || before == 0 ? num_experts : num_experts - 1; });
  for (Index t = 0; t < num_tokens; ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      routing.experts(t)[s] = num_experts - 1 - static_cast<Index>(s);
  if (drop)
    for (Index a = 0; a < routing.num_assignments(); ++a)
      if (a % 8 == 3) routing.drop(a, moe::kDroppedByGate);
  const auto plans = test::on_thread_counts([&] {
    const DispatchPlan plan = plan_of(routing, num_experts);
    for (Index a = 0; a < routing.num_assignments(); ++a) {
      const Index row = plan.row_of_assignment()[static_cast<std::size_t>(a)];
      if (row < 0) continue;
      REQUIRE(plan.assignment_of_row()[static_cast<std::size_t>(row)] == a);
    }
    return rows_of(plan);
  });
  CHECK(plans.front() == expected_rows(routing));
  CHECK(test::all_equal(plans));
}

TEST_CASE("DispatchPlan: no tokens or no experts is an empty plan", "[plan]") {
  CHECK(plan_of({}, 4).num_experts() == 4);
  CHECK(plan_of({}, 4).num_rows() == 0);
  CHECK(plan_of({}, 0).num_experts() == 0);
  CHECK(plan_of(test::routing_of({{}, {}}), 0).num_rows() == 0);
}

TEST_CASE("DispatchPlan: by default, and moved from, it is empty", "[plan]") {
  DispatchPlan filled = plan_of(test::routing_of({{0, 1}, {1}}), 2);
  const DispatchPlan moved = std::move(filled);
  CHECK(moved.num_rows() == 3);
  for (const DispatchPlan& plan : {DispatchPlan(), filled}) {
    CHECK(plan.num_experts() == 0);
    CHECK(plan.num_tokens() == 0);
    CHECK(plan.num_rows() == 0);
    CHECK(plan.token_of_row().empty());
    CHECK(plan.assignment_of_row().empty());
    CHECK(plan.row_of_assignment().empty());
  }
  auto routing = test::routing_of({{0, 1}, {1}});
  const auto moved_routing = std::move(routing);
  CHECK(routing.num_tokens() == 0);
  CHECK(routing.num_assignments() == 0);
  CHECK(plan_of(routing, 2).num_rows() == 0);
  CHECK(moe::load_imbalance(DispatchPlan()) == 1);
}

TEST_CASE("DispatchPlan: an expert out of range is an error that names it", "[plan][error]") {
  DispatchPlan plan;
  CHECK_THROWS_WITH(plan.build(test::routing_of({{0}, {1, 4}}), 4),
                    "moe::DispatchPlan::build: assignment 2 names expert 4, expected 0 <= expert < num_experts = 4");
  CHECK_THROWS_AS(plan.build(test::routing_of({{-1}}), 4), std::invalid_argument);
  CHECK_THROWS_AS(plan.build(test::routing_of({{0}}), 0), std::invalid_argument);
}

TEST_CASE("DispatchPlan: after an error it is empty, whatever it held before", "[plan][error]") {
  DispatchPlan plan = plan_of(test::routing_of(std::vector<std::vector<Index>>(50, {0, 1})), 2);
  CHECK_THROWS(plan.build(test::routing_of({{9}}), 2));
  CHECK(plan.num_rows() == 0);
  CHECK(plan.token_of_row().empty());
  CHECK(plan.row_of_assignment().empty());
}

TEST_CASE("DispatchPlan: any number of threads builds the same plan", "[plan]") {
  const Index num_experts = GENERATE(1, 13);
  // 0.4 of the experts per token, and above the size from which work is shared.
  auto routing = test::random_ragged_routing(3 * DispatchPlan::kParallelFrom / num_experts, num_experts);
  drop_every_third(routing);
  REQUIRE(routing.num_assignments() > DispatchPlan::kParallelFrom);
  const auto plans = test::on_thread_counts([&] { return rows_of(plan_of(routing, num_experts)); });
  CHECK(plans.front() == expected_rows(routing));
  CHECK(test::all_equal(plans));
}

TEST_CASE("DispatchPlan: an expert out of range is found by a parallel build too", "[plan][error]") {
  auto routing = test::random_ragged_routing(3 * DispatchPlan::kParallelFrom / 13, 13);
  REQUIRE(routing.num_assignments() > DispatchPlan::kParallelFrom);
  routing.experts()[routing.experts().size() / 2] = 13;
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  CHECK_THROWS_AS(plan_of(routing, 13), std::invalid_argument);
}

TEST_CASE("DispatchPlan: few tokens with many choices are shared out by whole tokens", "[plan]") {
  std::vector<Index> all(static_cast<std::size_t>(DispatchPlan::kParallelFrom));
  for (std::size_t e = 0; e < all.size(); ++e) all[e] = static_cast<Index>(e);
  const auto routing = test::routing_of({{}, all, {}});
  const auto plans = test::on_thread_counts([&] { return rows_of(plan_of(routing, DispatchPlan::kParallelFrom)); });
  CHECK(plans.front() == expected_rows(routing));
  CHECK(test::all_equal(plans));
}

TEST_CASE("DispatchPlan: rebuilding in place equals building anew", "[plan]") {
  DispatchPlan plan = plan_of(test::random_ragged_routing(300, 9), 9);
  const auto routing = test::random_ragged_routing(40, 6, 2);
  plan.build(routing, 6);
  CHECK(rows_of(plan) == expected_rows(routing));
  CHECK(static_cast<Index>(plan.row_of_assignment().size()) == routing.num_assignments());
}

TEST_CASE("DispatchPlan: rows that say what they read are what a routing of them gives", "[plan]") {
  const std::array<Index, 4> offsets = {0, 2, 2, 5};
  const std::array<Index, 5> tokens = {1, 3, 0, 1, 3};
  const auto token_of = [&](Index r) { return tokens[static_cast<std::size_t>(r)]; };
  DispatchPlan plan;
  plan.build_from_rows(offsets, 0, 5, 4, token_of);
  CHECK(rows_of(plan) == rows_of(plan_of(test::routing_of({{2}, {0, 2}, {}, {0, 2}}), 3)));
  CHECK(test::copy_of(plan.row_of_assignment()) == std::vector<Index>{2, 0, 3, 1, 4});
  plan.build_from_rows(offsets, 2, 4, 4, token_of);  // some of them
  CHECK(plan.num_rows() == 5);
  CHECK(test::copy_of(plan.row_of_assignment()) == std::vector<Index>{2, 3});
  CHECK(plan.end(3) == 2);
  CHECK_THROWS_AS(plan.build_from_rows(offsets, 0, 6, 4, token_of), std::invalid_argument);
  CHECK_THROWS_AS(plan.build_from_rows(offsets, 0, 5, 3, token_of), std::invalid_argument);
  CHECK_THROWS_AS(plan.build_from_rows(std::array<Index, 2>{1, 2}, 0, 0, 3, token_of), std::invalid_argument);
  CHECK(plan.num_experts() == 0);
}
