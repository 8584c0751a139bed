// SPDX-License-Identifier: MIT
#include "moe/compress/bit_plan.hpp"

#include <optional>

#include "moe/compress/allocate_bits.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::BitProblem;
using moe::Index;
using moe::Matrix;
using Ids = std::vector<Index>;

namespace {

double cost_of(const BitProblem& problem, const Ids& bits) {
  double sum = 0;
  for (std::size_t i = bits.size(); i-- > 0;) {  // the order of the programme
    const auto b = std::ranges::find(problem.bits, bits[i]) - problem.bits.begin();
    sum = problem.costs(static_cast<Index>(i), b) + sum;
  }
  return sum;
}
Index size_of(const BitProblem& problem, const Ids& bits) {
  Index sum = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) sum += bits[i] * (problem.sizes.empty() ? 1 : problem.sizes[i]);
  return sum;
}
bool is_allowed(const BitProblem& problem, const Ids& bits) {
  for (std::size_t b = 0; b < problem.at_least.size(); ++b)
    if (std::ranges::count(bits, problem.bits[b]) < problem.at_least[b]) return false;
  return size_of(problem, bits) <= problem.budget;
}

/// The least cost of all plans, if one is allowed.
std::optional<double> exhaustive(const BitProblem& problem) {
  const auto items = static_cast<std::size_t>(problem.costs.rows()), choices = problem.bits.size();
  std::size_t plans = 1;
  for (std::size_t i = 0; i < items; ++i) plans *= choices;
  std::optional<double> least;
  Ids bits(items);
  for (std::size_t code = 0; code < plans; ++code) {
    std::size_t rest = code;
    for (Index& b : bits) b = problem.bits[rest % choices], rest /= choices;
    if (!is_allowed(problem, bits)) continue;
    const double cost = cost_of(problem, bits);
    least = least ? std::min(*least, cost) : cost;
  }
  return least;
}

BitProblem random_problem(std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  const auto draw = [&](std::uint64_t count, Index place) { return static_cast<Index>(random.below(count, place, 1)); };
  const Index items = 1 + draw(8, 0);
  BitProblem problem{.bits = {1, 2, 3}, .costs = Matrix<double>(items, 3)};
  for (Index i = 0; i < items; ++i)
    for (Index b = 0; b < 3; ++b) problem.costs(i, b) = random.normal(i, 10 + b) * random.normal(i, 10 + b);
  if (draw(2, 1) == 0)
    for (Index i = 0; i < items; ++i) problem.sizes.push_back(6 * (1 + draw(3, 2 + i)));
  if (draw(2, 20) == 0) problem.at_least = {0, draw(2, 21), draw(2, 22)};
  problem.budget = size_of(problem, Ids(static_cast<std::size_t>(items), 1));
  problem.budget += draw(static_cast<std::uint64_t>(2 * problem.budget + 1), 23) - draw(3, 24);
  return problem;
}

}  // namespace

TEST_CASE("allocate_bits: what all plans are searched for", "[compress]") {
  int feasible = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    CAPTURE(seed);
    const BitProblem problem = random_problem(seed);
    const std::optional<double> least = exhaustive(problem);
    if (!least) {
      CHECK_THROWS_AS(moe::allocate_bits(problem), std::invalid_argument);
      continue;
    }
    ++feasible;
    const Ids bits = moe::allocate_bits(problem);
    REQUIRE(is_allowed(problem, bits));
    REQUIRE(cost_of(problem, bits) == *least);
    REQUIRE(moe::bit_cost_bound(problem) <= *least + 1e-12);
  }
  CHECK(feasible > 100);
}

