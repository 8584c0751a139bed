// SPDX-License-Identifier: MIT
// Orders of loading: against all orders that there are, Johnson's bound, and by hand.
#include "moe/serve/load_schedule.hpp"

#include <cmath>

#include "moe/core/random.hpp"
#include "support/catch.hpp"

using moe::Index;
using moe::LoadJob;

namespace {

/// Levels of rows by lot that fall from level to level; loads and computations as given, per level and per row.
std::vector<LoadJob> random_jobs(Index experts, const std::vector<double>& load, const std::vector<double>& per_row,
                                 std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  std::vector<LoadJob> jobs;
  for (Index e = 0; e < experts; ++e) {
    auto rows = 1 + static_cast<Index>(random.below(20, e));
    for (std::size_t l = 0; l < load.size() && rows > 0; ++l) {
      jobs.push_back({e, static_cast<Index>(l), rows, load[l], static_cast<double>(rows) * per_row[l]});
      rows = static_cast<Index>(random.below(static_cast<std::uint64_t>(rows) + 1, e, static_cast<Index>(l)));
    }
  }
  return jobs;
}

/// The least makespan of all schedules: jobs are in the order of experts and levels.
double least_of_all(const std::vector<LoadJob>& jobs) {
  double least = 1e300;
  std::vector<Index> order;
  std::vector<bool> used(jobs.size());
  const std::function<void()> extend = [&] {
    if (order.size() == jobs.size()) least = std::min(least, moe::makespan(jobs, order));
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      if (used[i] || (jobs[i].level > 0 && !used[i - 1])) continue;
      used[i] = true, order.push_back(static_cast<Index>(i));
      extend();
      used[i] = false, order.pop_back();
    }
  };
  extend();
  return least;
}

}  // namespace

TEST_CASE("hottest_expert_bit_first: optimal for 180 of 200, and at most 3% above, with 4 experts of two levels",
          "[serve][property]") {
  int optimal = 0;
  double worst = 0, worst_by_id = 0, by_id = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const std::vector<LoadJob> jobs = random_jobs(4, {2, 1}, {0.15, 0.1}, seed);
    const auto hottest = moe::hottest_expert_bit_first(jobs), ids = moe::expert_id_order(jobs);
    REQUIRE_NOTHROW(moe::require_schedule("test", jobs, hottest));
    REQUIRE_NOTHROW(moe::require_schedule("test", jobs, ids));
    const double best = least_of_all(jobs), found = moe::makespan(jobs, hottest);
    CAPTURE(seed);
    REQUIRE(found >= best - 1e-12);  // sums of at most 16 numbers below 100: 16 eps 100 = 4e-13
    REQUIRE(moe::makespan(jobs, moe::johnson_order(jobs)) <= best + 1e-12);
    optimal += found <= best + 1e-9 ? 1 : 0;
    worst = std::max(worst, found / best);
    by_id += moe::makespan(jobs, ids) / best / 200;
    worst_by_id = std::max(worst_by_id, moe::makespan(jobs, ids) / best);
  }
  CAPTURE(optimal, worst, by_id, worst_by_id);
  CHECK(optimal >= 180);
  CHECK(worst <= 1.03);
  CHECK(by_id > 1.04);  // or there would be nothing to gain
}

TEST_CASE("johnson_chains: optimal where each row computes once, as load_jobs() has it; hottest first is not",
          "[serve][property]") {
  int hottest = 0;
  double worst = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    std::vector<LoadJob> jobs = random_jobs(4, {2, 1}, {0, 0}, seed);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const bool has_next = i + 1 < jobs.size() && jobs[i + 1].expert == jobs[i].expert;
      jobs[i].compute = 0.15 * static_cast<double>(jobs[i].rows - (has_next ? jobs[i + 1].rows : 0));
    }
    const double best = least_of_all(jobs), found = moe::makespan(jobs, moe::hottest_expert_bit_first(jobs));
    hottest += found <= best + 1e-9 ? 1 : 0;
    worst = std::max(worst, found / best);
    const auto chains = moe::johnson_chains(jobs);
    CAPTURE(seed);
    REQUIRE_NOTHROW(moe::require_schedule("test", jobs, chains));
    REQUIRE(moe::makespan(jobs, chains) <= best + 1e-12);
  }
  CHECK(hottest == 161);  // of these draws, as its docstring says
  CHECK(std::abs(worst - 1.233) < 1e-3);
}

