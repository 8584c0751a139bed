// SPDX-License-Identifier: MIT
#include "moe/numeric/balanced_assignment.hpp"

#include <cmath>

#include "support/catch.hpp"
#include "support/matrices.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::AssignmentSolver;
using moe::BalancedAssignmentOptions;
using moe::Index;
using moe::Matrix;

namespace {

constexpr BalancedAssignmentOptions kExact{.solver = AssignmentSolver::Exact};
constexpr BalancedAssignmentOptions auction(double epsilon) {
  return {.solver = AssignmentSolver::Auction, .epsilon = epsilon};
}

bool is_balanced(const std::vector<Index>& column_of, Index columns) {
  std::vector<Index> count(static_cast<std::size_t>(columns), 0);
  for (const Index c : column_of) ++count[static_cast<std::size_t>(c)];
  const auto rows = static_cast<Index>(column_of.size());
  for (const Index n : count)
    if (n < rows / columns || n > (rows + columns - 1) / columns) return false;
  return true;
}

/// Masks count apart: how many there are, and the sum of the others.
struct Value {
  Index masks = 0;
  double sum = 0;

  bool better_than(const Value& other) const { return masks != other.masks ? masks < other.masks : sum > other.sum; }
};

Value value_of(const Matrix<double>& scores, const std::vector<Index>& column_of) {
  Value value;
  for (std::size_t r = 0; r < column_of.size(); ++r) {
    const double score = scores(static_cast<Index>(r), column_of[r]);
    if (score == -INFINITY)
      ++value.masks;
    else
      value.sum += score;
  }
  return value;
}

/// By all assignments there are.
Value best_of_all(const Matrix<double>& scores) {
  std::vector<Index> column_of(static_cast<std::size_t>(scores.rows()), 0);
  Value best{.masks = scores.rows() + 1};
  for (std::size_t i = 0; i < column_of.size();) {
    if (is_balanced(column_of, scores.cols()))
      if (const Value value = value_of(scores, column_of); value.better_than(best)) best = value;
    for (i = 0; i < column_of.size() && ++column_of[i] == scores.cols(); ++i) column_of[i] = 0;
  }
  return best;
}

/// Every other one with ties, every third one with masks.
Matrix<double> sample(Index rows, Index columns, std::uint64_t seed) {
  auto scores = test::random_matrix<double>(rows, columns, seed, 2);
  const moe::RandomField random(moe::Purpose::User, seed, 99);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < columns; ++c) {
      if (seed % 2 == 1) scores(r, c) = std::floor(scores(r, c));
      if (seed % 3 == 2 && random.uniform(r, c) < 0.4) scores(r, c) = -INFINITY;
    }
  return scores;
}

}  // namespace

TEST_CASE("balanced_assignment: the worked example of four tokens", "[assignment]") {
  Matrix<double> scores(4, 2);
  scores << 3, 1, 2, 2.5, 4, 3.9, 1, 0;
  for (const auto& options : {kExact, auction(1e-3)}) {
    const auto column_of = moe::balanced_assignment(scores, options);
    CHECK(column_of == std::vector<Index>{0, 1, 1, 0});
    CHECK(std::abs(value_of(scores, column_of).sum - 10.4) < 1e-12);
  }
}

TEST_CASE("balanced_assignment: as good as the best of all assignments", "[assignment][property]") {
  for (Index columns = 1; columns <= 7; ++columns)
    for (Index rows = 1; rows <= (columns <= 2 ? 9 : columns <= 4 ? 7 : columns == 5 ? 6 : 5); ++rows)
      for (std::uint64_t seed = 0; seed < 6; ++seed) {
        CAPTURE(columns, rows, seed);
        const auto scores = sample(rows, columns, seed);
        const Value best = best_of_all(scores);
        const auto exact = moe::balanced_assignment(scores, kExact);
        CHECK(is_balanced(exact, columns));
        CHECK(value_of(scores, exact).masks == best.masks);
        CHECK(std::abs(value_of(scores, exact).sum - best.sum) < 1e-9);
        for (const double epsilon : {1e-6, 0.1}) {
          const auto near = moe::balanced_assignment(scores, auction(epsilon));
          CHECK(is_balanced(near, columns));
          CHECK(value_of(scores, near).masks == best.masks);
          CHECK(value_of(scores, near).sum >= best.sum - static_cast<double>(rows) * epsilon - 1e-9);
        }
      }
}

TEST_CASE("balanced_assignment: a mask is avoided whatever all others lose by it", "[assignment]") {
  Matrix<double> scores(3, 3);
  scores << -INFINITY, 0, -INFINITY, -INFINITY, 10, 0, 0, -INFINITY, 10;  // with one mask the others have 20
  for (const auto& options : {kExact, auction(1e-3)})
    CHECK(moe::balanced_assignment(scores, options) == std::vector<Index>{1, 2, 0});
}