TEST_CASE("allocate_bits: the bound is close, more budget never costs more, permutations permute", "[compress]") {
  const Matrix<double> draws = test::random_matrix<double>(9, 3, 4);
  BitProblem problem{.bits = {1, 2, 3}, .costs = draws.array().square(), .budget = 9};
  for (Index i = 0; i < 9; ++i) std::ranges::sort(problem.costs.row(i), std::ranges::greater{});
  double last = 1e300;
  for (; problem.budget <= 27; ++problem.budget) {
    const Ids bits = moe::allocate_bits(problem);
    const double cost = cost_of(problem, bits), bound = moe::bit_cost_bound(problem);
    CHECK(cost <= last);
    // What is divided is one item: rounding it down costs at most the largest gain of an item.
    CHECK(cost - bound <= (problem.costs.col(0) - problem.costs.col(2)).maxCoeff() + 1e-12);
    last = cost;
    BitProblem scaled = problem, turned = problem;
    scaled.costs *= 8;
    turned.costs = problem.costs.colwise().reverse().eval();
    CHECK(moe::allocate_bits(scaled) == bits);
    CHECK_THAT(cost_of(turned, moe::allocate_bits(turned)), Catch::Matchers::WithinRel(cost, 1e-12));
  }
  CHECK(moe::allocate_bits(problem) == Ids(9, 3));
  CHECK_THAT(moe::bit_cost_bound(problem), Catch::Matchers::WithinRel(problem.costs.col(2).sum(), 1e-12));
}

TEST_CASE("allocate_bits: of equal plans the first items get more", "[compress]") {
  BitProblem problem{.bits = {1, 2, 3}, .costs = Matrix<double>::Zero(4, 3), .budget = 8};
  CHECK(moe::allocate_bits(problem) == Ids{3, 3, 1, 1});
  problem.at_least = {0, 3, 1};
  problem.budget = 9;
  CHECK(moe::allocate_bits(problem) == Ids{3, 2, 2, 2});
  problem.budget = 8;
  CHECK_THROWS_WITH(moe::allocate_bits(problem),
                    "moe::allocate_bits: the budget is 8, expected one that at_least has room in");
  problem.at_least = {};
  problem.budget = 3;
  CHECK_THROWS_WITH(moe::allocate_bits(problem),
                    "moe::allocate_bits: the budget is 3, expected at least 4 for 1 bits each");
  problem.budget = 8;
  problem.costs(1, 1) = test::kNan<double>;
  CHECK_THROWS_AS(moe::allocate_bits(problem), std::invalid_argument);
  problem.bits = {2, 1, 3};
  CHECK_THROWS_AS(moe::allocate_bits(problem), std::invalid_argument);
  CHECK_THROWS_AS(moe::allocate_bits({.bits = {1}, .costs = Matrix<double>::Zero(2, 1), .sizes = {1}, .budget = 9}),
                  std::invalid_argument);
}

TEST_CASE("bits_by_score: best first, within the average", "[compress]") {
  const std::vector<double> scores = {1, 5, 3, 5};
  CHECK(moe::bits_by_score(scores, 2, 4, 3) == Ids{2, 4, 2, 4});
  CHECK(moe::bits_by_score(scores, 2, 4, 2) == Ids(4, 2));
  CHECK(moe::bits_by_score(scores, 2, 4, 2.49) == Ids(4, 2));
  CHECK(moe::bits_by_score(scores, 2, 4, 2.5) == Ids{2, 4, 2, 2});
  CHECK(moe::bits_by_score(scores, 2, 4, 9) == Ids(4, 4));
  CHECK(moe::average_bits(moe::bits_by_score(scores, 2, 4, 3)) == 3);
  const Ids sizes = {1, 6, 1, 1};  // item 1 does not fit, others do
  CHECK(moe::bits_by_score(scores, 1, 3, 1.7, sizes) == Ids{3, 1, 3, 3});
  CHECK_THAT(moe::average_bits(Ids{3, 1, 3, 3}, sizes), Catch::Matchers::WithinRel(15.0 / 9, 1e-12));
  CHECK_THROWS_AS(moe::bits_by_score(scores, 4, 2, 3), std::invalid_argument);
  CHECK_THROWS_AS(moe::bits_by_score(scores, 2, 4, 1), std::invalid_argument);
  CHECK_THROWS_AS(moe::bits_by_score(std::vector<double>{test::kNan<double>}, 2, 4, 3), std::invalid_argument);
}

