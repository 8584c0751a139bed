// SPDX-License-Identifier: MIT
#include "moe/compress/expert_plan.hpp"

#include "moe/compress/cluster_experts.hpp"
#include "moe/expert/linear.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::ExpertMap;
using moe::ExpertPlan;
using moe::Index;
using moe::Matrix;
using Ids = std::vector<Index>;

namespace {

Matrix<double> distances(const Matrix<double>& points) {
  Matrix<double> d(points.rows(), points.rows());
  for (Index i = 0; i < d.rows(); ++i)
    for (Index j = 0; j < d.rows(); ++j) d(i, j) = (points.row(i) - points.row(j)).norm();
  return d;
}

/// The largest distance inside a cluster of a plan.
double diameter(const Matrix<double>& d, const ExpertPlan& plan) {
  double most = 0;
  for (Index i = 0; i < d.rows(); ++i)
    for (Index j = 0; j < d.rows(); ++j)
      if (plan.map[i] == plan.map[j]) most = std::max(most, d(i, j));
  return most;
}

/// Complete linkage without bookkeeping: all pairs of all clusters each time. Labels, lowest expert of each cluster.
Ids linked(const Matrix<double>& d, Index count) {
  const auto n = static_cast<std::size_t>(d.rows());
  Ids label(n);
  std::iota(label.begin(), label.end(), Index{0});
  for (Index left = d.rows(); left > count; --left) {
    double best = 1e300;
    Index a = 0, b = 0;
    for (Index i = 0; i < d.rows(); ++i)
      for (Index j = i + 1; j < d.rows(); ++j) {
        if (std::ranges::count(label, i) == 0 || std::ranges::count(label, j) == 0) continue;
        double most = 0;
        for (std::size_t p = 0; p < n; ++p)
          for (std::size_t q = 0; q < n; ++q)
            if (label[p] == i && label[q] == j) most = std::max(most, d(static_cast<Index>(p), static_cast<Index>(q)));
        if (most < best) best = most, a = i, b = j;
      }
    std::ranges::replace(label, b, a);
  }
  return label;
}

}  // namespace

TEST_CASE("keep_best: the highest scores, ties to the lower id", "[compress]") {
  const std::vector<double> scores = {1, 5, 5, 0, 5};
  CHECK(moe::keep_best(scores, 1).kept == Ids{1});
  CHECK(moe::keep_best(scores, 2).kept == Ids{1, 2});
  CHECK(moe::keep_best(scores, 4).kept == Ids{0, 1, 2, 4});
  const ExpertPlan two = moe::keep_best(scores, 2), all = moe::keep_best(scores, 5);
  CHECK(two.map.place == Ids{-1, 0, 1, -1, -1});
  CHECK(two.map.num_experts == 2);
  CHECK(all.kept == Ids{0, 1, 2, 3, 4});
  CHECK(moe::keep_best(std::vector<double>{-3}, 1).kept == Ids{0});
  CHECK_THROWS_AS(moe::keep_best(scores, 0), std::invalid_argument);
  CHECK_THROWS_AS(moe::keep_best(scores, 6), std::invalid_argument);
  CHECK_THROWS_WITH(moe::keep_best(std::vector<double>{1, test::kNan<double>}, 1),
                    "moe::keep_best: the score of expert 1 is nan, expected a finite number");
}

TEST_CASE("keep_best_in_groups: as many of every group", "[compress]") {
  const std::vector<double> scores = {9, 8, 7, 1, 2, 3};
  CHECK(moe::keep_best_in_groups(scores, 2, 2).kept == Ids{0, 5});
  CHECK(moe::keep_best_in_groups(scores, 3, 3).kept == Ids{0, 2, 5});
  CHECK(moe::keep_best_in_groups(scores, 4, 1).kept == moe::keep_best(scores, 4).kept);
  CHECK(moe::keep_best_in_groups(scores, 6, 3).kept == Ids{0, 1, 2, 3, 4, 5});
  for (const auto& [count, groups] : {std::pair<Index, Index>{3, 2}, {4, 4}, {2, 0}, {0, 2}, {7, 1}})
    CHECK_THROWS_AS(moe::keep_best_in_groups(scores, count, groups), std::invalid_argument);
  CHECK_THROWS_WITH(moe::keep_best_in_groups(std::vector<double>{1, 2, 3, std::nan("")}, 2, 2),
                    "moe::keep_best_in_groups: the score of expert 3 is nan, expected a finite number");
}

