// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <vector>

#include "moe/train/cross_entropy.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"
#include "support/thread_executor.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<moe::Index> cyclic_labels(moe::Index rows, moe::Index classes) {
  std::vector<moe::Index> labels(static_cast<std::size_t>(rows));
  for (moe::Index t = 0; t < rows; ++t) labels[static_cast<std::size_t>(t)] = 3 * t % classes;
  return labels;
}

}  // namespace

TEMPLATE_TEST_CASE("cross_entropy: the value and gradient of known probabilities", "[train]", float, double) {
  moe::Matrix<TestType> logits(2, 3), dlogits;
  logits << std::log(TestType(.7)), std::log(TestType(.2)), std::log(TestType(.1)), 0, 0, 0;
  const std::vector<moe::Index> labels{1, 0};
  const double value = moe::cross_entropy(logits, labels, {}, dlogits);
  const double tolerance = 8 * std::numeric_limits<TestType>::epsilon();  // a few roundings of numbers below 2
  REQUIRE_THAT(value, WithinAbs((-std::log(.2) + std::log(3.)) / 2, tolerance));
  const double expected[2][3] = {{.35, -.4, .05}, {-1. / 3, 1. / 6, 1. / 6}};
  for (moe::Index t = 0; t < 2; ++t)
    for (moe::Index j = 0; j < 3; ++j) REQUIRE_THAT(dlogits(t, j), WithinAbs(expected[t][j], tolerance));
}

TEST_CASE("cross_entropy: the gradient agrees with central differences", "[train][property]") {
  for (const moe::Index classes : {1, 2, 7, 8, 9, 35}) {
    CAPTURE(classes);
    moe::Matrix<double> logits = test::random_matrix<double>(5, classes), dlogits, ignored;
    const std::vector<moe::Index> labels = cyclic_labels(5, classes);
    const std::vector<std::uint8_t> valid{1, 0, 1, 1, 0};
    moe::Step step;
    step.valid = valid;
    moe::cross_entropy(logits, labels, step, dlogits);
    const auto loss = [&] { return moe::cross_entropy(logits, labels, step, ignored); };
    REQUIRE(test::gradient_error(loss, logits, dlogits) < 1e-8);
  }
}

TEST_CASE("cross_entropy: weights of rows are what repeated rows are", "[train][property]") {
  moe::Matrix<double> logits = test::random_matrix<double>(5, 4), dlogits, ignored;
  const std::vector<moe::Index> labels = cyclic_labels(5, 4);
  const std::vector<std::uint8_t> valid{1, 0, 1, 1, 1};
  moe::Step step;
  step.valid = valid;
  const std::vector<double> weights{2, 7, 0, 1, 3};
  const double value = moe::cross_entropy(logits, labels, weights, step, dlogits);
  moe::Matrix<double> repeated(6, 4), drepeated;
  std::vector<moe::Index> repeated_labels;
  moe::Index rows = 0;
  for (const moe::Index t : {0, 0, 3, 4, 4, 4}) {
    repeated.row(rows++) = logits.row(t);
    repeated_labels.push_back(labels[static_cast<std::size_t>(t)]);
  }
  REQUIRE_THAT(value, WithinRel(moe::cross_entropy(repeated, repeated_labels, {}, drepeated), 1e-14));
  REQUIRE_THAT(dlogits(4, 1), WithinRel(3 * drepeated(5, 1), 1e-13));
  REQUIRE(dlogits.row(1).isZero(0));
  REQUIRE(dlogits.row(2).isZero(0));
  const auto loss = [&] { return moe::cross_entropy(logits, labels, weights, step, ignored); };
  REQUIRE(test::gradient_error(loss, logits, dlogits) < 1e-8);
  REQUIRE(moe::cross_entropy(logits, labels, std::vector<double>(5, 0.0), step, dlogits) == 0);
  REQUIRE(dlogits.isZero(0));
}

TEST_CASE("cross_entropy: weights that are none are refused", "[train][error]") {
  const moe::Matrix<double> logits = test::random_matrix<double>(2, 3);
  moe::Matrix<double> dlogits;
  const std::vector<moe::Index> labels{0, 1};
  const auto with = [&](std::vector<double> weights) {
    return moe::cross_entropy(logits, labels, weights, {}, dlogits);
  };
  CHECK_THROWS_WITH(with({1}), "moe::cross_entropy: weights has 1 entries, expected num_tokens = 2");
  for (const double bad : {-1.0, kInf, std::nan("")})
    CHECK_THROWS_WITH(with({1, bad}), ContainsSubstring("weight of row 1 is"));
  constexpr double kLargest = std::numeric_limits<double>::max();
  CHECK_THROWS_WITH(with({kLargest, kLargest}), "moe::cross_entropy: weights sum to inf, expected a finite sum");
  CHECK(dlogits.size() == 0);
}