TEST_CASE("bit plans: what has no room in an Index, and edited plans, are refused", "[compress][error]") {
  const Index large = Index{1} << 61;
  const std::vector<double> scores = {1, 2};
  const moe::RandomField random(moe::Purpose::User);
  BitProblem problem{.bits = {1, 2, 3}, .costs = Matrix<double>::Ones(2, 3), .sizes = {large, large}, .budget = large};
  CHECK_THROWS_AS(moe::bit_cost_bound(problem), std::invalid_argument);
  CHECK_THROWS_AS(moe::bits_by_score(scores, 1, 3, 2, problem.sizes), std::invalid_argument);
  CHECK_THROWS_AS(moe::random_bits(2, Ids{1, 2, 3}, large, random, problem.sizes), std::invalid_argument);
  CHECK_THROWS_AS(moe::random_bits(2, Ids{1, 2}, std::numeric_limits<Index>::min(), random), std::invalid_argument);
  CHECK(moe::average_bits(Ids{4, 8}, Ids{large, large}) == 6);
  for (const Index matrices : {0, -1, 3})
    CHECK_THROWS_AS((moe::BitPlan{.bits = {1, 2, 3}, .matrices = matrices}({.expert = 0})), std::invalid_argument);
  CHECK_THROWS_AS((moe::BitPlan{.bits = {1, 2, 3}, .matrices = 2}({.expert = 0})), std::invalid_argument);
  for (const Index bits : {-1, 9})
    CHECK_THROWS_AS(moe::BitPlan{.bits = {bits}}.planes()({.expert = 0}), std::invalid_argument);
}

TEST_CASE("BitPlan: integers of every number of bits, 4 and 8 without zero points", "[compress]") {
  const moe::BitPlan plan{.bits = {1, 2, 3, 4, 5, 6, 7, 8}, .matrices = 2, .shared = 4};
  const auto format = plan.integers(32, moe::ScaleType::Bf16);
  for (Index b = 1; b <= 8; ++b) {
    const moe::WeightFormat found = format({.expert = (b - 1) / 2, .name = b % 2 ? "up.weight" : "down.weight"});
    CHECK(found.value_bits() == b);
    CHECK(found.has_zero_points == (b != 4 && b != 8));
    CHECK((found.group == 32 && found.scale == moe::ScaleType::Bf16));
    CHECK_NOTHROW(found.validate());
  }
  CHECK(format({.expert = -1}) == moe::WeightFormat::int4(32, moe::ScaleType::Bf16));
  for (const Index bits : {0, 9})
    CHECK_THROWS_AS(moe::BitPlan{.bits = {bits}}.integers()({.expert = 0}), std::invalid_argument);
}

TEST_CASE("random_bits: within the budget, and nothing more fits", "[compress]") {
  Index sum = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const Ids bits = moe::random_bits(6, Ids{1, 2, 3}, 12, moe::RandomField(moe::Purpose::User, seed));
    CHECK(std::accumulate(bits.begin(), bits.end(), Index{0}) == 12);
    sum += bits[0];
  }
  CHECK(std::abs(static_cast<double>(sum) / 200 - 2) < 5 * 0.82 / std::sqrt(200.0));  // no item is preferred
  CHECK_THROWS_AS(moe::random_bits(6, Ids{1, 2}, 5, moe::RandomField(moe::Purpose::User)), std::invalid_argument);
}

TEST_CASE("pmq_costs: powers, and what is not used costs nothing", "[compress]") {
  Matrix<double> errors(2, 2);
  errors << 4, 3, 2, 1;
  const std::vector<double> frequency = {0.5, 0}, weight = {0.25, 0};
  const Matrix<double> costs = moe::pmq_costs(errors, frequency, weight);
  CHECK_THAT(costs(0, 0), Catch::Matchers::WithinRel(0.5 * 0.125 * 16, 1e-12));
  CHECK(costs.row(1).isZero(0));
  CHECK(moe::pmq_costs(errors, frequency, weight, {.frequency = 0, .weight = 0, .error = 1}) == errors);
  errors(0, 0) = -1;
  CHECK_THROWS_AS(moe::pmq_costs(errors, frequency, weight), std::invalid_argument);
  const moe::BitPlan plan{.bits = {1, 2, 3, 4}, .matrices = 2};
  CHECK(plan({.expert = 1, .name = "gate_up.weight"}) == 3);
  CHECK(plan({.expert = 1, .name = "down.weight"}) == 4);
  CHECK(plan({.expert = -1, .name = "down.weight"}) == 8);
  CHECK_THROWS_AS(plan({.expert = 2}), std::invalid_argument);
}
