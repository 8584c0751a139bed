// SPDX-License-Identifier: MIT
#include "moe/numeric/minimum_norm.hpp"

#include <algorithm>
#include <limits>

#include "support/catch.hpp"
#include "support/matrices.hpp"

using moe::Index;
using moe::Matrix;
using moe::minimum_norm_solution;

namespace {

/// Relative rounding errors: a vector meets fewer than `few` others in a sweep, each time with some 4 eps, in some ten
/// sweeps; singular values below `many` eps count as 0; a sum of products has `many` terms.
double precision(const Matrix<double>& a) {
  const Index few = std::min(a.rows(), a.cols()), many = std::max(a.rows(), a.cols());
  return static_cast<double>(10 * 4 * few + 2 * many) * std::numeric_limits<double>::epsilon();
}

Matrix<double> of_rank(Index rows, Index cols, Index rank, std::uint64_t seed) {
  return test::random_matrix<double>(rows, rank, seed) * test::random_matrix<double>(rank, cols, seed + 1);
}

}  // namespace

TEST_CASE("minimum_norm_solution: no residual along columns, and nothing across rows", "[numeric]") {
  for (const auto& [rows, cols, rank] :
       {std::tuple{1, 1, 1}, {7, 3, 3}, {3, 7, 3}, {20, 6, 2}, {6, 20, 1}, {5, 12, 4}, {9, 9, 9}})
    for (const double size : {1.0, 1e-200, 1e200}) {
      CAPTURE(rows, cols, rank, size);
      const Matrix<double> a = of_rank(rows, cols, rank, 3), b = test::random_matrix<double>(rows, 4, 5);
      const Matrix<double> x = size * minimum_norm_solution<double>(size * a, b);
      CHECK((a.transpose() * (a * x - b)).norm() < precision(a) * a.norm() * (a.norm() * x.norm() + b.norm()));
      // X is in the row space, and so the least, if some W has A^T W = X, wherever that is from.
      const Matrix<double> w = minimum_norm_solution<double>(a.transpose(), x);
      CHECK((a.transpose() * w - x).norm() < precision(a) * (a.norm() * w.norm() + x.norm()));
    }
}

TEST_CASE("minimum_norm_solution: a line through points, and the shortest of many solutions", "[numeric]") {
  const Matrix<double> a = (Matrix<double>(2, 2) << 3, 4, 0, 0).finished(),
                       b = (Matrix<double>(2, 1) << 5, 7).finished();
  const Matrix<double> x = minimum_norm_solution(a, b);  // 3 x + 4 y = 5, nearest to the origin
  CHECK(std::abs(x(0, 0) - 0.6) < 1e-15);
  CHECK(std::abs(x(1, 0) - 0.8) < 1e-15);
}

TEST_CASE("minimum_norm_solution: nothing, zeros and equal columns", "[numeric]") {
  CHECK(minimum_norm_solution<double>(Matrix<double>(0, 3), Matrix<double>(0, 2)) == Matrix<double>::Zero(3, 2));
  CHECK(minimum_norm_solution<double>(Matrix<double>(3, 0), Matrix<double>::Ones(3, 2)).size() == 0);
  CHECK(minimum_norm_solution<double>(Matrix<double>::Zero(4, 3), Matrix<double>::Ones(4, 2)) ==
        Matrix<double>::Zero(3, 2));
  const Matrix<float> x = minimum_norm_solution<float>(Matrix<float>::Ones(5, 4), Matrix<float>::Ones(5, 1));
  CHECK(test::largest(x - Matrix<float>::Constant(4, 1, 0.25f)) < 1e-6);
}

TEST_CASE("minimum_norm_solution: other shapes and numbers that are not finite are refused", "[numeric][error]") {
  const Matrix<double> a = Matrix<double>::Ones(3, 2);
  CHECK_THROWS_WITH(minimum_norm_solution<double>(a, Matrix<double>(2, 1)),
                    "moe::minimum_norm_solution: b is [2, 1], expected [3, 1]");
  CHECK_THROWS_WITH(minimum_norm_solution<double>(a, Matrix<double>::Constant(3, 1, NAN)),
                    "moe::minimum_norm_solution: a number of a or b is not finite");
  CHECK_THROWS_AS(minimum_norm_solution<double>(a * INFINITY, Matrix<double>::Ones(3, 1)), std::invalid_argument);
}
