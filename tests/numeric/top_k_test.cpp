// SPDX-License-Identifier: MIT
#include "moe/numeric/top_k.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#include "support/catch.hpp"
#include "support/matrices.hpp"

namespace {

using moe::Index;
using Ids = std::vector<Index>;

template <class S>
constexpr S kInfinity = std::numeric_limits<S>::infinity();

/// By sorting everything, which is stable: equal scores stay in ascending order of id.
template <class S>
Ids sorted_top(const std::vector<S>& scores, std::size_t k) {
  Ids ids(scores.size());
  std::iota(ids.begin(), ids.end(), Index{0});
  const auto rank = [&](Index i) {
    const S score = scores[static_cast<std::size_t>(i)];
    return std::isnan(score) ? -kInfinity<S> : score;
  };
  std::ranges::stable_sort(ids, [&](Index a, Index b) { return rank(a) > rank(b); });
  ids.resize(k);
  return ids;
}

template <class S>
Ids top(const std::vector<S>& scores, std::size_t k) {
  Ids ids(k, -1);
  moe::top_k(scores.data(), static_cast<Index>(scores.size()), std::span(ids));
  return ids;
}

template <class S>
Ids top_by_call(const std::vector<S>& scores, std::size_t k) {
  Ids ids(k, -1);
  moe::top_k([&](Index i) { return scores[static_cast<std::size_t>(i)]; }, static_cast<Index>(scores.size()),
             std::span(ids));
  return ids;
}

/// Normal draws; `levels` > 0 rounds them to that many per unit, for ties; one in eight is -inf with `masked`.
template <class S>
std::vector<S> draw(Index n, int levels, bool masked) {
  const moe::RandomField random(moe::Purpose::User, n, levels);
  std::vector<S> scores;
  for (Index i = 0; i < n; ++i) {
    const double x = random.normal(i);
    scores.push_back(static_cast<S>(levels > 0 ? std::round(x * levels) / levels : x));
    if (masked && random.below(8, i, 1) == 0) scores.back() = -kInfinity<S>;
  }
  return scores;
}

TEMPLATE_TEST_CASE("top_k: agrees with a stable sort, ties and -inf included", "[numeric][property]", float, double) {
  const Index lanes = moe::simd::kLanes<TestType>;
  for (const Index n : {Index{1}, lanes - 1, lanes, lanes + 1, 2 * lanes, 4 * lanes + 3, Index{8}, Index{33}, Index{60},
                        Index{130}, Index{256}, Index{1024}, Index{1025}, Index{3000}})
    for (const std::size_t k : {0u, 1u, 2u, 3u, 8u, 16u, 17u, 32u, 64u, 65u, 200u, 512u, 513u})
      for (const int levels : {0, 1, 4})
        for (const bool masked : {false, true}) {
          if (static_cast<Index>(k) > n) continue;
          CAPTURE(n, k, levels, masked);
          const auto scores = draw<TestType>(n, levels, masked);
          REQUIRE(top(scores, k) == sorted_top(scores, k));
          REQUIRE(top_by_call(scores, k) == sorted_top(scores, k));
        }
}

TEMPLATE_TEST_CASE("choose_by_bound: agrees with a stable sort, or leaves what it cannot choose alone",
                   "[numeric][property]", float, double) {
  for (const Index n : {1, 31, 32, 33, 64, 65, 127, 200, 257, 1000})
    for (const std::size_t k : {1u, 2u, 5u, 8u, 9u, 16u, 31u, 33u, 64u}) {
      if (static_cast<Index>(k) > n) continue;
      for (const int levels : {0, 1}) {
        CAPTURE(n, k, levels);
        auto scores = draw<TestType>(n, levels, true);
        scores[scores.size() / 2] = test::kNan<TestType>;
        Ids ids(k, -1);
        const bool chosen = moe::detail::choose_by_bound(scores.data(), n, std::span(ids));
        REQUIRE((chosen || levels == 1));
        REQUIRE(ids == (chosen ? sorted_top(scores, k) : Ids(k, -1)));
      }
    }
  const std::vector<TestType> equal(static_cast<std::size_t>(moe::detail::kMostCompared + 1), TestType(2));
  Ids ids(3, -1);
  CHECK_FALSE(moe::detail::choose_by_bound(equal.data(), std::ssize(equal), std::span(ids)));
  CHECK(moe::detail::choose_by_bound(equal.data(), moe::detail::kMostCompared, std::span(ids)));
  CHECK(ids == Ids{0, 1, 2});
  CHECK_FALSE(moe::detail::choose_by_bound(equal.data(), 100, std::span(ids = Ids(65, -1))));
}

TEMPLATE_TEST_CASE("top_k: choosing everything sorts", "[numeric]", float, double) {
  for (const Index n : {0, 1, 5, 16, 17, 40}) {
    CAPTURE(n);
    const auto scores = draw<TestType>(n, 2, false);
    REQUIRE(top(scores, scores.size()) == sorted_top(scores, scores.size()));
  }
}

TEMPLATE_TEST_CASE("top_k: among equal scores the lowest ids win", "[numeric]", float, double) {
  for (const TestType score : {TestType(0), TestType(-3), -kInfinity<TestType>, kInfinity<TestType>})
    for (const Index n : {20, 2000}) {
      CAPTURE(score, n);
      const std::vector<TestType> scores(static_cast<std::size_t>(n), score);
      REQUIRE(top(scores, 5) == Ids{0, 1, 2, 3, 4});
    }
}

TEMPLATE_TEST_CASE("top_k: -0 and 0 are equal", "[numeric]", float, double) {
  REQUIRE(top<TestType>({TestType(-0.0), 0, TestType(-0.0), 0}, 4) == Ids{0, 1, 2, 3});
}

TEMPLATE_TEST_CASE("top_k: -inf and NaN come last, in order of id", "[numeric]", float, double) {
  for (const std::size_t padding : {0u, 2000u}) {
    CAPTURE(padding);
    std::vector<TestType> scores = {-kInfinity<TestType>, 1, test::kNan<TestType>, 2, -kInfinity<TestType>};
    scores.resize(scores.size() + padding, -kInfinity<TestType>);
    REQUIRE(top(scores, 5) == Ids{3, 1, 0, 2, 4});
    REQUIRE(top_by_call(scores, 5) == Ids{3, 1, 0, 2, 4});
  }
}

TEMPLATE_TEST_CASE("top_k: NaN, -inf and both zeros in any place of a row", "[numeric][property]", float, double) {
  for (const Index n : {7, 33, 100, 1500})
    for (const std::size_t k : {1u, 2u, 3u, 7u})
      for (const Index draws : {0, 1, 2, 3}) {
        CAPTURE(n, k, draws);
        const moe::RandomField random(moe::Purpose::User, n, draws);
        const std::array<TestType, 5> values = {test::kNan<TestType>, -kInfinity<TestType>, TestType(0), TestType(-0.0),
                                                TestType(-1)};
        std::vector<TestType> scores;
        for (Index i = 0; i < n; ++i) scores.push_back(values[random.below(2 + static_cast<std::uint64_t>(draws), i)]);
        REQUIRE(top(scores, k) == sorted_top(scores, k));
      }
}

TEMPLATE_TEST_CASE("top_k: nothing but NaN still gives distinct ids", "[numeric]", float, double) {
  for (const std::size_t n : {7u, 40u, 1500u}) {
    CAPTURE(n);
    REQUIRE(top(std::vector<TestType>(n, test::kNan<TestType>), 7) == Ids{0, 1, 2, 3, 4, 5, 6});
  }
}

TEST_CASE("top_k: takes expressions and integers as scores", "[numeric]") {
  const moe::Matrix<float> z = test::random_matrix<float>(2, 12);
  const Eigen::RowVectorXf bias = Eigen::RowVectorXf::Unit(12, 7) * 100;
  Ids ids(1);
  moe::top_k([&](Index e) { return z(1, e) + bias(e); }, 12, std::span(ids));
  CHECK(ids[0] == 7);
  moe::top_k([](Index i) { return i % 5; }, 12, std::span(ids));
  CHECK(ids[0] == 4);
}

TEMPLATE_TEST_CASE("first_not_below_infinity: finds the first NaN or +inf", "[numeric]", float, double) {
  const Index lanes = moe::simd::kLanes<TestType>;
  for (const Index n : {Index{0}, Index{1}, lanes, 4 * lanes + 3})
    for (Index at = 0; at <= n; ++at)
      for (const TestType bad : {kInfinity<TestType>, test::kNan<TestType>}) {
        CAPTURE(n, at, bad);
        std::vector<TestType> row(static_cast<std::size_t>(n), -kInfinity<TestType>);
        if (at < n) row[static_cast<std::size_t>(at)] = bad;
        if (at < n) row.back() = bad;
        REQUIRE(moe::first_not_below_infinity(row.data(), n) == at);
      }
}

TEMPLATE_TEST_CASE("count_finite: counts neither infinity nor NaN", "[numeric]", float, double) {
  const Index lanes = moe::simd::kLanes<TestType>;
  for (const Index n : {Index{0}, Index{1}, lanes - 1, lanes, 4 * lanes + 3}) {
    CAPTURE(n);
    const auto row = draw<TestType>(n, 0, true);
    const auto expected = std::ranges::count_if(row, [](TestType x) { return std::isfinite(x); });
    REQUIRE(moe::count_finite(row.data(), n) == expected);
  }
  const std::vector<TestType> odd = {kInfinity<TestType>, test::kNan<TestType>, std::numeric_limits<TestType>::max()};
  REQUIRE(moe::count_finite(odd.data(), 3) == 1);
}

}  // namespace
