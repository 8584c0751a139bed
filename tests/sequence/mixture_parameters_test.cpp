// SPDX-License-Identifier: MIT
// Mixtures as rows of free numbers, and the negative log-likelihood of points under them.
#include "moe/sequence/mixture_parameters.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/thread_executor.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::Matrix;
using moe::Sequences;

namespace {

const Sequences kMixtures(std::vector<Index>{1, 3, 2});

double nll(const Matrix<double>& rows, const Sequences& mixtures, const Matrix<double>& x) {
  Matrix<double> drows;
  return moe::mixture_nll<double>(rows, mixtures, x, drows);
}

}  // namespace

TEST_CASE("Mixture rows: reading what was written gives the mixture again", "[sequence]") {
  for (const Index d : {1, 2, 3}) {
    const auto rows = test::random_matrix<double>(3, moe::mixture_row_size(d), 1);
    const auto mixture = moe::read_rows(rows, d);
    Matrix<double> written(3, moe::mixture_row_size(d));
    moe::write_rows<double>(mixture, written);
    const auto again = moe::read_rows(written, d);
    CHECK(test::largest(Matrix<double>(again.weights() - mixture.weights())) < 1e-15);
    CHECK(test::same_bits(again.means(), mixture.means()));
    for (Index i = 0; i < 3; ++i) CHECK(test::largest(Matrix<double>(again.factor(i) - mixture.factor(i))) < 1e-14);
    // Logits count up to a constant.
    CHECK(test::largest(Matrix<double>(written.rightCols(written.cols() - 1) - rows.rightCols(rows.cols() - 1))) <
          1e-15);
    CHECK(std::abs((written(0, 0) - written(2, 0)) - (rows(0, 0) - rows(2, 0))) < 1e-14);
  }
}

TEST_CASE("Mixture rows: weights of 0 are written as 3e-10, and diagonals are held within bounds", "[sequence]") {
  moe::RowVector<double> weights(2);
  weights << 1, 0;
  const moe::GaussianMixture<double> mixture(weights, Matrix<double>::Zero(2, 1),
                                             std::vector(2, Matrix<double>(Matrix<double>::Ones(1, 1))));
  Matrix<float> rows(2, 3);
  moe::write_rows<float>(mixture, rows);
  CHECK(rows(1, 0) == -22);
  const auto again = moe::read_rows(rows, 1);
  CHECK((again.weights()(1) > 0 && again.weights()(1) < 1e-9));
  rows(0, 2) = -1e30f;
  rows(1, 2) = 1e30f;
  CHECK(moe::read_rows(rows, 1).factor(0)(0, 0) == std::exp(-moe::kMostLogDiagonal));
  CHECK(moe::read_rows(rows, 1).factor(1)(0, 0) == std::exp(moe::kMostLogDiagonal));
}

TEST_CASE("mixture_nll: is the mean of what the mixtures themselves say", "[sequence]") {
  for (const Index d : {1, 2, 3}) {
    const auto rows = test::random_matrix<double>(6, moe::mixture_row_size(d), 1),
               x = test::random_matrix<double>(3, d, 2);
    double expected = 0;
    for (Index i = 0; i < 3; ++i)
      expected -= moe::read_rows(rows.middleRows(kMixtures.begin(i), kMixtures.length(i)), d).log_density(x.row(i)) / 3;
    CHECK(std::abs(nll(rows, kMixtures, x) - expected) < 1e-13);  // some 40 roundings of numbers below 20
  }
}

TEST_CASE("mixture_nll: gradients are central differences, through the Cholesky factors too", "[sequence]") {
  for (const Index d : {1, 2, 4}) {
    auto rows = test::random_matrix<double>(6, moe::mixture_row_size(d), 1, 0.5);
    const auto x = test::random_matrix<double>(3, d, 2);
    rows(2, 1 + d) = 12;  // beyond the bound: no gradient
    Matrix<double> drows;
    moe::mixture_nll<double>(rows, kMixtures, x, drows);
    CHECK(drows(2, 1 + d) == 0);
    CHECK(test::gradient_error([&] { return nll(rows, kMixtures, x); }, rows, drows) < 1e-8);
  }
}

TEST_CASE("mixture_nll: equal components are as responsible as they have weight", "[sequence]") {
  Matrix<double> rows(3, 3), drows;
  rows << 0.3, 1, 0.2, -1, 1, 0.2, 2, 1, 0.2;
  moe::mixture_nll<double>(rows, Sequences::equal(1, 3), Matrix<double>::Constant(1, 1, 4), drows);
  for (Index i = 0; i < 3; ++i) CHECK(std::abs(drows(i, 0)) < 1e-15);
}

