// SPDX-License-Identifier: MIT
#include "moe/numeric/softmax.hpp"

#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/matrices.hpp"

namespace {

using Catch::Matchers::WithinAbs;
using moe::Index;

template <class S>
constexpr S kInfinity = std::numeric_limits<S>::infinity();

template <class S>
std::vector<Index> sizes() {
  const Index lanes = moe::simd::kLanes<S>;
  return {1, 2, lanes - 1, lanes, lanes + 1, 4 * lanes + 3, 256};
}

/// `spread` times a standard normal; the same for a size whatever its place.
template <class S>
std::vector<S> logits(Index n, double spread = 10) {
  std::vector<S> z(static_cast<std::size_t>(n));
  const moe::RandomField random(moe::Purpose::User, n);
  for (Index i = 0; i < n; ++i) z[static_cast<std::size_t>(i)] = static_cast<S>(spread * random.normal(i));
  return z;
}

template <class S>
std::vector<S> softmax(const std::vector<S>& z, double temperature = 1) {
  std::vector<S> p(z.size());
  moe::softmax_tempered(z.data(), static_cast<Index>(z.size()), temperature, p.data());
  return p;
}

template <class S>
std::vector<long double> exact_softmax(const std::vector<S>& z) {
  const long double most = z.empty() ? 0 : *std::ranges::max_element(z);
  std::vector<long double> p;
  long double sum = 0;
  for (const S x : z) sum += p.emplace_back(std::exp(x - most));
  for (long double& x : p) x /= sum;
  return p;
}

template <class S>
void require_close(const std::vector<S>& p, const std::vector<double>& expected) {
  for (std::size_t i = 0; i < p.size(); ++i) {
    CAPTURE(i);
    REQUIRE_THAT(p[i], WithinAbs(expected[i], 6e-7));  // expected to six digits, and a float
  }
}

TEMPLATE_TEST_CASE("softmax: reproduces numbers worked out by hand", "[numeric][golden]", float, double) {
  std::vector<TestType> p = {2, 1, TestType(0.5), -1};
  moe::softmax(p.data(), 4, p.data());
  require_close(p, {0.609460, 0.224208, 0.135989, 0.030343});
}

TEMPLATE_TEST_CASE("softmax_tempered: reproduces numbers worked out by hand", "[numeric][golden]", float, double) {
  const std::vector<TestType> z = {2, 1, TestType(0.5), -1};
  require_close(softmax(z, 2), {0.434400, 0.263477, 0.205196, 0.096928});
  require_close(softmax(z, 0.5), {0.842034, 0.113957, 0.041922, 0.002087});
}

TEMPLATE_TEST_CASE("softmax: the error is as promised at every size", "[numeric]", float, double) {
  for (const Index n : sizes<TestType>()) {
    const auto z = logits<TestType>(n), p = softmax(z);
    const auto exact = exact_softmax(z);
    const double steps = 8 + static_cast<double>(n / moe::simd::kLanes<TestType>);
    for (std::size_t i = 0; i < z.size(); ++i) {
      CAPTURE(n, i);
      const double bound = steps + std::abs(double{z[i]} - double{*std::ranges::max_element(z)});
      const auto error = std::abs(static_cast<double>(p[i] / exact[i] - 1));
      REQUIRE(error < bound * double{std::numeric_limits<TestType>::epsilon()});
    }
  }
}

TEMPLATE_TEST_CASE("softmax: zero logits are fine", "[numeric]", float, double) {
  moe::softmax<TestType>(nullptr, 0, nullptr);
  moe::softmax_backward<TestType>(nullptr, nullptr, 0, nullptr);
}

TEMPLATE_TEST_CASE("softmax: bits do not depend on alignment or on being in place", "[numeric]", float, double) {
  for (const Index n : sizes<TestType>()) {
    CAPTURE(n);
    const auto z = logits<TestType>(n), p = softmax(z);
    for (const std::size_t offset : {0u, 1u, 3u}) {
      std::vector<TestType> shifted(offset);
      shifted.insert(shifted.end(), z.begin(), z.end());
      moe::softmax(shifted.data() + offset, n, shifted.data() + offset);
      for (std::size_t i = 0; i < p.size(); ++i) REQUIRE(test::same_bits(shifted[offset + i], p[i]));
    }
  }
}

TEMPLATE_TEST_CASE("softmax: writes nothing behind the row", "[numeric]", float, double) {
  for (const Index n : sizes<TestType>()) {
    CAPTURE(n);
    const auto z = logits<TestType>(n);
    std::vector<TestType> out(z.size() + 64, TestType(7));
    moe::softmax(z.data(), n, out.data());
    REQUIRE(std::ranges::count(out, TestType(7)) == 64);
  }
}

TEMPLATE_TEST_CASE("softmax: a logit of -inf has weight exactly 0", "[numeric]", float, double) {
  for (const Index n : sizes<TestType>()) {
    CAPTURE(n);
    auto z = logits<TestType>(n + 1, 1.0);
    z[static_cast<std::size_t>(n / 2)] = -kInfinity<TestType>;
    const auto p = softmax(z);
    REQUIRE(test::same_bits(p[static_cast<std::size_t>(n / 2)], TestType{0}));
    REQUIRE(std::ranges::count(p, TestType{0}) == 1);
  }
}

TEMPLATE_TEST_CASE("softmax: if all logits are -inf, all weights are 0", "[numeric]", float, double) {
  for (const double temperature : {0.01, 1.0, 100.0})
    for (const TestType weight : softmax(std::vector<TestType>(19, -kInfinity<TestType>), temperature))
      REQUIRE(test::same_bits(weight, TestType{0}));
}

TEMPLATE_TEST_CASE("softmax: NaN or +inf anywhere makes the row NaN", "[numeric]", float, double) {
  for (const TestType bad : {kInfinity<TestType>, test::kNan<TestType>})
    for (std::size_t at = 0; at < 37; ++at) {
      CAPTURE(bad, at);
      auto z = logits<TestType>(37);
      z[at] = bad;
      for (const TestType weight : softmax(z)) REQUIRE(std::isnan(weight));
    }
}

TEMPLATE_TEST_CASE("softmax: a constant that all logits carry changes no bit", "[numeric][property]", float, double) {
  for (const TestType constant : {TestType(64), TestType(-4096)}) {
    auto z = logits<TestType>(23, 4.0);
    for (TestType& x : z) x = std::round(x * 8) / 8;  // so that adding the constant is exact
    const auto p = softmax(z);
    for (TestType& x : z) x += constant;
    REQUIRE(softmax(z) == p);
  }
}

TEMPLATE_TEST_CASE("softmax: logits of any finite size do not overflow", "[numeric]", float, double) {
  const TestType most = std::numeric_limits<TestType>::max();
  REQUIRE(softmax<TestType>({most, most, -most}) == std::vector<TestType>{TestType(0.5), TestType(0.5), 0});
  REQUIRE(softmax<TestType>({TestType(1e4), TestType(-1e4)}) == std::vector<TestType>{1, 0});
}

TEMPLATE_TEST_CASE("softmax_tempered: temperature 1 is softmax, bit for bit", "[numeric]", float, double) {
  const auto z = logits<TestType>(37);
  std::vector<TestType> p(z.size());
  moe::softmax(z.data(), 37, p.data());
  REQUIRE(softmax(z, 1.0) == p);
}

TEMPLATE_TEST_CASE("softmax_tempered: towards temperature 0 it is arg max", "[numeric][property]", float, double) {
  const std::vector<TestType> z = {TestType(1e4), 3, TestType(1e4), -kInfinity<TestType>, -7};
  for (const double temperature : {1.0, 1e-3, 1e-30, 1e-300, std::numeric_limits<double>::denorm_min(), 0.0}) {
    CAPTURE(temperature);
    REQUIRE(softmax(z, temperature) == std::vector<TestType>{TestType(0.5), 0, TestType(0.5), 0, 0});
  }
}

TEMPLATE_TEST_CASE("softmax_tempered: towards infinity it is uniform", "[numeric][property]", float, double) {
  const std::vector<TestType> z = {TestType(1e4), 3, -kInfinity<TestType>, -7, 0};
  for (const double temperature : {1e30, 1e300, std::numeric_limits<double>::infinity()}) {
    CAPTURE(temperature);
    REQUIRE(softmax(z, temperature) == std::vector<TestType>{0.25, 0.25, 0, 0.25, 0.25});
  }
}

TEST_CASE("softmax_backward: is the gradient", "[numeric]") {
  for (const Index n : sizes<double>()) {
    CAPTURE(n);
    auto z = logits<double>(n, 1.0);
    const auto dp = logits<double>(n, 2.0), p = softmax(z);
    std::vector<double> dz(z.size());
    moe::softmax_backward(p.data(), dp.data(), n, dz.data());
    const auto loss = [&] {
      const auto weights = softmax(z);
      double sum = 0;
      for (std::size_t i = 0; i < z.size(); ++i) sum += weights[i] * dp[i];
      return sum;
    };
    REQUIRE(test::gradient_error(loss, std::span<double>(z), std::span<const double>(dz)) < 1e-6);
  }
}

TEMPLATE_TEST_CASE("softmax_backward: in place gives the same bits", "[numeric]", float, double) {
  for (const Index n : sizes<TestType>()) {
    CAPTURE(n);
    const auto p = softmax(logits<TestType>(n, 1.0));
    auto dp = logits<TestType>(n);
    std::vector<TestType> dz(p.size());
    moe::softmax_backward(p.data(), dp.data(), n, dz.data());
    moe::softmax_backward(p.data(), dp.data(), n, dp.data());
    REQUIRE(dp == dz);
  }
}

TEMPLATE_TEST_CASE("softmax_backward: a weight of 0 has gradient 0", "[numeric]", float, double) {
  const std::vector<TestType> p = {TestType(0.25), 0, TestType(0.75)}, dp = {1, TestType(1e10), -2};
  std::vector<TestType> dz(3);
  moe::softmax_backward(p.data(), dp.data(), 3, dz.data());
  REQUIRE(dz[1] == 0);
}

TEMPLATE_TEST_CASE("softmax_at: is the softmax of the listed entries", "[numeric]", float, double) {
  const moe::Matrix<TestType> z = test::random_matrix<TestType>(3, 9);
  std::vector<Index> ids = {4, 0, 8};
  std::vector<TestType> weights(3);
  moe::softmax_at(z.row(1), ids, std::span(weights));
  const auto expected = softmax<TestType>({z(1, 4), z(1, 0), z(1, 8)});
  REQUIRE(weights == expected);
}

TEST_CASE("softmax_at: takes blocks, lambdas, mutable ids and no ids", "[numeric]") {
  const moe::Matrix<double> z = test::random_matrix<double>(3, 9);
  std::vector<Index> ids = {1, 2};
  std::vector<double> from_block(2), from_lambda(2);
  moe::softmax_at(z.block(1, 2, 1, 5).row(0), std::span<Index>(ids), std::span(from_block));
  moe::softmax_at([&](Index i) { return z(1, i + 2); }, std::span<const Index>(ids), std::span(from_lambda));
  moe::softmax_at(z.row(0), std::span<Index>(), std::span<double>());
  REQUIRE(from_block == from_lambda);
  REQUIRE(from_block == softmax<double>({z(1, 3), z(1, 4)}));
}

}  // namespace
