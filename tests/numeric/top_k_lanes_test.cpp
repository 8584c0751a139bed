// SPDX-License-Identifier: MIT
#include "moe/numeric/top_k_lanes.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "catch.hpp"
#include "matrices.hpp"

namespace {

using moe::Index;
using moe::Matrix;
namespace simd = moe::simd;

template <class S>
constexpr S kInfinity = std::numeric_limits<S>::infinity();

/// The first k of a whole row, sorted stably: equal scores stay in ascending order of id.
template <class S>
std::vector<Index> sorted_top(const S* row, Index n, Index k) {
  std::vector<Index> ids(static_cast<std::size_t>(n));
  std::iota(ids.begin(), ids.end(), Index{0});
  std::ranges::stable_sort(ids, [&](Index a, Index b) { return row[a] > row[b]; });
  ids.resize(static_cast<std::size_t>(k));
  return ids;
}

/// Runs top_k_lanes on rows of a matrix, lane l reading row l, or the last where there are fewer.
template <class S>
struct LanesOf {
  static constexpr Index kLanes = simd::kLanes<S>;

  LanesOf(const Matrix<S>& matrix, Index k) {
    for (Index lane = 0; lane < kLanes; ++lane)
      rows[static_cast<std::size_t>(lane)] = matrix.row(std::min(lane, matrix.rows() - 1)).data();
    unusable = moe::detail::top_k_lanes(k, rows.data(), matrix.cols(), scores.data(), ids.data());
  }
  S score(Index place, Index lane) const { return scores[static_cast<std::size_t>(place * kLanes + lane)]; }
  Index id(Index place, Index lane) const {
    return static_cast<Index>(ids[static_cast<std::size_t>(place * kLanes + lane)]);
  }