TEST_CASE("mixture_nll: far points are finite, in float too, and the bits are those of any threads",
          "[sequence][property]") {
  const auto mixtures = Sequences::equal(300, 2);
  const auto rows = test::random_matrix<float>(600, moe::mixture_row_size(2), 1);
  const auto x = test::random_matrix<float>(300, 2, 2, 1e3);
  Matrix<float> serial, parallel;
  const double value = moe::mixture_nll<float>(rows, mixtures, x, serial);
  CHECK((std::isfinite(value) && value > 1e4));
  CHECK(std::isfinite(test::largest(serial)));
  test::ThreadExecutor threads(3);
  const moe::UseExecutor use(threads);
  CHECK(test::same_bits(moe::mixture_nll<float>(rows, mixtures, x, parallel), value));
  CHECK(test::same_bits(parallel, serial));
}

TEST_CASE("mixture_nll: components whose squares overflow take no part, and where all do, the value is infinite",
          "[sequence]") {
  Matrix<double> rows(2, 3), drows;
  rows << 0, 1e306, 0, 0, 0, -11;  // 1e306 e^11 is more than a double holds
  const auto pair = Sequences::equal(1, 2);
  // The first component alone, with half of the weight.
  CHECK(std::abs(moe::mixture_nll<double>(rows, pair, Matrix<double>::Constant(1, 1, 1e306), drows) -
                 std::log(2 * std::sqrt(2 * std::numbers::pi))) < 1e-15);
  Matrix<double> expected(2, 3);
  expected << -0.5, 0, 1, 0.5, 0, 0;
  CHECK(test::largest(Matrix<double>(drows - expected)) < 1e-15);
  CHECK(nll(rows, pair, Matrix<double>::Constant(1, 1, -1e306)) == std::numeric_limits<double>::infinity());
}

TEST_CASE("Mixture rows: bad shapes and numbers are errors", "[sequence][error]") {
  auto rows = test::random_matrix<double>(6, 3, 1);
  const auto x = test::random_matrix<double>(3, 1, 2);
  CHECK(nll(rows.topRows(0), Sequences(), x.topRows(0)) == 0);
  CHECK_THROWS_WITH(nll(rows, kMixtures, x.topRows(2)), ContainsSubstring("x is [2, 1], expected [3, 1]"));
  CHECK_THROWS_WITH(nll(rows, Sequences(std::vector<Index>{6, 0, 0}), x),
                    ContainsSubstring("mixture 1 has 0 components, expected at least one"));
  CHECK_THROWS_WITH(moe::mixture_nll<double>(rows, kMixtures, x, rows), ContainsSubstring("drows"));
  CHECK_THROWS_WITH(moe::read_rows(rows, 2), ContainsSubstring("rows is [6, 3], expected [6, 6]"));
  CHECK_THROWS_WITH(moe::read_rows(rows.topRows(0), 1), ContainsSubstring("there are no rows"));
  rows(1, 2) = test::kNan<double>;
  CHECK_THROWS_WITH(moe::read_rows(rows, 1), ContainsSubstring("row 1 has entry nan, expected finite ones"));
  Matrix<double> drows;
  CHECK(std::isnan(moe::mixture_nll<double>(rows, kMixtures, x, drows)));
  for (Index c = 0; c < 3; ++c) CHECK(std::isnan(drows(1, c)));
  CHECK((moe::mixture_row_size(1) == 3 && moe::mixture_row_size(4) == 15));
  for (const Index dim : {0, -3}) {  // where -3 would have one column
    const std::string found = "dim is " + std::to_string(dim) + ", expected at least 1";
    CHECK_THROWS_WITH(moe::mixture_row_size(dim), ContainsSubstring(found));
    CHECK_THROWS_WITH(moe::read_rows(Matrix<double>(Matrix<double>::Zero(1, 1)), dim), ContainsSubstring(found));
  }
  CHECK_THROWS_WITH(moe::mixture_row_size(Index{1} << 40), ContainsSubstring("1099511627776 times 1099511627775"));
  CHECK_THROWS_WITH(nll(rows.leftCols(0), kMixtures, x.leftCols(0)), ContainsSubstring("x has 0 columns"));
}
