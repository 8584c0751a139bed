// SPDX-License-Identifier: MIT
#include "moe/numeric/elementary.hpp"

#include <limits>

#include "numeric/ulp.hpp"
#include "support/catch.hpp"

namespace {

namespace simd = moe::simd;
using test::Long;

/// Down to the log of the smallest normal number.
template <class S>
const Long kLowest = std::log(Long{std::numeric_limits<S>::min()});

/// Where e^(-a^2 / 2) reaches it.
template <class S>
const Long kFarthest = std::sqrt(-2 * kLowest<S>);

TEMPLATE_TEST_CASE("exp_nonpositive: is within 1.5 ulp", "[numeric]", float, double) {
  const auto exp = [](const auto& x) { return simd::exp_nonpositive(x); };
  CHECK(test::worst_ulps<TestType>(kLowest<TestType>, 0, exp, [](Long x) { return std::exp(x); }) < 1.5L);
}

TEMPLATE_TEST_CASE("exp_nonpositive: ends at the smallest normal number, and is 0 below", "[numeric]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  const TestType lowest = simd::detail::kLowestExponent<TestType>;
  REQUIRE(simd::exp_nonpositive(lowest) >= Limits::min());
  REQUIRE(simd::exp_nonpositive(lowest) < Limits::min() * TestType(1.001));
  for (const TestType x :
       {std::nextafter(lowest, -Limits::max()), TestType(-1e4), Limits::lowest(), -Limits::infinity()}) {
    CAPTURE(x);
    REQUIRE(simd::exp_nonpositive(x) == 0);
  }
}

TEMPLATE_TEST_CASE("expm1_nonpositive: is within 1.5 ulp, also next to 0", "[numeric]", float, double) {
  const auto expm1 = [](const auto& x) { return simd::expm1_nonpositive(x); };
  CHECK(test::worst_ulps<TestType>(kLowest<TestType>, 0, expm1, [](Long x) { return std::expm1(x); }) < 1.5L);
  CHECK(simd::expm1_nonpositive(-std::numeric_limits<TestType>::infinity()) == -1);
}

TEMPLATE_TEST_CASE("log1p_of_fraction: is within 2.5 ulp, also next to 0", "[numeric]", float, double) {
  const auto log1p = [](const auto& x) { return simd::log1p_of_fraction(x); };
  CHECK(test::worst_ulps<TestType>(0, 1, log1p, [](Long x) { return std::log1p(x); }) < 2.5L);
}

TEMPLATE_TEST_CASE("normal_tail: gauss is within 2 ulp to the end", "[numeric]", float, double) {
  const auto gauss = [](const auto& a) { return simd::normal_tail(a).gauss; };
  CHECK(test::worst_ulps<TestType>(0, kFarthest<TestType>, gauss, [](Long a) { return std::exp(-a * a / 2); }) < 2);
}

TEMPLATE_TEST_CASE("normal_tail: ratio is within 12 ulp to the end", "[numeric]", float, double) {
  const auto ratio = [](const auto& a) { return simd::normal_tail(a).ratio; };
  const auto exact = [](Long a) { return std::exp(a * a / 2) * std::erfc(a * std::sqrt(0.5L)) / 2; };
  CHECK(test::worst_ulps<TestType>(0, kFarthest<TestType>, ratio, exact) < 12);
}

TEMPLATE_TEST_CASE("normal_tail: gauss is 0 at the end of its domain", "[numeric]", float, double) {
  REQUIRE(simd::normal_tail(TestType(37.7)).gauss == 0);
  REQUIRE(std::isfinite(simd::normal_tail(TestType(37.7)).ratio));
}

TEMPLATE_TEST_CASE("logistic_pair: both sides are within 3 ulp", "[numeric]", float, double) {
  const auto below = [](const auto& a) { return simd::logistic_pair(a).below; };
  const auto above = [](const auto& a) { return simd::logistic_pair(a).above; };
  const Long end = -kLowest<TestType>;
  CHECK(test::worst_ulps<TestType>(0, end, below, [](Long a) { return std::exp(-a) / (1 + std::exp(-a)); }) < 3);
  CHECK(test::worst_ulps<TestType>(0, end, above, [](Long a) { return 1 / (1 + std::exp(-a)); }) < 3);
}

TEMPLATE_TEST_CASE("Elementary functions: NaN gives NaN", "[numeric]", float, double) {
  const TestType nan = std::numeric_limits<TestType>::quiet_NaN();
  CHECK(std::isnan(simd::exp_nonpositive(nan)));
  CHECK(std::isnan(simd::expm1_nonpositive(nan)));
  CHECK(std::isnan(simd::log1p_of_fraction(nan)));
  CHECK(std::isnan(simd::normal_tail(nan).gauss));
  CHECK(std::isnan(simd::normal_tail(nan).ratio));
  CHECK(std::isnan(simd::logistic_pair(nan).below));
}

TEST_CASE("polynomial: is c0 + c1 x + c2 x^2", "[numeric]") {
  CHECK(simd::polynomial(3.0, 1.0, 2.0, 4.0) == 1 + 2 * 3 + 4 * 9);
  CHECK(simd::polynomial(simd::Batch<float>(3.0f), 1.0, 2.0, 4.0).get(0) == 43);
  CHECK(simd::polynomial(3.0, 5.0) == 5);
}

}  // namespace
