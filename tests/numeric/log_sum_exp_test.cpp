// SPDX-License-Identifier: MIT
#include "moe/numeric/log_sum_exp.hpp"

#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/matrices.hpp"

namespace {

using moe::Index;

template <class S>
constexpr S kInfinity = std::numeric_limits<S>::infinity();

template <class S>
S log_sum_exp(const std::vector<S>& z) {
  return moe::log_sum_exp(z.data(), static_cast<Index>(z.size()));
}

TEMPLATE_TEST_CASE("log_sum_exp: reproduces a number worked out by hand", "[numeric][golden]", float, double) {
  const TestType result = log_sum_exp<TestType>({2, 1, TestType(0.5), -1});
  REQUIRE_THAT(result, Catch::Matchers::WithinAbs(2.495182, 1e-6));  // expected to six digits, and a float
}

TEMPLATE_TEST_CASE("log_sum_exp: the error is as promised at every size", "[numeric]", float, double) {
  const Index lanes = moe::simd::kLanes<TestType>;
  for (const Index n : {Index{1}, Index{2}, lanes - 1, lanes, lanes + 1, 4 * lanes + 3, Index{256}}) {
    CAPTURE(n);
    const moe::Matrix<TestType> z = TestType(10) * test::random_matrix<TestType>(1, n);
    long double sum = 0;
    double largest = 0;
    for (Index i = 0; i < n; ++i) {
      sum += std::exp(static_cast<long double>(z(0, i)));
      largest = std::max(largest, std::abs(double{z(0, i)}));
    }
    const double bound = 2 * largest + 8 + static_cast<double>(n / lanes);
    const auto error = std::abs(static_cast<double>(moe::log_sum_exp(z.data(), n) - std::log(sum)));
    REQUIRE(error < bound * double{std::numeric_limits<TestType>::epsilon()});
  }
}

TEMPLATE_TEST_CASE("log_sum_exp: nothing at all sums to log 0", "[numeric]", float, double) {
  CHECK(log_sum_exp<TestType>({}) == -kInfinity<TestType>);
  CHECK(log_sum_exp(std::vector<TestType>(21, -kInfinity<TestType>)) == -kInfinity<TestType>);
}

TEMPLATE_TEST_CASE("log_sum_exp: logits of any finite size do not overflow", "[numeric]", float, double) {
  const TestType most = std::numeric_limits<TestType>::max();
  CHECK(log_sum_exp<TestType>({most, -most}) == most);
  CHECK(log_sum_exp<TestType>({-most, -most}) == -most);
  CHECK(log_sum_exp<TestType>({TestType(-1e4), -kInfinity<TestType>}) == TestType(-1e4));
}

TEMPLATE_TEST_CASE("log_sum_exp: +inf gives +inf and NaN gives NaN at any place", "[numeric]", float, double) {
  for (std::size_t at = 0; at < 37; ++at) {
    CAPTURE(at);
    std::vector<TestType> z(37, TestType(1));
    z[at] = kInfinity<TestType>;
    REQUIRE(log_sum_exp(z) == kInfinity<TestType>);
    z[at] = test::kNan<TestType>;
    REQUIRE(std::isnan(log_sum_exp(z)));
  }
}

}  // namespace
