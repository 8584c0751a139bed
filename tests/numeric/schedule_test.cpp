// SPDX-License-Identifier: MIT
#include "moe/numeric/schedule.hpp"

#include <functional>

#include "support/catch.hpp"

using Catch::Matchers::WithinAbs;

namespace {
constexpr double kPrinted = 5e-7;  // the expected values are given to six decimals
}

TEST_CASE("ExponentialSchedule: falls by equal ratios, then stays at its end", "[schedule]") {
  const moe::ExponentialSchedule schedule{.start = 2, .end = 0.3, .updates = 1000};
  CHECK(schedule(0) == 2);
  CHECK_THAT(schedule(250), WithinAbs(1.244666, kPrinted));
  CHECK_THAT(schedule(500), WithinAbs(0.774597, kPrinted));
  CHECK_THAT(schedule(750), WithinAbs(0.482057, kPrinted));
  CHECK(schedule(1000) == 0.3);
  CHECK(schedule(1500) == 0.3);
}

TEST_CASE("LinearSchedule: falls by equal steps, then stays at its end", "[schedule]") {
  const moe::LinearSchedule schedule{.start = 2, .end = 0.3, .updates = 1000};
  CHECK(schedule(0) == 2);
  CHECK_THAT(schedule(250), WithinAbs(1.575, 1e-15));
  CHECK_THAT(schedule(500), WithinAbs(1.15, 1e-15));
  CHECK_THAT(schedule(750), WithinAbs(0.725, 1e-15));
  CHECK(schedule(1000) == 0.3);
  CHECK(schedule(1500) == 0.3);
}

TEST_CASE("LinearSchedule: may rise, as a warm-up of a learning rate does", "[schedule]") {
  const moe::LinearSchedule schedule{.start = 0, .end = 1e-3, .updates = 10};
  schedule.validate();
  CHECK(schedule(0) == 0);
  CHECK_THAT(schedule(5), WithinAbs(5e-4, 1e-18));
  CHECK(schedule(10) == 1e-3);
}

TEST_CASE("CosineSchedule: is half a cosine from start to end", "[schedule]") {
  const moe::CosineSchedule schedule{.start = 3, .end = 1, .updates = 300};
  CHECK(schedule(0) == 3);
  CHECK_THAT(schedule(100), WithinAbs(2.5, 1e-14));  // cos(pi / 3) = 1/2
  CHECK_THAT(schedule(150), WithinAbs(2, 1e-14));
  CHECK_THAT(schedule(200), WithinAbs(1.5, 1e-14));
  CHECK(schedule(300) == 1);
}

TEST_CASE("StepSchedule: drops once per interval and not below its end", "[schedule]") {
  const moe::StepSchedule schedule{.start = 8, .end = 1, .factor = 0.5, .interval = 10};
  CHECK(schedule(0) == 8);
  CHECK(schedule(9) == 8);
  CHECK(schedule(10) == 4);
  CHECK(schedule(29) == 2);
  CHECK(schedule(30) == 1);
  CHECK(schedule(40) == 1);
}

TEST_CASE("Schedule: every shipped schedule is at its end when training has finished", "[schedule]") {
  CHECK(moe::ConstantSchedule{.value = 0.7}(moe::kFinished) == 0.7);
  CHECK(moe::LinearSchedule{.end = 0.2}(moe::kFinished) == 0.2);
  CHECK(moe::ExponentialSchedule{.end = 0.2}(moe::kFinished) == 0.2);
  CHECK(moe::CosineSchedule{.end = 0.2}(moe::kFinished) == 0.2);
  CHECK(moe::StepSchedule{.end = 0.2}(moe::kFinished) == 0.2);
}

TEST_CASE("Schedule: falling schedules never rise from one update to the next", "[schedule][property]") {
  const auto falls = [](const auto& schedule) {
    for (std::uint64_t update = 0; update < 60; ++update)
      if (schedule(update + 1) > schedule(update)) return false;
    return true;
  };
  CHECK(falls(moe::LinearSchedule{.updates = 50}));
  CHECK(falls(moe::ExponentialSchedule{.updates = 50}));
  CHECK(falls(moe::CosineSchedule{.updates = 50}));
  CHECK(falls(moe::StepSchedule{.interval = 7}));
}

TEST_CASE("Schedule: lambdas and std::function are schedules, other things are not", "[schedule]") {
  const auto lambda = [](std::uint64_t update) { return update < 3 ? 1.0 : 0.5; };
  STATIC_REQUIRE(moe::Schedule<decltype(lambda)>);
  STATIC_REQUIRE(moe::Schedule<std::function<double(std::uint64_t)>>);
  STATIC_REQUIRE(!moe::Schedule<double>);
  STATIC_REQUIRE(!moe::Schedule<std::function<void(std::uint64_t)>>);
}

TEST_CASE("Schedule: bad numbers are refused", "[schedule][error]") {
  CHECK_THROWS_AS(moe::ConstantSchedule{.value = NAN}.validate(), std::invalid_argument);
  CHECK_THROWS_AS(moe::LinearSchedule{.updates = 0}.validate(), std::invalid_argument);
  CHECK_THROWS_AS((moe::LinearSchedule{.start = INFINITY}.validate()), std::invalid_argument);
  CHECK_THROWS_AS(moe::ExponentialSchedule{.updates = 0}.validate(), std::invalid_argument);
  CHECK_THROWS_AS(moe::ExponentialSchedule{.end = 0}.validate(), std::invalid_argument);
  CHECK_THROWS_AS(moe::ExponentialSchedule{.start = -1}.validate(), std::invalid_argument);
  CHECK_THROWS_AS(moe::CosineSchedule{.updates = 0}.validate(), std::invalid_argument);
  CHECK_THROWS_AS((moe::StepSchedule{.start = 0.1, .end = 1}.validate()), std::invalid_argument);
  CHECK_THROWS_AS(moe::StepSchedule{.factor = 1}.validate(), std::invalid_argument);
  CHECK_THROWS_AS(moe::StepSchedule{.interval = 0}.validate(), std::invalid_argument);
}

TEST_CASE("Schedule: no update gives NaN, even where the numbers are bad", "[schedule]") {
  CHECK(std::isfinite(moe::LinearSchedule{.updates = 0}(0)));
  CHECK(std::isfinite(moe::ExponentialSchedule{.updates = 0}(0)));
  CHECK(std::isfinite(moe::CosineSchedule{.updates = 0}(0)));
}
