// SPDX-License-Identifier: MIT
#include "moe/numeric/activation.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "numeric/ulp.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"

namespace {

using test::Long;
using All = std::tuple<moe::Identity, moe::Relu, moe::Tanh, moe::Sigmoid, moe::Softplus, moe::LogSigmoid, moe::Silu,
                       moe::Gelu, moe::GeluTanh>;
using AllAndSquares = decltype(std::tuple_cat(All{}, std::tuple<moe::SquaredRelu>{}));

/// e^-kEnd is still a normal number, and so is e^(-x^2 / 2) up to kNormalEnd.
template <class S>
constexpr Long kEnd = sizeof(S) == 4 ? 87.3L : 708.3L;
template <class S>
constexpr Long kNormalEnd = sizeof(S) == 4 ? 13.2L : 37.6L;

Long sigmoid(Long x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); }
Long sigmoid_slope(Long x) { return sigmoid(x) * sigmoid(-x); }
Long silu_slope(Long x) { return sigmoid(x) * (1 + x * sigmoid(-x)); }
Long normal_below(Long x) { return std::erfc(-x * std::sqrt(0.5L)) / 2; }
Long normal_density(Long x) { return std::exp(-x * x / 2) / std::sqrt(8 * std::atan(1.0L)); }
Long gelu_slope(Long x) { return normal_below(x) + x * normal_density(x); }
/// Twice the argument of the tanh in GeluTanh, and its slope.
const Long kScale = 2 * std::sqrt(0.5L / std::atan(1.0L));
Long inner(Long x) { return kScale * (x + 0.044715L * x * x * x); }
Long inner_slope(Long x) { return kScale * (1 + 3 * 0.044715L * x * x); }

template <class A>
constexpr auto value = [](const auto& x) { return A::value(x); };
template <class A>
constexpr auto derivative = [](const auto& x) { return A::derivative(x); };
template <class A>
constexpr auto second_derivative = [](const auto& x) { return A::second_derivative(x); };

TEMPLATE_LIST_TEST_CASE("Activation: all shipped ones satisfy the concept and have a name", "[numeric]",
                        AllAndSquares) {
  STATIC_REQUIRE(moe::Activation<TestType>);
  REQUIRE(std::strlen(TestType::kName) > 0);
}

struct NoCurvature : moe::Silu {
  template <class V>
  static V second_derivative(const V& x) = delete;
};

TEST_CASE("Activation: a type without a second derivative is none", "[numeric]") {
  STATIC_REQUIRE_FALSE(moe::Activation<NoCurvature>);
}

template <class A, class S>
void check_equal_bits(Long low, Long high) {
  const std::vector<S> x = test::arguments<S>(low, high);
  const auto check = [&](auto f) {
    std::vector<S> y(x.size());
    moe::simd::transform(static_cast<moe::Index>(x.size()), x.data(), y.data(), f);
    std::size_t differing = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      differing += !test::same_bits(S(f(x[i])), y[i]);
      S shifted = 0;  // in the first lane of a register with other neighbours
      moe::simd::store_partial(&shifted, f(moe::simd::load_partial(&x[i], 1, S{7})), 1);
      differing += !test::same_bits(shifted, y[i]);
    }
    CHECK(differing == 0);
  };
  check(value<A>);
  check(derivative<A>);
  check(second_derivative<A>);
}

TEMPLATE_LIST_TEST_CASE("Activation: a scalar, a tail and any lane give the same bits", "[numeric]", AllAndSquares) {
  check_equal_bits<TestType, float>(-20, 20);
  check_equal_bits<TestType, double>(-45, 45);
}

template <class A, class S>
void check_saturation() {
  using Limits = std::numeric_limits<S>;
  for (const S x : {S(50), S(1e4), S(1e18), Limits::max(), S(-50), S(-1e4), S(-1e18), Limits::lowest()}) {
    CAPTURE(x);
    CHECK(std::isfinite(A::value(x)));
    CHECK(std::isfinite(A::derivative(x)));
    CHECK(std::isfinite(A::second_derivative(x)));
  }
  for (const S sign : {S(1), S(-1)}) {
    const S end = sign * Limits::max(), infinity = sign * Limits::infinity();
    CAPTURE(infinity);
    CHECK((A::value(infinity) == A::value(end) || (A::value(end) == end && A::value(infinity) == infinity)));
    CHECK(A::derivative(infinity) == A::derivative(end));
    CHECK(A::second_derivative(infinity) == A::second_derivative(end));
  }
}

TEMPLATE_LIST_TEST_CASE("Activation: huge arguments saturate, and infinity is their limit", "[numeric]", All) {
  check_saturation<TestType, float>();
  check_saturation<TestType, double>();
}

