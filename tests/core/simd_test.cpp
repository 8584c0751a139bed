// SPDX-License-Identifier: MIT
#include "moe/core/simd.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "moe/core/simd_expand.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"

namespace {

namespace simd = moe::simd;
using moe::Index;

template <class S>
using Lanes = std::array<S, static_cast<std::size_t>(simd::kLanes<S>)>;

template <class S>
Lanes<S> lanes_of(const simd::Batch<S>& batch) {
  Lanes<S> lane;
  simd::store(lane.data(), batch);
  return lane;
}

/// 1.1, 2.1, 3.1, ...: sums of them depend on their order.
template <class S>
Lanes<S> ramp() {
  Lanes<S> lane;
  for (std::size_t i = 0; i < lane.size(); ++i) lane[i] = static_cast<S>(i) + S(1.1);
  return lane;
}

TEMPLATE_TEST_CASE("load_partial: takes the first lanes, fills the others and reads nothing behind", "[core]", float,
                   double) {
  for (Index count = 0; count < simd::kLanes<TestType>; ++count) {
    CAPTURE(count);
    const auto size = static_cast<std::size_t>(count);
    const auto exact = std::make_unique<TestType[]>(size);  // of its own on the heap: a sanitizer watches its end
    std::copy_n(ramp<TestType>().data(), size, exact.get());
    const auto lane = lanes_of(simd::load_partial(exact.get(), count, TestType(-5)));
    for (std::size_t i = 0; i < lane.size(); ++i) REQUIRE(lane[i] == (i < size ? ramp<TestType>()[i] : TestType(-5)));
  }
}

TEMPLATE_TEST_CASE("store_partial: writes the first lanes only", "[core]", float, double) {
  for (Index count = 0; count < simd::kLanes<TestType>; ++count) {
    CAPTURE(count);
    Lanes<TestType> to{};
    simd::store_partial(to.data(), simd::load(ramp<TestType>().data()), count);
    for (std::size_t i = 0; i < to.size(); ++i)
      REQUIRE(to[i] == (i < static_cast<std::size_t>(count) ? ramp<TestType>()[i] : TestType(0)));
  }
}

TEMPLATE_TEST_CASE("fma: a batch and a scalar round alike, once where the machine can", "[core]", float, double) {
  const TestType e = std::numeric_limits<TestType>::epsilon(), x = 1 + e, y = 1 - e, z = -1;
  // x y = 1 - e^2 rounds to 1, so that two roundings give 0.
#if defined(__FMA__) || defined(__aarch64__)
  const TestType expected = -e * e;
#else
  const TestType expected = 0;
#endif
  using V = simd::Batch<TestType>;
  CHECK(simd::fma(x, y, z) == expected);
  CHECK(lanes_of(simd::fma(V(x), V(y), V(z)))[0] == expected);
  CHECK(simd::fnma(x, y, TestType(1)) == -expected);
  CHECK(lanes_of(simd::fnma(V(x), V(y), V(TestType(1))))[0] == -expected);
}

TEMPLATE_TEST_CASE("divide: a batch rounds as a scalar does", "[core]", float, double) {
  using V = simd::Batch<TestType>;
  for (int i = 1; i < 500; ++i) {
    CAPTURE(i);
    const TestType a = TestType(1) + TestType(i) / 7, b = TestType(3) + TestType(i) / 11;
    REQUIRE(test::same_bits(lanes_of(simd::divide(V(a), V(b)))[0], a / b));
    REQUIRE(test::same_bits(simd::divide(a, b), a / b));
  }
}

TEMPLATE_TEST_CASE("sqrt: a batch rounds as a scalar does", "[core]", float, double) {
  using V = simd::Batch<TestType>;
  constexpr TestType kLargest = std::numeric_limits<TestType>::max(), kSmallest = std::numeric_limits<TestType>::min();
  for (const TestType scale : {kSmallest, TestType(1), kLargest / 64})
    for (int i = 0; i < 500; ++i) {
      CAPTURE(scale, i);
      const TestType x = scale * TestType(i) / 11;
      REQUIRE(test::same_bits(lanes_of(simd::sqrt(V(x)))[0], std::sqrt(x)));
      REQUIRE(test::same_bits(simd::sqrt(x), std::sqrt(x)));
    }
}

TEMPLATE_TEST_CASE("reduce_add: adds by halving", "[core]", float, double) {
  Lanes<TestType> lane = ramp<TestType>();
  const TestType sum = simd::reduce_add(simd::load(lane.data()));
  for (std::size_t width = lane.size() / 2; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  CHECK(test::same_bits(sum, lane[0]));
}

TEMPLATE_TEST_CASE("reduce_max: finds the largest lane wherever it is", "[core]", float, double) {
  for (std::size_t at = 0; at < Lanes<TestType>().size(); ++at) {
    CAPTURE(at);
    Lanes<TestType> lane;
    lane.fill(-std::numeric_limits<TestType>::infinity());
    lane[at] = -3;
    REQUIRE(simd::reduce_max(simd::load(lane.data())) == -3);
  }
}

TEMPLATE_TEST_CASE("max: is the second if either is NaN", "[core]", float, double) {
  using V = simd::Batch<TestType>;
  const TestType nan = test::kNan<TestType>;
  CHECK(lanes_of(simd::max(V(nan), V(TestType(2))))[0] == 2);
  CHECK(std::isnan(lanes_of(simd::max(V(TestType(2)), V(nan)))[0]));
  CHECK(lanes_of(simd::max(V(TestType(2)), V(TestType(3)))) == lanes_of(V(TestType(3))));
  CHECK(lanes_of(simd::max(V(TestType(3)), V(TestType(2)))) == lanes_of(V(TestType(3))));
  CHECK(lanes_of(simd::min(V(nan), V(TestType(2))))[0] == 2);
  CHECK(std::isnan(lanes_of(simd::min(V(TestType(2)), V(nan)))[0]));
  CHECK(lanes_of(simd::min(V(TestType(2)), V(TestType(3)))) == lanes_of(V(TestType(2))));
  CHECK(lanes_of(simd::min(V(TestType(3)), V(TestType(2)))) == lanes_of(V(TestType(2))));
  CHECK(simd::min(TestType(3), TestType(2)) == 2);
  CHECK(simd::max(nan, TestType(2)) == 2);
  CHECK(std::isnan(simd::max(TestType(2), nan)));
}

TEMPLATE_TEST_CASE("bits: has one bit per lane, the first lowest", "[core]", float, double) {
  const simd::Batch<TestType> zero(TestType{0});
  for (std::size_t at = 0; at < Lanes<TestType>().size(); ++at) {
    CAPTURE(at);
    Lanes<TestType> lane{};
    lane[at] = 1;
    REQUIRE(simd::bits(simd::load(lane.data()) > zero) == (1u << at));
  }
  CHECK(simd::bits(zero == zero) == (std::uint64_t{1} << simd::kLanes<TestType>)-1);
  CHECK(simd::bits(zero > zero) == 0);
  CHECK(simd::any(zero == zero));
  CHECK_FALSE(simd::any(zero > zero));
}

TEMPLATE_TEST_CASE("select, abs and negate: treat a batch and a scalar alike, signed zeros too", "[core]", float,
                   double) {
  using V = simd::Batch<TestType>;
  for (const TestType x : {TestType(-2), TestType(-0.0), TestType(0), TestType(3)}) {
    CAPTURE(x);
    REQUIRE(test::same_bits(lanes_of(simd::abs(V(x)))[0], simd::abs(x)));
    REQUIRE(test::same_bits(lanes_of(simd::negate(V(x)))[0], simd::negate(x)));
    const V chosen = simd::select(V(x) < V(TestType(0)), V(TestType(5)), V(x));
    REQUIRE(test::same_bits(lanes_of(chosen)[0], simd::select(x < 0, TestType(5), x)));
  }
}

TEMPLATE_TEST_CASE("low_bits_to_exponent: makes powers of two", "[core]", float, double) {
  constexpr int kDigits = std::numeric_limits<TestType>::digits, kMax = std::numeric_limits<TestType>::max_exponent;
  for (const int n : {2 - kMax, -1, 0, 1, 17, kMax - 1}) {
    CAPTURE(n);
    // 1.5 * 2^(digits - 1) + m holds m in its lowest bits.
    const auto x = static_cast<TestType>(std::ldexp(1.5, kDigits - 1) + n + kMax - 1);
    REQUIRE(simd::low_bits_to_exponent(x) == std::ldexp(TestType(1), n));
    REQUIRE(lanes_of(simd::low_bits_to_exponent(simd::Batch<TestType>(x)))[0] == std::ldexp(TestType(1), n));
  }
}

TEMPLATE_TEST_CASE("for_each: visits full registers, then one tail", "[core]", float, double) {
  const Index lanes = simd::kLanes<TestType>;
  for (const Index n : {Index{0}, Index{1}, lanes - 1, lanes, lanes + 1, 4 * lanes + 3}) {
    CAPTURE(n);
    Index next = 0, tails = 0;
    simd::for_each<TestType>(
        n,
        [&](Index i) {
          REQUIRE(i == next);
          next += lanes;
        },
        [&](Index i, Index count) {
          REQUIRE(i == next);
          REQUIRE((0 < count && count < lanes));
          next += count;
          ++tails;
        });
    REQUIRE(next == n);
    REQUIRE(tails == (n % lanes != 0));
  }
}

TEMPLATE_TEST_CASE("transform: maps n numbers, in place too, and nothing behind them", "[core]", float, double) {
  const Index lanes = simd::kLanes<TestType>;
  for (const Index n : {Index{0}, Index{1}, lanes, 4 * lanes + 3}) {
    CAPTURE(n);
    const auto size = static_cast<std::size_t>(n);
    std::vector<TestType> values(size + 3, TestType(2));
    const auto f = [](const auto& x) { return x + x; };
    simd::transform(n, values.data(), values.data(), f);
    REQUIRE(std::ranges::count(values, TestType(4)) == n);
    REQUIRE(std::ranges::count(values, TestType(2)) == 3);
  }
}

TEST_CASE("transform: fills the tail with what it is told", "[core]") {
  const double one = 1;
  double result = 0, sum = 0;
  const auto f = [&](const simd::Batch<double>& x) {
    sum = simd::reduce_add(x);
    return x;
  };
  simd::transform(1, &one, &result, f, 0.5);
  CHECK(sum == 1 + 0.5 * (static_cast<double>(simd::kLanes<double>) - 1));
  CHECK(result == 1);
}

}  // namespace

TEST_CASE("simd::expand: every set of lanes, with NaN and -0 among the values, and +0 elsewhere", "[core]") {
  constexpr auto kCount = static_cast<std::size_t>(simd::kLanes<float>);
  std::vector<float> values(2 * kCount);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i + 1);
  values[1] = -0.0f;
  values[4] = std::numeric_limits<float>::quiet_NaN();
  for (unsigned set = 0; set < 1u << kCount; ++set) {
    const Lanes<float> found = lanes_of<float>(simd::expand(values.data() + 1, static_cast<simd::LaneBits>(set)));
    std::size_t next = 1;
    for (std::size_t lane = 0; lane < kCount; ++lane) {
      const float expected = set >> lane & 1u ? values[next++] : 0.0f;
      REQUIRE(std::bit_cast<std::uint32_t>(found[lane]) == std::bit_cast<std::uint32_t>(expected));
    }
  }
}