TEST_CASE("keep_best: over layers, which keep different numbers", "[compress]") {
  const std::vector<std::vector<double>> layers = {{9, 1, 2}, {3, 8, 7, 6}};
  const auto keep = [&](Index total, Index least) {
    std::vector<Ids> kept;
    for (const ExpertPlan& plan : moe::keep_best(layers, total, least)) kept.push_back(plan.kept);
    return kept;
  };
  CHECK(keep(2, 1) == std::vector<Ids>{{0}, {1}});
  CHECK(keep(4, 1) == std::vector<Ids>{{0}, {1, 2, 3}});
  CHECK(keep(4, 2) == std::vector<Ids>{{0, 2}, {1, 2}});
  CHECK(keep(7, 1) == std::vector<Ids>{{0, 1, 2}, {0, 1, 2, 3}});
  CHECK_THROWS_AS(keep(3, 2), std::invalid_argument);
  CHECK_THROWS_AS(keep(8, 1), std::invalid_argument);
}

TEST_CASE("keep_greedily: drops what is missed least", "[compress]") {
  const std::vector<double> worth = {4, 1, 3, 1, 5};
  const auto loss = [&](std::span<const Index> kept) {
    double sum = 14;
    for (const Index e : kept) sum -= worth[static_cast<std::size_t>(e)];
    return sum;
  };
  for (Index count = 1; count <= 5; ++count)
    CHECK(moe::keep_greedily(5, count, loss).kept == moe::keep_best(worth, count).kept);
  CHECK_THROWS_AS(moe::keep_greedily(5, 1, [](auto) { return test::kNan<double>; }), std::invalid_argument);
}

TEST_CASE("ExpertMap: two plans, one after the other", "[compress]") {
  const ExpertPlan a = ExpertPlan::of_clusters(Ids{0, 1, 0, 2, 1}), b = ExpertPlan::keep({2, 0}, 3);
  CHECK(a.kept == Ids{0, 1, 3});
  CHECK(a.map.place == Ids{0, 1, 0, 2, 1});
  CHECK(a.members(1) == Ids{1, 4});
  CHECK(a.map.then(b.map).place == Ids{0, -1, 0, 1, -1});
  CHECK(a.map.then(b.map).num_experts == 2);
  CHECK_THROWS_AS(b.map.then(a.map), std::invalid_argument);
  CHECK_THROWS_AS(ExpertPlan::keep({1, 1}, 3), std::invalid_argument);
  CHECK_THROWS_AS(ExpertPlan::keep({3}, 3), std::invalid_argument);
  CHECK_THROWS_AS(ExpertPlan::of_clusters(Ids{0, 1}, Ids{0}), std::invalid_argument);
  const std::vector<double> scores = {1, 0, 2, 5, 7};
  const auto edited = [&](const auto& edit) {
    ExpertPlan plan = a;
    edit(plan);
    return plan;
  };
  for (const ExpertPlan& plan :
       {edited([](auto& p) { p.kept[2] = 5; }), edited([](auto& p) { p.kept[0] = -1; }),
        edited([](auto& p) { p.kept[1] = 0; }), edited([](auto& p) { p.kept.pop_back(); }),
        edited([](auto& p) { p.map.place[2] = 3; }), edited([](auto& p) { p.map.place[2] = -2; }),
        edited([](auto& p) { p.map.place[1] = 0; }), edited([](auto& p) { p.map.place = {}; })})
    CHECK_THROWS_AS(moe::represented_by(plan, scores), std::invalid_argument);
  CHECK_THROWS_AS(edited([](auto& p) { p.map.place[0] = 3; }).map.then(b.map), std::invalid_argument);
  CHECK_THROWS_AS(a.map.then({.place = {0, 2, 1}, .num_experts = 2}), std::invalid_argument);
  const ExpertPlan best = moe::represented_by(a, scores);
  CHECK(best.kept == Ids{2, 3, 4});
  CHECK(best.map.place == Ids{0, 2, 0, 1, 2});
}

TEST_CASE("complete_linkage: as without bookkeeping, and within twice the best diameter", "[compress]") {
  const auto seed = GENERATE(range(1u, 13u));
  const Index n = 1 + static_cast<Index>(seed) % 7;
  const Matrix<double> d = distances(test::random_matrix<double>(n, 2, seed));
  for (Index count = 1; count <= n; ++count) {
    CAPTURE(n, count);
    const ExpertPlan plan = moe::complete_linkage(d, count);
    CHECK(plan.num_kept() == count);
    const Ids expected = linked(d, count);
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(plan.kept[static_cast<std::size_t>(plan.map.place[i])] == expected[i]);
    // A cut at its own diameter finds it again.
    CHECK(moe::complete_linkage_within(d, diameter(d, plan)).num_kept() == count);
    double best = 1e300;  // all labellings
    Ids label(static_cast<std::size_t>(n), 0);
    for (Index code = 0; code < static_cast<Index>(std::pow(count, n)); ++code) {
      Index rest = code;
      for (Index& l : label) l = rest % count, rest /= count;
      best = std::min(best, diameter(d, ExpertPlan::of_clusters(label)));
    }
    CHECK(diameter(d, plan) <= 2 * best + 1e-12);
    if (count == 1 || count == n) CHECK(diameter(d, plan) == best);
  }
}

