// SPDX-License-Identifier: MIT
#include "moe/numeric/k_means.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;

namespace {

const moe::RandomField kSeeds(moe::Purpose::User, 7);

/// Points around (0, 0), (10, 0), (0, 10) ... in turn, no further than 1 from them in each coordinate.
template <class S>
moe::Matrix<S> around_corners(Index n, Index k) {
  const moe::RandomField random(moe::Purpose::User, 1);
  moe::Matrix<S> points(n, 2);
  for (Index i = 0; i < n; ++i) {
    const Index corner = i % k;
    points(i, 0) = static_cast<S>((corner % 2 == 0 ? 0 : 10) + 2 * random.uniform(i, 0) - 1);
    points(i, 1) = static_cast<S>((corner / 2 == 0 ? 0 : 10) + 2 * random.uniform(i, 1) - 1);
  }
  return points;
}

moe::Matrix<double> line(std::initializer_list<double> at) {
  moe::Matrix<double> points(static_cast<Index>(at.size()), 1);
  std::copy(at.begin(), at.end(), points.data());
  return points;
}

/// By its definition, in the order of the points.
double sum_of_squares(const moe::Matrix<double>& points, const moe::KMeans<double>& result) {
  double sum = 0;
  for (Index i = 0; i < points.rows(); ++i)
    for (Index c = 0; c < points.cols(); ++c)
      sum += std::pow(points(i, c) - result.centres(result.labels[static_cast<std::size_t>(i)], c), 2);
  return sum;
}

/// The least sum of squares of points on a line in k clusters, which are intervals, of sorted points from `from` on.
double least_on_line(const moe::Matrix<double>& points, Index from, Index k) {
  const Index n = points.rows();
  if (from == n) return 0;
  if (k == 0) return std::numeric_limits<double>::infinity();
  double best = std::numeric_limits<double>::infinity();
  for (Index to = from + 1; to <= n; ++to) {
    const auto part = points.col(0).segment(from, to - from).array();
    best = std::min(best, (part - part.mean()).square().sum() + least_on_line(points, to, k - 1));
  }
  return best;
}

}  // namespace

TEMPLATE_TEST_CASE("k_means: finds clusters that lie apart", "[k_means]", float, double) {
  const Index k = GENERATE(2, 4);
  const moe::Matrix<TestType> points = around_corners<TestType>(200, k);
  const auto result = moe::k_means(points, k, kSeeds);
  CHECK(result.converged);
  std::set<Index> used;
  for (Index i = 0; i < points.rows(); ++i) {
    CHECK(result.labels[static_cast<std::size_t>(i)] == result.labels[static_cast<std::size_t>(i % k)]);
    used.insert(result.labels[static_cast<std::size_t>(i)]);
  }
  CHECK(static_cast<Index>(used.size()) == k);
}

TEST_CASE("k_means: labels are nearest centres, converged centres the means of their points", "[k_means][property]") {
  for (int seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    const moe::RandomField random(moe::Purpose::User, seed, 3);
    const auto points = moe::Matrix<double>::NullaryExpr(97, 3, [&](Index i, Index c) { return random.normal(i, c); });
    const auto result = moe::k_means<double>(points, 5, random);
    REQUIRE(result.converged);
    for (Index i = 0; i < 97; ++i) {
      Index nearest = 0;
      for (Index j = 1; j < 5; ++j)
        if ((points.row(i) - result.centres.row(j)).norm() < (points.row(i) - result.centres.row(nearest)).norm())
          nearest = j;
      CHECK(result.labels[static_cast<std::size_t>(i)] == nearest);
    }
    for (Index j = 0; j < 5; ++j) {
      Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(3);
      double count = 0;
      for (Index i = 0; i < 97; ++i)
        if (result.labels[static_cast<std::size_t>(i)] == j) mean += points.row(i), ++count;
      if (count > 0) CHECK((result.centres.row(j) - mean / count).cwiseAbs().maxCoeff() < 1e-13);
    }
  }
}

