// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <vector>

#include "moe/train/consistency.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::WithinAbs;

/// A loss together with the gradients it wrote.
template <class S>
struct Result {
  double value = 0;
  moe::Matrix<S> da = {}, db = {};
};

template <class S>
Result<S> symmetric_kl(const moe::Matrix<S>& a, const moe::Matrix<S>& b, const moe::Step& step = {}) {
  Result<S> result;
  result.value = moe::symmetric_kl(a, b, step, result.da, result.db);
  return result;
}

}  // namespace

TEMPLATE_TEST_CASE("symmetric_kl: the value and gradient of two known distributions", "[train]", float, double) {
  moe::Matrix<TestType> a(1, 3), b(1, 3);
  a << std::log(TestType(.7)), std::log(TestType(.2)), std::log(TestType(.1));
  b << std::log(TestType(.5)), std::log(TestType(.3)), std::log(TestType(.2));
  const Result<TestType> result = symmetric_kl(a, b);
  REQUIRE_THAT(result.value, WithinAbs(.088578, 1e-6));  // the digits given
  const double expected[3] = {.187972, -.099059, -.088914};
  for (moe::Index j = 0; j < 3; ++j) REQUIRE_THAT(result.da(0, j), WithinAbs(expected[j], 1e-6));
}

TEST_CASE("symmetric_kl: both gradients agree with central differences", "[train][property]") {
  for (const moe::Index classes : {1, 2, 7, 8, 9, 35}) {
    CAPTURE(classes);
    moe::Matrix<double> a = test::random_matrix<double>(4, classes, 1), b = test::random_matrix<double>(4, classes, 2);
    const std::vector<std::uint8_t> valid{1, 1, 0, 1};
    moe::Step step;
    step.valid = valid;
    const Result<double> result = symmetric_kl(a, b, step);
    const auto loss = [&] { return symmetric_kl(a, b, step).value; };
    REQUIRE(test::gradient_error(loss, a, result.da) < 1e-8);
    REQUIRE(test::gradient_error(loss, b, result.db) < 1e-8);
  }
}

TEST_CASE("symmetric_kl: exchanging the two exchanges the gradients, bit for bit", "[train][property]") {
  const moe::Matrix<float> a = test::random_matrix<float>(6, 9, 1), b = test::random_matrix<float>(6, 9, 2);
  const Result<float> forth = symmetric_kl(a, b), back = symmetric_kl(b, a);
  REQUIRE(forth.value == back.value);
  REQUIRE(forth.da == back.db);
  REQUIRE(forth.db == back.da);
}

TEST_CASE("symmetric_kl: a constant added to the logits of a row changes nothing", "[train][property]") {
  const moe::Matrix<double> a = test::random_matrix<double>(6, 9, 1), b = test::random_matrix<double>(6, 9, 2);
  const Result<double> plain = symmetric_kl(a, b);
  const Result<double> shifted = symmetric_kl<double>(a.array() + 3.7, b.array() - 100);
  REQUIRE_THAT(shifted.value,
               WithinAbs(plain.value, 1e-12));  // logits near 100 are rounded to 1e-14, times |log p| < 20
  REQUIRE((shifted.da - plain.da).isZero(1e-12));
}

TEST_CASE("symmetric_kl: equal logits give exactly 0", "[train]") {
  const moe::Matrix<float> a = test::random_matrix<float>(5, 8, 1);
  const Result<float> result = symmetric_kl(a, a);
  REQUIRE(result.value == 0);
  REQUIRE(result.da.isZero(0));
  REQUIRE(result.db.isZero(0));
}

TEMPLATE_TEST_CASE("symmetric_kl: extreme logits give finite values and gradients", "[train]", float, double) {
  moe::Matrix<TestType> a(1, 3), b(1, 3);
  a << 1000, -1000, 0;
  b << -1000, 1000, 0;
  const Result<TestType> result = symmetric_kl(a, b);
  REQUIRE(result.value == 2000);  // p = (1, 0, 0), q = (0, 1, 0): both divergences are 2000
  REQUIRE(result.da == moe::Matrix<TestType>{{TestType(0.5), TestType(-0.5), 0}});
  REQUIRE(result.db == -result.da);
}

TEST_CASE("symmetric_kl: a class masked in both adds nothing", "[train]") {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const moe::Matrix<double> a{{1, -kInf, 0.25}}, b{{0.5, -kInf, 2}};
  const Result<double> masked = symmetric_kl(a, b);
  const Result<double> without = symmetric_kl(moe::Matrix<double>{{1, 0.25}}, moe::Matrix<double>{{0.5, 2}});
  REQUIRE_THAT(masked.value, WithinAbs(without.value, 1e-15));
  REQUIRE(masked.da(0, 1) == 0);
  REQUIRE(symmetric_kl(moe::Matrix<double>{{0, -kInf}}, moe::Matrix<double>{{0, 0}}).value == kInf);
}

TEST_CASE("symmetric_kl: no valid row gives 0", "[train]") {
  const moe::Matrix<double> a = moe::Matrix<double>::Constant(2, 3, std::nan(""));
  const std::vector<std::uint8_t> valid{0, 0};
  moe::Step step;
  step.valid = valid;
  const Result<double> result = symmetric_kl(a, a, step);
  REQUIRE(result.value == 0);
  REQUIRE(result.da.isZero(0));
  REQUIRE(symmetric_kl(moe::Matrix<double>(0, 3), moe::Matrix<double>(0, 3)).value == 0);
  REQUIRE(symmetric_kl(moe::Matrix<double>(2, 0), moe::Matrix<double>(2, 0)).value == 0);
}

TEST_CASE("symmetric_kl: the same bits for any number of threads", "[train]") {
  const moe::Matrix<float> a = test::random_matrix<float>(101, 9, 1), b = test::random_matrix<float>(101, 9, 2);
  const Result<float> serial = symmetric_kl(a, b);
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  const Result<float> parallel = symmetric_kl(a, b);
  REQUIRE(parallel.value == serial.value);
  REQUIRE(parallel.da == serial.da);
}

TEST_CASE("squared_distance: value and gradients by hand", "[train]") {
  const moe::Matrix<float> a{{1, 2}, {9, 9}, {0, 0}}, b{{0, 4}, {0, 0}, {1, 0}};
  const std::vector<std::uint8_t> valid{1, 0, 1};
  moe::Step step;
  step.valid = valid;
  moe::Matrix<float> da, db;
  REQUIRE(moe::squared_distance(a, b, step, da, db) == 3);  // (1 + 4 + 1) / 2
  REQUIRE(da == moe::Matrix<float>{{1, -2}, {0, 0}, {-1, 0}});
  REQUIRE(db == -da);
}

TEST_CASE("Consistency losses: shapes that differ are refused", "[train][error]") {
  const moe::Matrix<float> a = test::random_matrix<float>(3, 4, 1), b = test::random_matrix<float>(3, 5, 2);
  moe::Matrix<float> da, db;
  REQUIRE_THROWS_AS(moe::symmetric_kl(a, b, {}, da, db), std::invalid_argument);
  REQUIRE_THROWS_AS(moe::squared_distance(a, b, {}, da, db), std::invalid_argument);
  const std::vector<std::uint8_t> valid{1, 1};
  moe::Step step;
  step.valid = valid;
  REQUIRE_THROWS_AS(moe::symmetric_kl(a, a, step, da, db), std::invalid_argument);
  REQUIRE(da.size() == 0);
}
