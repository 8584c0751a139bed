// SPDX-License-Identifier: MIT
#include <cmath>

#include "moe/train/schedule.hpp"
#include "support/catch.hpp"

using Catch::Matchers::WithinRel;

TEST_CASE("WithWarmUp: rises in equal steps and then follows the schedule from its start", "[train]") {
  const moe::WithWarmUp rate{4, moe::LinearSchedule{.start = 8, .end = 0, .updates = 4}};
  const double expected[] = {2, 4, 6, 8, 8, 6, 4, 2, 0, 0};
  for (std::uint64_t update = 0; update < 10; ++update) {
    CAPTURE(update);
    REQUIRE(rate(update) == expected[update]);
  }
}

TEST_CASE("WithWarmUp: cosine is half way down in its middle and at its end when finished", "[train]") {
  const moe::WithWarmUp rate{10, moe::CosineSchedule{.start = 1, .end = 0.5, .updates = 100}};
  REQUIRE(rate(0) == 0.1);
  REQUIRE(rate(10) == 1);
  REQUIRE_THAT(rate(60), WithinRel(0.75, 1e-15));
  REQUIRE(rate(110) == 0.5);
  REQUIRE(rate(moe::kFinished) == 0.5);
}

TEST_CASE("WithWarmUp: zero updates of warm-up change nothing", "[train]") {
  const moe::WithWarmUp rate{0, moe::ConstantSchedule{.value = 3}};
  REQUIRE(rate(0) == 3);
  REQUIRE(rate(moe::kFinished) == 3);
}

TEST_CASE("WithWarmUp: takes a lambda", "[train]") {
  const auto halves = [](std::uint64_t update) { return std::exp2(-static_cast<double>(update)); };
  const moe::WithWarmUp rate{2, halves};
  REQUIRE(rate(0) == 0.5);
  REQUIRE(rate(4) == 0.25);
}

TEST_CASE("InverseSqrtSchedule: is peak * sqrt(warm_up / u) behind its warm-up", "[train]") {
  const moe::WithWarmUp rate{100, moe::InverseSqrtSchedule{.start = 2, .timescale = 100}};
  REQUIRE(rate(99) == 2);
  for (const std::uint64_t update : {100u, 101u, 400u, 1000000u}) {
    CAPTURE(update);
    REQUIRE_THAT(rate(update), WithinRel(2 * std::sqrt(100. / static_cast<double>(update)), 1e-15));
  }
  REQUIRE(rate(moe::kFinished) < 1e-8);
}

TEST_CASE("Schedules: numbers out of range are refused", "[train][error]") {
  REQUIRE_THROWS_AS((moe::InverseSqrtSchedule{.timescale = 0}.validate()), std::invalid_argument);
  REQUIRE_THROWS_AS((moe::InverseSqrtSchedule{.start = std::nan("")}.validate()), std::invalid_argument);
  REQUIRE_THROWS_AS((moe::WithWarmUp{0, moe::CosineSchedule{.updates = 0}}.validate()), std::invalid_argument);
}