  std::array<const S*, static_cast<std::size_t>(kLanes)> rows;
  alignas(64) std::array<S, static_cast<std::size_t>(16 * kLanes)> scores, ids;
  std::uint32_t unusable;
};

/// Normal draws, rounded to halves with `ties`.
template <class S>
Matrix<S> draw(Index rows, Index cols, bool ties) {
  const moe::RandomField random(moe::Purpose::User, cols);
  Matrix<S> scores(rows, cols);
  for (Index t = 0; t < rows; ++t)
    for (Index e = 0; e < cols; ++e)
      scores(t, e) = static_cast<S>(ties ? std::round(random.normal(t, e) * 2) / 2 : random.normal(t, e));
  return scores;
}

template <class S>
void require_sorted(const Matrix<S>& scores, Index k) {
  const LanesOf<S> lanes(scores, k);
  REQUIRE(lanes.unusable == 0);
  for (Index lane = 0; lane < simd::kLanes<S>; ++lane) {
    const S* row = lanes.rows[static_cast<std::size_t>(lane)];
    const auto expected = sorted_top(row, scores.cols(), k);
    for (Index s = 0; s < k; ++s) {
      CAPTURE(lane, s);
      REQUIRE(lanes.id(s, lane) == expected[static_cast<std::size_t>(s)]);
      REQUIRE(test::same_bits(lanes.score(s, lane), row[expected[static_cast<std::size_t>(s)]]));
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("transpose: out[c][r] is rows[r][c], from any column on", "[numeric]", float, double) {
  constexpr Index kLanes = simd::kLanes<TestType>;
  const auto matrix = test::random_matrix<TestType>(kLanes, 3 * kLanes + 1);
  for (const auto& [column, stride] : {std::pair{Index{0}, kLanes}, {1, kLanes}, {kLanes, 2 * kLanes},
                                       {2 * kLanes + 1, 3 * kLanes}}) {
    std::array<const TestType*, static_cast<std::size_t>(kLanes)> rows;
    for (Index r = 0; r < kLanes; ++r) rows[static_cast<std::size_t>(r)] = matrix.row(r).data();
    alignas(64) std::array<TestType, static_cast<std::size_t>(3 * kLanes * kLanes)> out;
    simd::transpose(rows.data(), column, out.data(), stride);
    for (Index c = 0; c < kLanes; ++c)
      for (Index r = 0; r < kLanes; ++r) {
        CAPTURE(column, stride, c, r);
        REQUIRE(out[static_cast<std::size_t>(c * stride + r)] == matrix(r, column + c));
      }
  }
}

TEMPLATE_TEST_CASE("top_k_lanes: agrees with a stable sort of every row, ties included", "[numeric][property]", float,
                   double) {
  const Index lanes = simd::kLanes<TestType>;
  for (const Index n : {Index{1}, lanes - 1, lanes, lanes + 1, 2 * lanes, Index{60}, Index{64}, Index{71}, Index{128},
                        Index{256}, Index{1000}, Index{1024}, Index{1025}})
    for (Index k = 1; k <= std::min<Index>(n, 16); ++k)
      for (const bool ties : {false, true}) {
        CAPTURE(n, k, ties);
        require_sorted(draw<TestType>(lanes, n, ties), k);
      }
}

TEMPLATE_TEST_CASE("top_k_lanes: equal scores, ascending and descending ones", "[numeric][property]", float, double) {
  for (const Index n : {16, 64, 100}) {
    Matrix<TestType> equal = Matrix<TestType>::Constant(1, n, TestType{-3}), rising = equal, falling = equal;
    for (Index e = 0; e < n; ++e) falling(0, n - 1 - e) = rising(0, e) = static_cast<TestType>(e);
    for (const Index k : {1, 2, 8, 16}) {
      CAPTURE(n, k);
      require_sorted(equal, k);
      require_sorted(rising, k);
      require_sorted(falling, k);
    }
  }
}

TEMPLATE_TEST_CASE("top_k_lanes: -0 and 0 are equal", "[numeric]", float, double) {
  Matrix<TestType> zeros(1, 20);
  for (Index e = 0; e < 20; ++e) zeros(0, e) = e % 3 == 1 ? TestType(-0.0) : TestType(0);
  for (const Index k : {1, 2, 4, 8, 16}) require_sorted(zeros, k);
}

TEMPLATE_TEST_CASE("top_k_lanes: where too few are above -inf, the rest has score -inf", "[numeric]", float, double) {
  Matrix<TestType> masked = Matrix<TestType>::Constant(1, 40, -kInfinity<TestType>);
  masked(0, 7) = std::numeric_limits<TestType>::lowest();
  masked(0, 39) = 1;
  const LanesOf<TestType> lanes(masked, 4);
  CHECK(lanes.unusable == 0);
  CHECK(lanes.id(0, 0) == 39);
  CHECK(lanes.id(1, 0) == 7);
  CHECK(lanes.score(2, 0) == -kInfinity<TestType>);
  CHECK(lanes.score(3, 0) == -kInfinity<TestType>);
}

TEMPLATE_TEST_CASE("top_k_lanes: tells the rows with a NaN or +inf, and leaves the others right", "[numeric][property]",
                   float, double) {
  const Index num_lanes = simd::kLanes<TestType>;
  for (const Index n : {Index{3}, num_lanes, 2 * num_lanes + 5})
    for (const TestType bad : {kInfinity<TestType>, test::kNan<TestType>})
      for (Index at = 0; at < n; ++at) {
        auto scores = draw<TestType>(num_lanes, n, false);
        scores.row(0).setConstant(-kInfinity<TestType>);  // allowed
        scores.row(0)(0) = std::numeric_limits<TestType>::max();
        scores(at % (num_lanes - 1) + 1, at) = bad;
        const LanesOf<TestType> lanes(scores, 1);
        CAPTURE(n, bad, at);
        REQUIRE(lanes.unusable == 1u << (at % (num_lanes - 1) + 1));
        for (Index lane = 0; lane < num_lanes; ++lane)
          if ((lanes.unusable >> lane & 1) == 0)
            REQUIRE(lanes.id(0, lane) == sorted_top(scores.row(lane).data(), n, 1)[0]);
      }
}
