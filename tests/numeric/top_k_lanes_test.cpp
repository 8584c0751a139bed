// SPDX-License-Identifier: MIT
#include "moe/numeric/top_k_lanes.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "support/catch.hpp"
#include "support/matrices.hpp"

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
  alignas(64) std::array<S, static_cast<std::size_t>(moe::detail::kMostLaneChoices* kLanes)> scores, ids;
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
      // 0 stands for -0, too
      REQUIRE(test::same_bits(lanes.score(s, lane) + S{0}, row[expected[static_cast<std::size_t>(s)]] + S{0}));
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("transpose: out[c][r] is rows[r][c], from any column on", "[numeric]", float, double) {
  constexpr Index kLanes = simd::kLanes<TestType>;
  const auto matrix = test::random_matrix<TestType>(kLanes, 3 * kLanes + 1);
  for (const auto& [column, stride] :
       {std::pair{Index{0}, kLanes}, {1, kLanes}, {kLanes, 2 * kLanes}, {2 * kLanes + 1, 3 * kLanes}}) {
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
    for (Index k = 1; k <= std::min<Index>(n, moe::detail::kMostLaneChoices); k += k < 18 || k > 60 ? 1 : 7)
      for (const bool ties : {false, true}) {
        CAPTURE(n, k, ties);
        require_sorted(draw<TestType>(lanes, n, ties), k);
      }
}

TEMPLATE_TEST_CASE("top_k_lanes: equal scores, ascending and descending ones", "[numeric][property]", float, double) {
  for (const Index n : {64, 65, 100}) {
    Matrix<TestType> equal = Matrix<TestType>::Constant(1, n, TestType{-3}), rising = equal, falling = equal;
    for (Index e = 0; e < n; ++e) falling(0, n - 1 - e) = rising(0, e) = static_cast<TestType>(e);
    for (const Index k : {1, 2, 8, 12, 16, 33, 64}) {
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
  for (const Index k : {1, 2, 4, 8, 12, 16, 20}) require_sorted(zeros, k);
}

TEMPLATE_TEST_CASE("top_k_lanes: neighbours, the smallest and the largest numbers", "[numeric][property]", float,
                   double) {
  using Limits = std::numeric_limits<TestType>;
  std::vector<TestType> values;
  for (const TestType x : {TestType(1), TestType(2), TestType(0.3), Limits::max(), Limits::min(), Limits::denorm_min()})
    for (const TestType y : {x, std::nextafter(x, TestType(0)), std::nextafter(x, Limits::max())})
      for (const TestType z : {y, -y}) values.insert(values.end(), {z, z, TestType(0)});
  const auto n = static_cast<Index>(values.size());
  Matrix<TestType> scores(simd::kLanes<TestType>, n);
  for (Index lane = 0; lane < scores.rows(); ++lane)
    for (Index e = 0; e < n; ++e) scores(lane, e) = values[static_cast<std::size_t>((e * 37 + lane * 5) % n)];
  for (const Index k : {8, 9, 12, 13, 16, 17, 32, 50, 64}) {
    CAPTURE(n, k);
    require_sorted(scores, k);
  }
}

TEMPLATE_TEST_CASE("top_k_lanes: ids of many experts are told apart", "[numeric]", float, double) {
  constexpr Index kMany = moe::detail::kMostLaneIds;
  Matrix<TestType> scores = Matrix<TestType>::Constant(1, kMany, TestType(-1.9999999));
  const std::vector<Index> best = {kMany / 2 + 1, kMany - 70, kMany - 2, kMany - 1};
  for (const Index e : best) scores(0, e) = TestType(1.9999999);
  for (const Index k : {10, 16}) {
    const LanesOf<TestType> lanes(scores, k);
    for (Index s = 0; s < k; ++s) REQUIRE(lanes.id(s, 0) == (s < 4 ? best[static_cast<std::size_t>(s)] : s - 4));
    REQUIRE(lanes.score(3, 0) == TestType(1.9999999));
    REQUIRE(lanes.score(4, 0) == TestType(-1.9999999));
  }
}

#if defined(__SSE2__)
TEST_CASE("top_k_lanes: flushing denormals to zero mixes no ids up", "[numeric]") {
  Matrix<float> scores = draw<float>(simd::kLanes<float>, 40, false) * std::numeric_limits<float>::min() / 16;
  const unsigned before = _mm_getcsr();
  for (const unsigned mode : {0x8000u, 0x8040u}) {  // results, and operands as well
    _mm_setcsr(before | mode);
    const LanesOf<float> lanes(scores, 16);
    _mm_setcsr(before);
    for (Index lane = 0; lane < simd::kLanes<float>; ++lane) {
      std::vector<Index> ids;
      for (Index s = 0; s < 16; ++s) ids.push_back(lanes.id(s, lane));
      if (mode == 0x8000u) REQUIRE(ids == sorted_top(scores.row(lane).data(), 40, 16));
      std::ranges::sort(ids);
      REQUIRE(std::ranges::adjacent_find(ids) == ids.end());
    }
  }
}
#endif

TEST_CASE("sort_lanes: sorts every row of zeros and ones, and so every row", "[numeric][property]") {
  using Key = moe::detail::RankKey<double>;
  constexpr Index kLanes = simd::kLanes<double>;
  const auto check = [](Index count, auto bit_of) {  // bit_of(lane, place)
    std::vector<Key> keys(static_cast<std::size_t>(count));
    alignas(64) std::array<double, static_cast<std::size_t>(kLanes)> score, id;
    for (Index i = 0; i < count; ++i) {
      for (Index lane = 0; lane < kLanes; ++lane) score[static_cast<std::size_t>(lane)] = bit_of(lane, i) ? 1 : 0;
      keys[static_cast<std::size_t>(i)] = Key::encode(score.data(), 0);
    }
    moe::detail::sort_lanes(keys.data(), count);
    std::array<double, static_cast<std::size_t>(kLanes)> before;
    before.fill(1);
    for (const Key& key : keys) {
      key.decode(1, score.data(), id.data());
      for (std::size_t lane = 0; lane < score.size(); ++lane) {
        REQUIRE(score[lane] <= before[lane]);
        before[lane] = score[lane];
      }
    }
  };
  for (Index pattern = 0; pattern < 1 << 16; pattern += kLanes)  // the 0-1 principle: all inputs of eight and of 16
    check(16, [&](Index lane, Index place) { return (pattern + lane) >> place & 1; });
  for (Index first = 0; first < 64; ++first)  // runs of ones in 64
    check(64, [&](Index lane, Index place) { return (place - first + 64) % 64 < 8 * (lane % 8) + first % 8; });
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
  for (const Index n : {Index{3}, num_lanes, 2 * num_lanes + 5, Index{40}})
    for (const TestType bad : {kInfinity<TestType>, test::kNan<TestType>})
      for (Index at = 0; at < n; ++at) {
        auto scores = draw<TestType>(num_lanes, n, false);
        scores.row(0).setConstant(-kInfinity<TestType>);  // allowed
        scores.row(0)(0) = std::numeric_limits<TestType>::max();
        scores(at % (num_lanes - 1) + 1, at) = bad;
        for (const Index k : {Index{1}, std::min<Index>(n, 17)}) {
          const LanesOf<TestType> lanes(scores, k);
          CAPTURE(n, k, bad, at);
          REQUIRE(lanes.unusable == 1u << (at % (num_lanes - 1) + 1));
          for (Index lane = 0; lane < num_lanes; ++lane) {
            for (Index s = 0; s < k; ++s) REQUIRE((lanes.id(s, lane) >= 0 && lanes.id(s, lane) < n));
            if ((lanes.unusable >> lane & 1) == 0)
              REQUIRE(lanes.id(0, lane) == sorted_top(scores.row(lane).data(), n, 1)[0]);
          }
        }
      }
}