TEMPLATE_LIST_TEST_CASE("Activation: NaN passes through", "[numeric]", AllAndSquares) {
  CHECK(std::isnan(TestType::value(test::kNan<float>)));
  CHECK(std::isnan(TestType::value(test::kNan<double>)));
  if constexpr (!std::is_same_v<TestType, moe::Identity>) {
    CHECK(std::isnan(TestType::derivative(test::kNan<float>)));
    CHECK(std::isnan(TestType::derivative(test::kNan<double>)));
  }
}

TEMPLATE_LIST_TEST_CASE("Activation: derivatives are the slopes of what they derive", "[numeric]", All) {
  // Central differences: truncation h^2 / 6 times the third derivative (below 6) and rounding 8 epsilon / h, each below
  // 1.5e-10. The grid misses 0, where Relu has no slope, by more than h.
  const double h = 1e-5;
  for (double x = -8.03; x < 8; x += 0.1) {
    CAPTURE(x);
    const double slope = (TestType::value(x + h) - TestType::value(x - h)) / (2 * h);
    const double bend = (TestType::derivative(x + h) - TestType::derivative(x - h)) / (2 * h);
    REQUIRE_THAT(TestType::derivative(x), Catch::Matchers::WithinAbs(slope, 3e-10));
    REQUIRE_THAT(TestType::second_derivative(x), Catch::Matchers::WithinAbs(bend, 3e-10));
  }
}

TEST_CASE("Identity and Relu: are exact", "[numeric]") {
  for (const double x : {-2.5, -0.0, 0.0, 1e-300, 3.5}) {
    CAPTURE(x);
    CHECK(moe::Identity::value(x) == x);
    CHECK(moe::Relu::value(x) == (x > 0 ? x : 0));
    CHECK(moe::Relu::derivative(x) == (x > 0 ? 1 : 0));
  }
}

TEMPLATE_TEST_CASE("SquaredRelu: is exact up to one rounding, and its derivatives are", "[numeric]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  for (const double value : {-1e18, -2.5, -0.0, 0.0, 1e-3, 0.7, 3.0, 1e18}) {
    const auto x = static_cast<TestType>(value);
    const TestType square = x > 0 ? x * x : 0, slope = x > 0 ? 2 * x : 0, bend = x > 0 ? 2 : 0;
    CAPTURE(x);
    CHECK(moe::SquaredRelu::value(x) == square);
    CHECK(moe::SquaredRelu::derivative(x) == slope);
    CHECK(moe::SquaredRelu::second_derivative(x) == bend);
  }
  CHECK(moe::SquaredRelu::value(Limits::infinity()) == Limits::infinity());
  CHECK(moe::SquaredRelu::value(Limits::max()) == Limits::infinity());
  CHECK(moe::SquaredRelu::value(-Limits::infinity()) == 0);
  CHECK(moe::SquaredRelu::derivative(-Limits::infinity()) == 0);
  CHECK(std::isnan(moe::SquaredRelu::second_derivative(test::kNan<TestType>)));
}

TEMPLATE_TEST_CASE("Tanh: is within 3, 4 and 6 ulp", "[numeric]", float, double) {
  const Long end = kEnd<TestType> / 2;
  const auto slope = [](Long x) { return 4 * sigmoid_slope(2 * x); };
  const auto bend = [&](Long x) { return -2 * std::tanh(x) * slope(x); };
  CHECK(test::worst_ulps<TestType>(-end, end, value<moe::Tanh>, [](Long x) { return std::tanh(x); }) < 3);
  CHECK(test::worst_ulps<TestType>(-end, end, derivative<moe::Tanh>, slope) < 4);
  CHECK(test::worst_ulps<TestType>(-end, end, second_derivative<moe::Tanh>, bend) < 6);
}

TEMPLATE_TEST_CASE("Sigmoid: is within 3, 4 and 6 ulp on both sides", "[numeric]", float, double) {
  const Long end = kEnd<TestType>;
  const auto bend = [](Long x) { return -sigmoid_slope(x) * std::tanh(x / 2); };
  CHECK(test::worst_ulps<TestType>(-end, end, value<moe::Sigmoid>, sigmoid) < 3);
  CHECK(test::worst_ulps<TestType>(-end, end, derivative<moe::Sigmoid>, sigmoid_slope) < 4);
  CHECK(test::worst_ulps<TestType>(-end, end, second_derivative<moe::Sigmoid>, bend) < 6);
}

