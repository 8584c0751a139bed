// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/core/unroll.hpp"
#include "moe/gaussian/pass/row_blocks.hpp"

// Sums over the rows of a block: (weight of a row) * (input, or product of two). A column has kBlockRows numbers.
namespace moe::inline MOE_ABI::detail {

using Lanes = simd::Batch<double>;
inline constexpr Index kDoubles = simd::kLanes<double>;
static_assert(kBlockRows % (2 * kDoubles) == 0);

/// sums[w][f] += sum over rows of weights[w] * features[f], each sum in kDoubles parts that are added at the very end.
template <int W, int F>
void add_products_tile(const double* weights, const double* features, Index stride, double* sums) {
  Lanes acc[W][F];
  simd::unroll<W>(
      [&](auto w) { simd::unroll<F>([&](auto f) { acc[w][f] = simd::load(sums + (w * stride + f) * kDoubles); }); });
  for (Index i = 0; i < kBlockRows; i += kDoubles) {
    Lanes x[F];
    simd::unroll<F>([&](auto f) { x[f] = simd::load(features + f * kBlockRows + i); });
    simd::unroll<W>([&](auto w) {
      const Lanes weight = simd::load(weights + w * kBlockRows + i);
      simd::unroll<F>([&](auto f) { acc[w][f] = simd::fma(weight, x[f], acc[w][f]); });
    });
  }
  simd::unroll<W>(
      [&](auto w) { simd::unroll<F>([&](auto f) { simd::store(sums + (w * stride + f) * kDoubles, acc[w][f]); }); });
}

/// weights [num_weights][kBlockRows], features [num_features][kBlockRows], sums [num_weights][stride][kDoubles].
/// Tiles of 3 x 4 accumulators fit 16 registers, 4 x 6 fit 32. Weights are shared out evenly, as 5 = 3 + 2 and not 4 +
/// 1: few accumulators wait for each other.
inline void add_products(const double* weights, Index num_weights, const double* features, Index num_features,
                         Index stride, double* sums) {
  constexpr int kHigh = simd::kRegisters >= 32 ? 4 : 3, kWide = simd::kRegisters >= 32 ? 6 : 4;
  for (Index w = 0, tiles = (num_weights + kHigh - 1) / kHigh; tiles > 0; --tiles) {
    const int high = static_cast<int>((num_weights - w + tiles - 1) / tiles);
    for (Index f = 0; f < num_features; f += kWide) {
      const int wide = static_cast<int>(std::min<Index>(kWide, num_features - f));
      simd::with_constant<kHigh>(high, [&](auto rows) {
        simd::with_constant<kWide>(wide, [&](auto cols) {
          add_products_tile<rows, cols>(weights + w * kBlockRows, features + f * kBlockRows, stride,
                                        sums + (w * stride + f) * kDoubles);
        });
      });
    }
    w += high;
  }
}

/// Number of products x_f x_g with f <= g.
constexpr Index num_pairs(Index count) { return count * (count + 1) / 2; }

/// Place of (f, g), f <= g, among the pairs, sorted by f.
constexpr Index pair_index(Index f, Index g, Index count) { return f * count - f * (f - 1) / 2 + (g - f); }

/// sums[w][(f, g)] += sum over rows of weights[w] x_f x_g for all pairs; sums [num_weights][pairs][kDoubles].
/// The products are made for 32 pairs at a time, in `scratch` [kPairs][kBlockRows], and used by all weights.
class PairProducts {
 public:
  static constexpr Index kPairs = 32;

  PairProducts() : scratch_(kPairs * kBlockRows) {}

  void add(const double* weights, Index num_weights, const double* features, Index num_features, double* sums) {
    const Index pairs = num_pairs(num_features);
    Index f = 0, g = 0;
    for (Index begin = 0; begin < pairs; begin += kPairs) {
      const Index count = std::min(kPairs, pairs - begin);
      for (Index q = 0; q < count; ++q) {
        multiply(features + f * kBlockRows, features + g * kBlockRows, scratch_.data() + q * kBlockRows);
        if (++g == num_features) g = ++f;
      }
      add_products(weights, num_weights, scratch_.data(), count, pairs, sums + begin * kDoubles);
    }
  }

 private:
  static void multiply(const double* a, const double* b, double* out) {
    for (Index i = 0; i < kBlockRows; i += kDoubles) simd::store(out + i, simd::load(a + i) * simd::load(b + i));
  }

  AlignedBuffer<double> scratch_;
};

}  // namespace moe::inline MOE_ABI::detail