TEST_CASE("k_means: more rounds never raise the sum of squares, which is that of its definition", "[k_means]") {
  const moe::RandomField random(moe::Purpose::User, 5);
  const moe::Matrix<double> points =
      moe::Matrix<double>::NullaryExpr(300, 2, [&](Index i, Index c) { return random.uniform(i, c); });
  double before = std::numeric_limits<double>::infinity();
  for (Index rounds = 1; rounds <= 30; ++rounds) {
    CAPTURE(rounds);
    const auto result = moe::k_means(points, 9, random, {.rounds = rounds});
    CHECK(result.rounds <= rounds);
    CHECK((result.converged || result.rounds == rounds));
    CHECK(result.sum_of_squares <= before * (1 + 1e-14));
    CHECK(std::abs(result.sum_of_squares - sum_of_squares(points, result)) < 1e-13 * result.sum_of_squares);
    before = result.sum_of_squares;
  }
}

TEST_CASE("k_means: the best of some seeds on a line is the best of all partitions", "[k_means]") {
  const moe::Matrix<double> points = line({-5, -4.5, -4.4, 0, 0.5, 0.7, 1, 7, 7.1, 9});
  for (Index k = 1; k <= 4; ++k) {
    CAPTURE(k);
    double best = std::numeric_limits<double>::infinity();
    for (int seed = 0; seed < 30; ++seed)
      best = std::min(best, moe::k_means(points, k, moe::RandomField(moe::Purpose::User, seed)).sum_of_squares);
    CHECK(std::abs(best - least_on_line(points, 0, k)) < 1e-12);
  }
}

TEST_CASE("k_means: seeds are drawn by squared distance", "[k_means][property]") {
  // From 0 the second seed is 1 with probability 1 / 10 and 3 with 9 / 10; from 1 it is 0 with 1 / 5, from 3 with 9
  // / 13.
  const moe::Matrix<double> points = line({0, 1, 3});
  double first[3] = {}, second[3][3] = {};
  constexpr int kDraws = 30'000;
  for (int seed = 0; seed < kDraws; ++seed) {
    const auto seeds = moe::detail::k_means_seeds(points, 2, moe::RandomField(moe::Purpose::User, seed, 11));
    const auto of = [&](Index j) { return seeds(j, 0) == 3 ? 2 : static_cast<int>(seeds(j, 0)); };
    ++first[of(0)];
    ++second[of(0)][of(1)];
  }
  constexpr double kFour = 4 * 0.5 / 100;  // standard deviations of a share of some 10 000
  for (const double count : first) CHECK(std::abs(count / kDraws - 1.0 / 3) < kFour);
  CHECK(std::abs(second[0][1] / first[0] - 0.1) < kFour);
  CHECK(std::abs(second[1][0] / first[1] - 0.2) < kFour);
  CHECK(std::abs(second[2][0] / first[2] - 9.0 / 13) < kFour);
  for (int j = 0; j < 3; ++j) CHECK(second[j][j] == 0);
}

TEST_CASE("k_means: ties go to the lower number", "[k_means]") {
  moe::KMeans<double> result{.labels = {-1, -1, -1}, .centres = line({1, -1, 1})};
  CHECK(moe::detail::assign_to_centres(line({0, 1, -2}), {}, result));
  CHECK(result.labels == std::vector<Index>{0, 0, 1});
  CHECK_FALSE(moe::detail::assign_to_centres(line({0, 1, -2}), {}, result));
}

TEST_CASE("k_means: a cluster without points keeps its centre", "[k_means]") {
  moe::KMeans<double> result{.labels = {0, 0, 2}, .centres = line({1, 5, -1})};
  moe::detail::move_centres(line({2, 4, -3}), result);
  CHECK(result.centres == line({3, 5, -3}));
  const auto same = moe::k_means(line({2, 2, 2, 2}), 3, kSeeds);  // as points that are all one leave clusters empty
  CHECK(same.converged);
  CHECK(same.labels == std::vector<Index>{0, 0, 0, 0});
  CHECK(same.sum_of_squares == 0);
}

