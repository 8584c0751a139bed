// SPDX-License-Identifier: MIT
// The softmax of a row per lane against that of one row after the other, which has tests of its own.
#include <limits>
#include <vector>

#include "moe/numeric/softmax.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"

namespace {

using moe::Index;
using moe::Matrix;
namespace simd = moe::simd;

/// A row per lane: normal draws of several sizes, with -inf here and there, one row of nothing else, one of equal ones.
template <class S>
Matrix<S> rows_of(Index n) {
  constexpr S kMasked = -std::numeric_limits<S>::infinity();
  const moe::RandomField random(moe::Purpose::User, n);
  Matrix<S> rows(simd::kLanes<S>, n);
  for (Index r = 0; r < rows.rows(); ++r)
    for (Index i = 0; i < n; ++i) {
      rows(r, i) = static_cast<S>(static_cast<double>(1 + 40 * r) * random.normal(r, i));
      if (random.below(8, r, i) == 0) rows(r, i) = kMasked;
    }
  rows.row(0).setConstant(S{-7});
  rows.row(1).setConstant(kMasked);
  return rows;
}

}  // namespace

TEMPLATE_TEST_CASE("softmax_lanes: every lane has the bits of softmax", "[numeric][property]", float, double) {
  using V = simd::Batch<TestType>;
  for (Index n = 1; n <= 40; ++n) {
    auto rows = rows_of<TestType>(n);
    const Matrix<TestType> columns = rows.transpose();
    std::vector<V> lanes;
    for (Index i = 0; i < n; ++i) lanes.push_back(simd::load(columns.row(i).data()));
    moe::detail::softmax_lanes<TestType>(lanes);
    for (Index r = 0; r < rows.rows(); ++r) moe::softmax(rows.row(r).data(), n, rows.row(r).data());
    for (Index i = 0; i < n; ++i) {
      Matrix<TestType> actual(1, rows.rows());
      simd::store(actual.data(), lanes[static_cast<std::size_t>(i)]);
      CAPTURE(n, i);
      REQUIRE(test::same_bits(actual, Matrix<TestType>(rows.col(i).transpose())));
    }
  }
}

TEMPLATE_TEST_CASE("softmax_scale: gives a logit the bits that softmax gives it", "[numeric][property]", float,
                   double) {
  for (const Index n : {1, 2, 15, 16, 17, 40, 256}) {
    const auto rows = rows_of<TestType>(n);
    for (Index r = 0; r < rows.rows(); ++r) {
      const TestType* z = rows.row(r).data();
      std::vector<TestType> weights(static_cast<std::size_t>(n));
      moe::softmax(z, n, weights.data());
      const auto scale = moe::detail::softmax_scale(z, n);
      CAPTURE(n, r);
      for (Index i = 0; i < n; ++i) REQUIRE(test::same_bits(scale(z[i]), weights[static_cast<std::size_t>(i)]));
    }
  }
}