TEST_CASE("johnson_chains: optimal for chains of any loads and computations, none of them among these",
          "[serve][property]") {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const moe::RandomField random(moe::Purpose::User, seed);
    std::vector<LoadJob> jobs;
    for (Index e = 0; e < 3; ++e)
      for (Index l = 0; l < 3; ++l) {
        const auto second = [&](Index which) { return static_cast<double>(random.below(6, 3 * e + l, which)); };
        jobs.push_back({e, l, 3 - l, second(0), second(1)});
      }
    const auto chains = moe::johnson_chains(jobs);
    CAPTURE(seed);
    REQUIRE_NOTHROW(moe::require_schedule("test", jobs, chains));
    REQUIRE(moe::makespan(jobs, chains) == least_of_all(jobs));  // whole numbers
  }
  CHECK(moe::johnson_chains({}).empty());
  CHECK_THROWS_AS(moe::johnson_chains(std::vector<LoadJob>{{1, 1}, {1, 1}}), std::invalid_argument);
}

TEST_CASE("makespan: loading and computing overlap, between the bounds that they have alone", "[serve][property]") {
  const std::vector<LoadJob> two = {{0, 0, 3, 2, 3}, {0, 1, 1, 1, 4}};
  CHECK(moe::makespan(two, std::vector<Index>{0, 1}) == 9);  // 2, then 3 + 4 without a wait
  CHECK(moe::makespan(two, std::vector<Index>{1, 0}) == 8);  // 1, then 4 + 3
  CHECK(moe::makespan({}, {}) == 0);
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    const auto jobs = random_jobs(8, {2, 1, 1}, {0.12, 0.06, 0.06}, seed);
    double load = 0, compute = 0, least_load = 1e300, least_compute = 1e300;
    for (const LoadJob& job : jobs) {
      load += job.load, compute += job.compute;
      least_load = std::min(least_load, job.load), least_compute = std::min(least_compute, job.compute);
    }
    for (const moe::LoadSchedule& schedule :
         {moe::LoadSchedule(moe::expert_id_order), moe::LoadSchedule(moe::hottest_expert_bit_first)}) {
      const double found = moe::makespan(jobs, schedule(jobs));
      CAPTURE(seed);
      CHECK(found >= std::max(load + least_compute, least_load + compute) - 1e-9);
      CHECK(found <= load + compute + 1e-9);
    }
  }
}

TEST_CASE("hottest_expert_bit_first: next levels compete by rows, ties go to the lower expert", "[serve]") {
  const std::vector<LoadJob> jobs = {{2, 1, 4}, {2, 0, 9}, {0, 0, 5}, {1, 0, 5}, {1, 2, 4}};
  CHECK(moe::hottest_expert_bit_first(jobs) == std::vector<Index>{1, 2, 3, 4, 0});
  CHECK(moe::expert_id_order(jobs) == std::vector<Index>{2, 3, 4, 1, 0});
  CHECK(moe::hottest_expert_bit_first({}).empty());
}

TEST_CASE("require_schedule: orders that are none are refused", "[serve][error]") {
  using Catch::Matchers::ContainsSubstring;
  const std::vector<LoadJob> jobs = {{0, 0, 2}, {0, 1, 1}, {3, 0, 1}};
  const auto check = [&](std::vector<Index> order) { moe::require_schedule("f", jobs, order); };
  CHECK_NOTHROW(check({2, 0, 1}));
  CHECK_THROWS_WITH(check({0, 1}), ContainsSubstring("an order of 2 jobs, expected 3"));
  CHECK_THROWS_WITH(check({0, 1, 1}), ContainsSubstring("job 1 of an order, expected each of [0, 3) once"));
  CHECK_THROWS_WITH(check({1, 0, 2}), ContainsSubstring("level 1 of expert 0 comes before level 0"));
  CHECK_THROWS_AS(moe::makespan(jobs, std::vector<Index>{0, 1, 3}), std::invalid_argument);
  CHECK_THROWS_AS(moe::expert_id_order(std::vector<LoadJob>{{1, 1}, {1, 1}}), std::invalid_argument);
}