TEST_CASE("k_means: k = n gives every point a cluster, k = 1 the mean", "[k_means]") {
  const moe::Matrix<double> points = line({3, 1, 4, -1, 5, 9, -2, 6});
  for (int seed = 0; seed < 50; ++seed) {
    const auto all = moe::k_means(points, 8, moe::RandomField(moe::Purpose::User, seed));
    CHECK(std::set<Index>(all.labels.begin(), all.labels.end()).size() == 8);
    CHECK(all.sum_of_squares == 0);
  }
  CHECK(std::abs(moe::k_means(points, 1, kSeeds).centres(0, 0) - 25.0 / 8) < 1e-15);
}

TEST_CASE("k_means: a point of weight w is w points", "[k_means]") {
  const moe::Matrix<double> points = around_corners<double>(40, 4);
  std::vector<double> weights;
  std::vector<Index> rows;
  for (Index i = 0; i < 40; ++i) {
    weights.push_back(static_cast<double>(1 + i % 3));
    rows.insert(rows.end(), static_cast<std::size_t>(1 + i % 3), i);
  }
  const moe::Matrix<double> repeated = points(rows, Eigen::all);
  // Corners are 10 apart and 2 wide: the best of 20 seeds has a corner in each cluster, with any weights.
  double best = 1e300, expected = 1e300;
  for (int seed = 0; seed < 20; ++seed) {
    const moe::RandomField random(moe::Purpose::User, seed);
    best = std::min(best, moe::k_means(points, 4, random, {.weights = weights}).sum_of_squares);
    expected = std::min(expected, moe::k_means(repeated, 4, random).sum_of_squares);
  }
  CHECK(std::abs(best - expected) < 1e-12 * expected);  // sums of 80 terms in another order
  // First centres are drawn by weights: 1 / 9, 2 / 9 and 6 / 9 of 4000 draws,
  // four standard deviations of a binomial number.
  const std::vector<double> three = {1, 2, 6};
  std::vector<double> counts(3);
  for (int seed = 0; seed < 4000; ++seed) {
    const moe::RandomField random(moe::Purpose::User, seed);
    const auto seeds = moe::detail::k_means_seeds(line({0, 1, 2}), 1, random, moe::KMeansOptions{.weights = three});
    ++counts[static_cast<std::size_t>(seeds(0, 0))];
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const double p = three[i] / 9;
    CHECK(std::abs(counts[i] - 4000 * p) < 4 * std::sqrt(4000 * p * (1 - p)));
  }
}

TEST_CASE("k_means: the same bits on any number of threads, and inside of a parallel loop", "[k_means]") {
  const moe::Matrix<double> points = around_corners<double>(500, 4);
  const auto alone = moe::k_means(points, 6, kSeeds);
  for (const Index workers : {1, 2, 4}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    std::vector<moe::KMeans<double>> results(5);
    moe::parallel_for(5,
                      [&](Index i, Index) { results[static_cast<std::size_t>(i)] = moe::k_means(points, 6, kSeeds); });
    for (const auto& result : results) {
      CHECK(result.labels == alone.labels);
      CHECK(result.centres == alone.centres);
      CHECK(result.sum_of_squares == alone.sum_of_squares);
    }
  }
}

TEST_CASE("k_means: refuses what it cannot split", "[k_means][error]") {
  moe::Matrix<double> points = line({1, 2, 3});
  CHECK_THROWS_WITH(moe::k_means(points, 0, kSeeds), "moe::k_means: k is 0, expected 1 to the number of points = 3");
  CHECK_THROWS_WITH(moe::k_means(points, 4, kSeeds), "moe::k_means: k is 4, expected 1 to the number of points = 3");
  CHECK_THROWS_WITH(moe::k_means(points, 1, kSeeds, {.rounds = 0}), "moe::k_means: rounds is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::k_means(moe::Matrix<double>(3, 0), 1, kSeeds), ContainsSubstring("0 columns"));
  const std::vector<double> two = {1, 2}, none = {1, 0, 1};
  CHECK_THROWS_WITH(moe::k_means(points, 1, kSeeds, {.weights = two}), ContainsSubstring("weights has 2 numbers"));
  CHECK_THROWS_WITH(moe::k_means(points, 1, kSeeds, {.weights = none}), ContainsSubstring("a weight is 0"));
  points(1, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(moe::k_means(points, 1, kSeeds), "moe::k_means: a number of the points is not finite");
}