TEST_CASE("balanced_assignment: exact and auction agree on many rows", "[assignment][property]") {
  for (const Index columns : {2, 7, 32, 500})
    for (const Index rows : {31, 64, 256}) {
      CAPTURE(columns, rows);
      const auto scores = test::random_matrix<double>(rows, columns, 5);
      const auto exact = moe::balanced_assignment(scores, kExact);
      const auto near = moe::balanced_assignment(scores, auction(1e-5));
      CHECK(is_balanced(exact, columns));
      CHECK(is_balanced(near, columns));
      const double lost = value_of(scores, exact).sum - value_of(scores, near).sum;
      CHECK(lost <= static_cast<double>(rows) * 1e-5 + 1e-9);
      CHECK(lost >= -1e-9);
    }
}

TEST_CASE("balanced_assignment: a coarse auction is within its bound, and not always exact", "[assignment]") {
  bool differs = false;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto scores = test::random_matrix<double>(40, 6, seed);
    const double best = value_of(scores, moe::balanced_assignment(scores, kExact)).sum;
    const double sum = value_of(scores, moe::balanced_assignment(scores, auction(0.5))).sum;
    CHECK(sum >= best - 40 * 0.5);
    differs = differs || sum < best - 1e-9;
  }
  CHECK(differs);  // else the bound says nothing
}

TEST_CASE("balanced_assignment: what is added to a row or, without rows left over, to a column changes nothing",
          "[assignment][property]") {
  auto scores = test::random_matrix<double>(24, 6, 3);
  const auto before = moe::balanced_assignment(scores, kExact);
  for (Index r = 0; r < 24; ++r) scores.row(r).array() += static_cast<double>(r % 5) * 16;
  for (Index c = 0; c < 6; ++c) scores.col(c).array() -= static_cast<double>(c) * 32;
  CHECK(moe::balanced_assignment(scores, kExact) == before);
}

TEST_CASE("balanced_assignment: equal scores, one column and scores far apart come to an end", "[assignment]") {
  const Matrix<double> equal = Matrix<double>::Constant(50, 8, 3);
  Matrix<double> far = test::random_matrix<double>(50, 8, 4);
  far.col(0) *= 1e200;
  Matrix<float> one = Matrix<float>::Zero(5, 1);
  for (const auto& options : {kExact, auction(1e-9)}) {
    CHECK(is_balanced(moe::balanced_assignment(equal, options), 8));
    CHECK(is_balanced(moe::balanced_assignment(far, options), 8));
    CHECK(moe::balanced_assignment(one, options) == std::vector<Index>(5, 0));
    CHECK(moe::balanced_assignment(Matrix<double>(0, 3), options).empty());
  }
}

TEST_CASE("balanced_assignment: a used workspace gives what a new one gives", "[assignment]") {
  moe::AssignmentWorkspace workspace;
  for (const Index rows : {30, 7, 64})
    for (const auto& options : {kExact, auction(1e-3)}) {
      const auto scores = sample(rows, 5, static_cast<std::uint64_t>(rows));
      std::vector<Index> column_of(static_cast<std::size_t>(rows));
      moe::balanced_assignment<double>(scores, options, workspace, column_of);
      CHECK(column_of == moe::balanced_assignment(scores, options));
    }
}

TEST_CASE("balanced_assignment: bad scores, sizes and options are named", "[assignment][error]") {
  Matrix<double> scores = Matrix<double>::Zero(3, 2);
  CHECK_THROWS_WITH(moe::balanced_assignment(scores, auction(0)),
                    "moe::balanced_assignment: epsilon is 0, expected a finite value above 0");
  CHECK_THROWS_WITH(moe::balanced_assignment(Matrix<double>(3, 0)),
                    "moe::balanced_assignment: there are 3 rows and no columns, expected at least 1");
  moe::AssignmentWorkspace workspace;
  std::vector<Index> two(2);
  CHECK_THROWS_WITH(moe::balanced_assignment<double>(scores, {}, workspace, two),
                    ContainsSubstring("column_of has 2 entries, expected one per row = 3"));
  scores(0, 0) = 1e308, scores(1, 0) = -1e308;
  CHECK_THROWS_WITH(moe::balanced_assignment(scores), ContainsSubstring("leaves no finite number for their sums"));
  for (const double bad : {INFINITY, NAN}) {
    scores(1, 0) = bad;
    CHECK_THROWS_WITH(moe::balanced_assignment(scores),
                      ContainsSubstring("moe::balanced_assignment: score of row 1 for column 0 is "));
  }
}
