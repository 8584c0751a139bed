// SPDX-License-Identifier: MIT
#include "moe/routing/balance/z_loss.hpp"

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using moe::Index;
using moe::RoutingGradient;
using moe::Step;

TEST_CASE("z_loss: the worked example of one token", "[loss]") {
  const auto z = test::matrix<double>({{2, 1, .5, -1}});
  RoutingGradient<double> gradient;
  REQUIRE_THAT(moe::z_loss(z, Step{}, 1, gradient), WithinAbs(6.225933, 5e-7));
  const std::vector<double> expected = {3.041427, 1.118879, .678634, .151424};
  for (Index e = 0; e < 4; ++e)
    REQUIRE_THAT(gradient.logits(0, e), WithinAbs(expected[static_cast<std::size_t>(e)], 5e-7));
  // softmax sums to 1, so the entries sum to 2 lse.
  REQUIRE_THAT(test::total(gradient.logits), WithinAbs(2 * 2.495182, 1e-6));
}

TEST_CASE("z_loss: gradient equals central differences", "[loss]") {
  const auto valid = test::every_nth_padding(11, 3);
  Step step;
  step.valid = valid;
  auto z = test::random_logits<double>(11, 5);
  RoutingGradient<double> gradient;
  moe::z_loss(z, step, 0.2, gradient);
  const auto loss = [&] {
    RoutingGradient<double> ignored;
    return 0.2 * moe::z_loss(z, step, 1, ignored);
  };
  REQUIRE(test::gradient_error(loss, z, gradient.logits) < 1e-6);
}

TEST_CASE("z_loss: the mean is over valid tokens", "[loss][property]") {
  const auto z = test::random_logits<double>(10, 4);
  moe::Matrix<double> padded = moe::Matrix<double>::Constant(13, 4, std::nan(""));
  padded.topRows(10) = z;
  std::vector<std::uint8_t> valid(13, 1);
  valid[10] = valid[11] = valid[12] = 0;
  Step step;
  step.valid = valid;
  RoutingGradient<double> gradient, padded_gradient;
  REQUIRE(moe::z_loss(padded, step, 1, padded_gradient) == moe::z_loss(z, Step{}, 1, gradient));
  REQUIRE(padded_gradient.logits.topRows(10) == gradient.logits);
  REQUIRE(padded_gradient.logits.bottomRows(3).isZero(0));
}

TEST_CASE("z_loss: a masked expert has gradient 0", "[loss]") {
  auto z = test::random_logits<double>(3, 4);
  z.col(1).setConstant(-std::numeric_limits<double>::infinity());
  RoutingGradient<double> gradient;
  REQUIRE(std::isfinite(moe::z_loss(z, Step{}, 1, gradient)));
  REQUIRE(gradient.logits.col(1).isZero(0));
  REQUIRE(gradient.logits.allFinite());
}

TEST_CASE("z_loss: huge float logits keep a gradient that sums to 2 lse", "[loss]") {
  moe::Matrix<float> z = test::random_logits<float>(1, 16);
  z.array() += 4096;
  RoutingGradient<float> gradient;
  const double lse = std::sqrt(moe::z_loss(z, Step{}, 1, gradient));
  // lse is rounded to float at 4096: half an ulp, 2.4e-4, is its absolute and softmax's relative error.
  REQUIRE_THAT(test::total(gradient.logits), WithinRel(2 * lse, 5e-4));
}

TEMPLATE_TEST_CASE("z_loss: any number of threads gives the same bits", "[loss][property]", float, double) {
  const auto z = test::random_logits<TestType>(1300, 7);
  const auto results = test::on_thread_counts([&] {
    RoutingGradient<TestType> gradient;
    const double loss = moe::z_loss(z, Step{}, 0.001, gradient);
    return std::pair(loss, gradient.logits);
  });
  REQUIRE(test::all_equal(results));
}

TEST_CASE("z_loss: no valid token gives 0 with zero gradient", "[loss]") {
  const std::vector<std::uint8_t> none(2, 0);
  Step step;
  step.valid = none;
  RoutingGradient<double> gradient, empty;
  CHECK(moe::z_loss(test::random_logits<double>(2, 3), step, 1, gradient) == 0);
  CHECK(gradient.logits.isZero(0));
  CHECK(moe::z_loss(moe::Matrix<double>(0, 3), Step{}, 1, empty) == 0);
}
