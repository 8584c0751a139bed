// SPDX-License-Identifier: MIT
#include "moe/numeric/assignment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moe/core/random.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;

namespace {

double total(const Eigen::MatrixXd& cost, const std::vector<Index>& order) {
  double sum = 0;
  for (std::size_t i = 0; i < order.size(); ++i) sum += cost(static_cast<Index>(i), order[i]);
  return sum;
}

/// By all permutations.
double least_total(const Eigen::MatrixXd& cost) {
  std::vector<Index> order(static_cast<std::size_t>(cost.rows()));
  std::iota(order.begin(), order.end(), Index{0});
  double least = total(cost, order);
  while (std::next_permutation(order.begin(), order.end())) least = std::min(least, total(cost, order));
  return least;
}

bool is_permutation(std::vector<Index> order) {
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i)
    if (order[i] != static_cast<Index>(i)) return false;
  return true;
}

}  // namespace

TEST_CASE("least_assignment: as good as the best of all permutations", "[assignment][property]") {
  for (Index k = 0; k <= 7; ++k)
    for (int seed = 0; seed < 8; ++seed) {
      CAPTURE(k, seed);
      const moe::RandomField random(moe::Purpose::User, seed, k);
      Eigen::MatrixXd cost(k, k);
      for (Index i = 0; i < k; ++i)  // ties in every other one
        for (Index j = 0; j < k; ++j)
          cost(i, j) = seed % 2 == 0 ? random.normal(i, j) : std::floor(4 * random.uniform(i, j));
      const std::vector<Index> order = moe::least_assignment(cost);
      CHECK(is_permutation(order));
      CHECK(std::abs(total(cost, order) - least_total(cost)) < 1e-12);
    }
}

TEST_CASE("least_assignment: finds a hidden permutation of many, costs of rows and columns apart", "[assignment]") {
  constexpr Index kSize = 60;
  const moe::RandomField random(moe::Purpose::User, 3);
  std::vector<Index> hidden(kSize);
  std::iota(hidden.begin(), hidden.end(), Index{0});
  for (Index i = kSize - 1; i > 0; --i)
    std::swap(hidden[static_cast<std::size_t>(i)], hidden[random.below(static_cast<std::uint64_t>(i + 1), i)]);
  Eigen::MatrixXd cost(kSize, kSize);
  for (Index i = 0; i < kSize; ++i)
    for (Index j = 0; j < kSize; ++j)  // what a row or a column costs whatever it is given changes nothing
      cost(i, j) = 100 * random.normal(i, -1) + 100 * random.normal(j, -2) +
                   (hidden[static_cast<std::size_t>(i)] == j ? 0 : 0.1 + random.uniform(i, j));
  CHECK(moe::least_assignment(cost) == hidden);
}

TEST_CASE("least_assignment: refuses what is no square of finite numbers", "[assignment][error]") {
  CHECK_THROWS_WITH(moe::least_assignment(Eigen::MatrixXd::Zero(2, 3)),
                    "moe::least_assignment: cost is [2, 3], expected [2, 2]");
  Eigen::MatrixXd cost = Eigen::MatrixXd::Zero(2, 2);
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    cost(1, 0) = bad;
    CHECK_THROWS_WITH(moe::least_assignment(cost), ContainsSubstring("not finite"));
  }
}