TEMPLATE_TEST_CASE("Softplus: is within 3 ulp on both sides", "[numeric]", float, double) {
  const Long end = kEnd<TestType>;
  const auto exact = [](Long x) { return std::max(x, Long{0}) + std::log1p(std::exp(-std::fabs(x))); };
  CHECK(test::worst_ulps<TestType>(-end, end, value<moe::Softplus>, exact) < 3);
}

TEMPLATE_TEST_CASE("Silu: is within 4 ulp, its derivatives within 2 epsilon", "[numeric]", float, double) {
  const Long end = kEnd<TestType>;
  const auto bend = [](Long x) { return sigmoid_slope(x) * (2 - x * std::tanh(x / 2)); };
  CHECK(test::worst_ulps<TestType>(-end, end, value<moe::Silu>, [](Long x) { return x * sigmoid(x); }) < 4);
  CHECK(test::worst_epsilons<TestType>(-end, end, derivative<moe::Silu>, silu_slope) < 2);
  CHECK(test::worst_epsilons<TestType>(-end, end, second_derivative<moe::Silu>, bend) < 2);
}

TEMPLATE_TEST_CASE("Silu: the derivative keeps 8 ulp far out at x < 0", "[numeric]", float, double) {
  CHECK(test::worst_ulps<TestType>(-kEnd<TestType>, -4, derivative<moe::Silu>, silu_slope) < 8);
}

TEMPLATE_TEST_CASE("Gelu: is within 12 ulp at x < 0 and 3 at x > 0", "[numeric]", float, double) {
  const Long end = kNormalEnd<TestType>;
  const auto exact = [](Long x) { return x * normal_below(x); };
  CHECK(test::worst_ulps<TestType>(-end, 0, value<moe::Gelu>, exact) < 12);
  CHECK(test::worst_ulps<TestType>(0, end, value<moe::Gelu>, exact) < 3);
}

TEMPLATE_TEST_CASE("Gelu: derivatives are within 2 epsilon", "[numeric]", float, double) {
  const auto bend = [](Long x) { return (2 - x * x) * normal_density(x); };
  CHECK(test::worst_epsilons<TestType>(-15, 15, derivative<moe::Gelu>, gelu_slope) < 2);
  CHECK(test::worst_epsilons<TestType>(-15, 15, second_derivative<moe::Gelu>, bend) < 2);
}

TEMPLATE_TEST_CASE("Gelu: the derivative keeps 8 ulp far out at x < 0", "[numeric]", float, double) {
  const Long end = kNormalEnd<TestType>;
  CHECK(test::worst_ulps<TestType>(-end, -2, derivative<moe::Gelu>, gelu_slope) < 8);
}

TEMPLATE_TEST_CASE("GeluTanh: is within 5 + 3 |w| ulp at x < 0 and 3 at x > 0", "[numeric]", float, double) {
  const auto exact = [](Long x) { return x * sigmoid(inner(x)); };
  const auto share = [](TestType computed, Long right, Long x) {
    return test::ulps(computed, right) / (5 + 3 * std::fabs(inner(x)));
  };
  const Long end = sizeof(TestType) == 4 ? 9.9L : 21.0L;  // where the value ceases to be a normal number
  CHECK(test::worst_error<TestType>(-end, 0, value<moe::GeluTanh>, exact, share) < 1);
  CHECK(test::worst_ulps<TestType>(0, end, value<moe::GeluTanh>, exact) < 3);
}

TEMPLATE_TEST_CASE("GeluTanh: derivatives are within 2 epsilon", "[numeric]", float, double) {
  const auto slope = [](Long x) { return sigmoid(inner(x)) + x * sigmoid_slope(inner(x)) * inner_slope(x); };
  const auto bend = [](Long x) {
    const Long w = inner(x), w1 = inner_slope(x), w2 = kScale * 6 * 0.044715L * x;
    return sigmoid_slope(w) * (2 * w1 + x * (w2 - std::tanh(w / 2) * w1 * w1));
  };
  CHECK(test::worst_epsilons<TestType>(-9, 9, derivative<moe::GeluTanh>, slope) < 2);
  CHECK(test::worst_epsilons<TestType>(-9, 9, second_derivative<moe::GeluTanh>, bend) < 2);
}

TEST_CASE("GeluTanh: is the formula of its paper, and is not Gelu", "[numeric]") {
  const double x = 1.5;
  const double expected = 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
  CHECK_THAT(moe::GeluTanh::value(x), Catch::Matchers::WithinRel(expected, 1e-15));
  CHECK(std::abs(moe::GeluTanh::value(x) - moe::Gelu::value(x)) > 1e-5);
}

}  // namespace
