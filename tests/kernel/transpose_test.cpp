// SPDX-License-Identifier: MIT
#include "moe/kernel/transpose.hpp"

#include "catch.hpp"
#include "matrices.hpp"

using moe::Index;

TEMPLATE_TEST_CASE("transpose: swaps rows and columns, at any distance of rows", "[kernel]", float, double) {
  using S = TestType;
  for (const Index size : {2 * moe::simd::kLanes<S>, 4 * moe::simd::kLanes<S>})
    for (const Index gap : {0, 3}) {
      const auto from = test::random_matrix<S>(size, size + gap);
      auto to = test::nan_matrix<S>(size, size + 2 * gap);
      moe::kernel::transpose(size, from.data(), size + gap, to.data(), size + 2 * gap);
      CAPTURE(size, gap);
      CHECK(test::same_bits(to.leftCols(size), from.leftCols(size).transpose()));
      for (Index r = 0; r < size; ++r)
        for (Index c = size; c < to.cols(); ++c) CHECK(std::isnan(to(r, c)));
    }
}
