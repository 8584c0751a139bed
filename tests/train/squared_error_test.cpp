// SPDX-License-Identifier: MIT
#include "moe/train/squared_error.hpp"

#include <cmath>
#include <vector>

#include "moe/train/consistency.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::WithinRel;

/// The mean over valid rows, in plain double loops.
template <class S>
double reference(const moe::Matrix<S>& output, const moe::Matrix<S>& target, const std::vector<std::uint8_t>& valid) {
  double sum = 0, count = 0;
  for (moe::Index t = 0; t < output.rows(); ++t) {
    if (!valid[static_cast<std::size_t>(t)]) continue;
    count += 1;
    for (moe::Index j = 0; j < output.cols(); ++j)
      sum += std::pow(static_cast<double>(output(t, j)) - static_cast<double>(target(t, j)), 2);
  }
  return count == 0 ? 0 : sum / count;
}

moe::Step with_padding(const std::vector<std::uint8_t>& valid) {
  moe::Step step;
  step.valid = valid;
  return step;
}

}  // namespace

TEST_CASE("squared_error: value and gradient by hand", "[train]") {
  const moe::Matrix<float> output{{1, 2}, {9, 9}, {0, 0}}, target{{0, 4}, {0, 0}, {1, 0}};
  const std::vector<std::uint8_t> valid{1, 0, 1};
  moe::Matrix<float> doutput;
  REQUIRE(moe::squared_error(output, target, with_padding(valid), doutput) == 3);  // (1 + 4 + 1) / 2
  REQUIRE(doutput == moe::Matrix<float>{{1, -2}, {0, 0}, {-1, 0}});
}

TEMPLATE_TEST_CASE("squared_error: follows the double reference around the register width", "[train]", float, double) {
  for (const moe::Index dim : {0, 1, 7, 8, 9, 35})
    for (const moe::Index rows : {0, 1, 5, 300}) {
      CAPTURE(dim, rows);
      const auto output = test::random_matrix<TestType>(rows, dim, 1),
                 target = test::random_matrix<TestType>(rows, dim, 2);
      std::vector<std::uint8_t> valid(static_cast<std::size_t>(rows), 1);
      for (std::size_t t = 0; t < valid.size(); t += 3) valid[t] = 0;
      moe::Matrix<TestType> doutput;
      // Positive terms in double, in another order: as many roundings as there are terms, at most 300 * 35.
      REQUIRE_THAT(moe::squared_error(output, target, with_padding(valid), doutput),
                   WithinRel(reference(output, target, valid), 1e-11));
      REQUIRE(doutput.rows() == rows);
      REQUIRE(doutput.cols() == dim);
    }
}

TEST_CASE("squared_error: the gradient agrees with central differences", "[train][property]") {
  for (const moe::Index dim : {1, 2, 7, 8, 9, 35}) {
    CAPTURE(dim);
    moe::Matrix<double> output = test::random_matrix<double>(5, dim, 1), doutput, ignored;
    const moe::Matrix<double> target = test::random_matrix<double>(5, dim, 2);
    const std::vector<std::uint8_t> valid{1, 0, 1, 1, 0};
    const moe::Step step = with_padding(valid);
    moe::squared_error(output, target, step, doutput);
    const auto loss = [&] { return moe::squared_error(output, target, step, ignored); };
    REQUIRE(test::gradient_error(loss, output, doutput) < 1e-8);
  }
}

TEST_CASE("squared_error: padding gets zero gradient, whatever it holds", "[train]") {
  moe::Matrix<double> output = test::random_matrix<double>(4, 3, 1), target = test::random_matrix<double>(4, 3, 2);
  const std::vector<std::uint8_t> valid{1, 0, 1, 0};
  moe::Matrix<double> plain, poisoned;
  const double value = moe::squared_error(output, target, with_padding(valid), plain);
  output.row(1).setConstant(std::nan(""));
  target.row(3).setConstant(INFINITY);
  REQUIRE(moe::squared_error(output, target, with_padding(valid), poisoned) == value);
  REQUIRE(poisoned == plain);
  REQUIRE(test::all_zero(poisoned.row(1)));
  REQUIRE(test::all_zero(poisoned.row(3)));
}

TEST_CASE("squared_error: no valid row gives 0", "[train]") {
  const moe::Matrix<double> nan = test::nan_matrix<double>(2, 3);
  const std::vector<std::uint8_t> valid{0, 0};
  moe::Matrix<double> doutput;
  REQUIRE(moe::squared_error(nan, nan, with_padding(valid), doutput) == 0);
  REQUIRE(test::all_zero(doutput));
  REQUIRE(moe::squared_error(moe::Matrix<double>(0, 3), moe::Matrix<double>(0, 3), {}, doutput) == 0);
  REQUIRE(doutput.rows() == 0);
}

TEST_CASE("squared_error: numbers that are not finite show in the value", "[train]") {
  moe::Matrix<float> output{{1, 2}}, target{{0, 4}}, doutput;
  output(0, 1) = test::kNan<float>;
  REQUIRE(std::isnan(moe::squared_error(output, target, {}, doutput)));
  REQUIRE(std::isnan(doutput(0, 1)));
}

TEST_CASE("squared_error: is the squared distance, bit for bit", "[train][property]") {
  const auto a = test::random_matrix<float>(300, 9, 1), b = test::random_matrix<float>(300, 9, 2);
  moe::Matrix<float> doutput, da, db;
  REQUIRE(moe::squared_error(a, b, {}, doutput) == moe::squared_distance(a, b, {}, da, db));
  REQUIRE(doutput == da);
}

TEST_CASE("squared_error: the same bits for any number of threads", "[train]") {
  const auto output = test::random_matrix<float>(1301, 9, 1), target = test::random_matrix<float>(1301, 9, 2);
  moe::Matrix<float> dserial, dparallel;
  const double serial = moe::squared_error(output, target, {}, dserial);
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  REQUIRE(moe::squared_error(output, target, {}, dparallel) == serial);
  REQUIRE(dparallel == dserial);
}

TEST_CASE("squared_error: blocks of other matrices are read as they are", "[train]") {
  const auto wide = test::random_matrix<float>(5, 8, 1);
  const moe::Matrix<float> output = wide.leftCols(3), target = wide.rightCols(3);
  moe::Matrix<float> doutput, of_blocks;
  REQUIRE(moe::squared_error(wide.leftCols(3), wide.rightCols(3), {}, of_blocks) ==
          moe::squared_error(output, target, {}, doutput));
  REQUIRE(of_blocks == doutput);
}

TEST_CASE("squared_error: shapes that differ and shared memory are refused", "[train][error]") {
  moe::Matrix<float> output = test::random_matrix<float>(3, 4, 1), target = output, doutput;
  REQUIRE_THROWS_WITH(moe::squared_error(output, target.leftCols(2), {}, doutput),
                      "moe::squared_error: target is [3, 2], expected [3, 4]");
  REQUIRE_THROWS_WITH(moe::squared_error(output, target, {}, output),
                      "moe::squared_error: doutput overlaps output, expected memory of its own");
  REQUIRE_THROWS_WITH(moe::squared_error(output, target, {}, target),
                      "moe::squared_error: doutput overlaps target, expected memory of its own");
  const std::vector<std::uint8_t> valid{1, 1};
  REQUIRE_THROWS_AS(moe::squared_error(output, target, with_padding(valid), doutput), std::invalid_argument);
  REQUIRE(doutput.size() == 0);
}