TEST_CASE("complete_linkage: planted families, duplicates, permutations, bad input", "[compress]") {
  Matrix<double> points(12, 3);
  for (Index i = 0; i < 12; ++i)
    points.row(i) =
        10 * test::random_matrix<double>(4, 3, 3).row(i % 4) + 0.01 * test::random_matrix<double>(12, 3, 4).row(i);
  points.row(7) = points.row(3);
  const Matrix<double> d = distances(points);
  const ExpertPlan plan = moe::complete_linkage(d, 4);
  for (Index i = 0; i < 12; ++i) CHECK(plan.map[i] == i % 4);
  CHECK(moe::complete_linkage(d, 11).map[7] == 3);  // at distance 0
  CHECK(moe::complete_linkage(d, 12).kept == Ids{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  Ids order = {5, 2, 9, 0, 11, 7, 1, 3, 10, 4, 8, 6};
  const ExpertPlan permuted = moe::complete_linkage(d(order, order), 4);
  for (std::size_t i = 0; i < 12; ++i)
    for (std::size_t j = 0; j < 12; ++j)
      CHECK((permuted.map.place[i] == permuted.map.place[j]) == (order[i] % 4 == order[j] % 4));
  const auto both = moe::complete_linkage(std::vector<Matrix<double>>{d, 100 * d}, 12, 2);
  CHECK(both[0].num_kept() + both[1].num_kept() == 12);
  CHECK(both[0].num_kept() < both[1].num_kept());
  CHECK(moe::complete_linkage(std::vector<Matrix<double>>{d, 100 * d}, 4, 2)[1].num_kept() == 2);
  CHECK_THROWS_AS(moe::complete_linkage(d, 0), std::invalid_argument);
  CHECK_THROWS_AS(moe::complete_linkage(d, 13), std::invalid_argument);
  CHECK_THROWS_AS(moe::complete_linkage(d.topRows(3), 1), std::invalid_argument);
  Matrix<double> bad = d;
  bad(1, 0) = test::kNan<double>;
  CHECK_THROWS_AS(moe::complete_linkage(bad, 2), std::invalid_argument);
  const ExpertPlan rows = moe::cluster_experts(points, 4, {.seed = 3});
  for (Index i = 0; i < 12; ++i) CHECK(rows.map[i] == i % 4);
  CHECK(moe::cluster_experts(points, 4, {.seed = 3}).map.place == rows.map.place);
  const Matrix<double> same = Matrix<double>::Ones(5, 2);
  CHECK(moe::cluster_experts(same, 3).num_kept() == 3);  // no cluster is empty
  CHECK_THROWS_AS(moe::cluster_experts(points, 13), std::invalid_argument);
  CHECK_THROWS_AS(moe::cluster_experts(points, 0), std::invalid_argument);
}

TEST_CASE("join_nearest: dropped experts go to the nearest that stays", "[compress]") {
  Matrix<double> points(5, 1);
  points << 0, 1, 5, 6, 3;
  const Matrix<double> d = distances(points);
  const ExpertPlan some = ExpertPlan::keep({1, 2}, 5), joined = moe::join_nearest(some, d);
  CHECK(joined.kept == Ids{1, 2});
  CHECK(joined.map.place == Ids{0, 0, 1, 1, 0});  // 3 is as far from both
  CHECK(moe::join_nearest(joined, d).map.place == joined.map.place);
  CHECK_THROWS_AS(moe::join_nearest(some, d.topLeftCorner(4, 4)), std::invalid_argument);
  CHECK_THROWS_AS(moe::join_nearest(some, d * test::kNan<double>), std::invalid_argument);
}

TEST_CASE("nearest_to_means: the expert in the middle", "[compress]") {
  std::vector<moe::Linear> experts;
  for (const float value : {0.0f, 1.0f, 5.0f, 7.0f, 6.5f}) {
    moe::Linear expert(2, 3, moe::Bias::Off);
    for (Index o = 0; o < 2; ++o)
      for (Index i = 0; i < 3; ++i) expert.weight()(o, i) = value;
    experts.push_back(expert);
  }
  const moe::ExpertPool<moe::Linear> pool(experts);
  const ExpertPlan plan = moe::nearest_to_means(ExpertPlan::of_clusters(Ids{0, 0, 1, 1, 1}), pool);
  CHECK(plan.kept == Ids{0, 4});
  CHECK(plan.map.place == Ids{0, 0, 1, 1, 1});
}