TEMPLATE_TEST_CASE("cross_entropy: extreme logits give finite values and gradients", "[train]", float, double) {
  moe::Matrix<TestType> logits(2, 3), dlogits;
  logits << 1000, -1000, 0, 1000, -1000, 0;
  const std::vector<moe::Index> labels{0, 1};
  REQUIRE(moe::cross_entropy(logits, labels, {}, dlogits) == 1000);  // (0 + 2000) / 2
  REQUIRE(dlogits.row(0).isZero(0));
  REQUIRE(dlogits(1, 0) == TestType(0.5));
  REQUIRE(dlogits(1, 1) == TestType(-0.5));
}

TEST_CASE("cross_entropy: a confident float prediction keeps its digits at large logits", "[train]") {
  moe::Matrix<float> logits(1, 2), dlogits;
  logits << 5000, 4993;
  // log(1 + e^-7); the sum 1 + e^-7 is rounded to eps / 2, and so is its inverse.
  REQUIRE_THAT(moe::cross_entropy(logits, std::vector<moe::Index>{0}, {}, dlogits),
               WithinAbs(std::log1p(std::exp(-7.)), 2 * std::numeric_limits<float>::epsilon()));
}

TEST_CASE("cross_entropy: a masked class gets no gradient", "[train]") {
  moe::Matrix<double> logits(1, 3), dlogits;
  logits << 0, -kInf, 0;
  REQUIRE_THAT(moe::cross_entropy(logits, std::vector<moe::Index>{2}, {}, dlogits), WithinRel(std::log(2.), 1e-15));
  REQUIRE(dlogits == moe::Matrix<double>{{0.5, 0, -0.5}});
  REQUIRE(moe::cross_entropy(logits, std::vector<moe::Index>{1}, {}, dlogits) == kInf);
}

TEST_CASE("cross_entropy: NaN and +inf logits make the value NaN", "[train]") {
  for (const double bad : {kInf, std::nan("")})
    for (moe::Index place = 0; place < 3; ++place) {
      CAPTURE(bad, place);
      moe::Matrix<double> logits = moe::Matrix<double>::Zero(1, 3), dlogits;
      logits(0, place) = bad;
      REQUIRE(std::isnan(moe::cross_entropy(logits, std::vector<moe::Index>{0}, {}, dlogits)));
      REQUIRE(std::isnan(dlogits(0, 0)));
    }
}

TEST_CASE("cross_entropy: no valid row gives 0", "[train]") {
  const moe::Matrix<double> logits = moe::Matrix<double>::Constant(2, 3, std::nan(""));
  moe::Matrix<double> dlogits;
  const std::vector<std::uint8_t> valid{0, 0};
  moe::Step step;
  step.valid = valid;
  REQUIRE(moe::cross_entropy(logits, std::vector<moe::Index>{-1, 99}, step, dlogits) == 0);
  REQUIRE(dlogits.isZero(0));
  REQUIRE(moe::cross_entropy(moe::Matrix<double>(0, 3), {}, {}, dlogits) == 0);
  REQUIRE(dlogits.rows() == 0);
}

TEST_CASE("cross_entropy: the same bits for any number of threads", "[train]") {
  const moe::Matrix<float> logits = test::random_matrix<float>(101, 9);
  const std::vector<moe::Index> labels = cyclic_labels(101, 9);
  moe::Matrix<float> dserial, dparallel;
  const double serial = moe::cross_entropy(logits, labels, {}, dserial);
  test::ThreadExecutor executor(3);
  const moe::UseExecutor use(executor);
  REQUIRE(moe::cross_entropy(logits, labels, {}, dparallel) == serial);
  REQUIRE(dparallel == dserial);
}

TEST_CASE("cross_entropy: a label out of range is an error that names the row", "[train][error]") {
  const moe::Matrix<float> logits = test::random_matrix<float>(3, 4);
  moe::Matrix<float> dlogits;
  for (const moe::Index label : {-1, 4}) {
    CAPTURE(label);
    REQUIRE_THROWS_WITH(moe::cross_entropy(logits, std::vector<moe::Index>{0, 3, label}, {}, dlogits),
                        ContainsSubstring("label of row 2 is " + std::to_string(label)));
  }
  REQUIRE_THROWS_AS(moe::cross_entropy(logits, std::vector<moe::Index>{0, 3}, {}, dlogits), std::invalid_argument);
  REQUIRE(dlogits.size() == 0);
}
