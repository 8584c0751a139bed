// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/core/simd.hpp"

// The innermost loops: register tiles of the three products that a layer needs. Every product starts at +0 and does one
// fused multiply-add per step, in ascending order, in one accumulator; what a tile computes for one row and one column
// is therefore the same whatever else is in the tile. The loops over accumulators are fully unrolled through fold
// expressions: left as loops, g++ 12 keeps the accumulators on the stack and runs at a third of the speed.
namespace moe::inline MOE_ABI::kernel {

/// Rows of a tile. 16 registers hold 6 x 2 accumulators, one panel row (2) and one broadcast (1); with 32 registers
/// 12 independent accumulators still cover latency x throughput of two FMA ports (4 x 2), so one height serves all.
inline constexpr int kTileRows = 6;

/// Most panels that one tile walks side by side. A single stream of weights does not saturate the memory bus: with few
/// rows (decode) several panels are read at once.
inline constexpr int kTilePanels = 4;

/// Panels walked at once for a number of rows: 8 accumulators or fewer, except for a full tile.
constexpr int panels_at_once(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

/// Calls f(std::integral_constant<int, i>) for i in [0, N), unrolled.
template <int N, class F>
constexpr void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
  (std::make_integer_sequence<int, N>{});
}

/// Calls f(std::integral_constant<int, n>) for the run-time n in [1, Max].
template <int Max, class F>
void with_constant(int n, F&& f) {
  unroll<Max>([&](auto i) {
    if (n == i + 1) f(std::integral_constant<int, i + 1>{});
  });
}

/// sums[r][c] = sum_k rows[r][k] * panels[k][c] for Rows rows and Panels panels of two registers each, `stride` apart.
/// sums is [Rows, Panels * 2 * lanes], contiguous, aligned.
template <int Rows, int Panels, class S>
void multiply_tile(const S* const* rows, const S* panel, Index stride, Index depth, S* sums) noexcept {
  using Batch = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = 2 * kLanes;
  constexpr int kColumns = 2 * Panels;
  Batch sum[Rows][kColumns];
  unroll<Rows>([&](auto r) { unroll<kColumns>([&](auto c) { sum[r][c] = Batch(S{0}); }); });
  for (Index k = 0; k < depth; ++k) {
    Batch weight[kColumns];
    unroll<kColumns>([&](auto c) { weight[c] = simd::load(panel + c / 2 * stride + k * kWidth + c % 2 * kLanes); });
    unroll<Rows>([&](auto r) {
      const Batch value(rows[r][k]);
      unroll<kColumns>([&](auto c) { sum[r][c] = simd::fma(value, weight[c], sum[r][c]); });
    });
  }
  unroll<Rows>([&](auto r) {
    unroll<kColumns>([&](auto c) { simd::store(sums + (r * kColumns + c) * kLanes, sum[r][c]); });
  });
}

/// out[r][i] = sum_n douts[r][n] * W[n, i] for Inputs consecutive inputs: row dot products over all panels, one vector
/// accumulator each, ascending panels, then the one reduction tree. `panel` points at the first of the inputs.
template <int Rows, int Inputs, class S>
void transposed_tile(const S* const* douts, const S* panel, Index stride, Index panels, S (*out)[Inputs]) noexcept {
  using Batch = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = 2 * kLanes;
  Batch sum[Rows][Inputs];
  unroll<Rows>([&](auto r) { unroll<Inputs>([&](auto i) { sum[r][i] = Batch(S{0}); }); });
  for (Index half = 0; half < 2 * panels; ++half) {
    const S* weights = panel + half / 2 * stride + half % 2 * kLanes;
    Batch weight[Inputs];
    unroll<Inputs>([&](auto i) { weight[i] = simd::load(weights + i * kWidth); });
    unroll<Rows>([&](auto r) {
      const Batch value = simd::load(douts[r] + half * kLanes);
      unroll<Inputs>([&](auto i) { sum[r][i] = simd::fma(value, weight[i], sum[r][i]); });
    });
  }
  unroll<Rows>([&](auto r) { unroll<Inputs>([&](auto i) { out[r][i] = simd::reduce_add(sum[r][i]); }); });
}

/// gradient[i][c] += sum_r row(r)[i] * dout(r)[c] for Inputs consecutive inputs and the two registers of one panel,
/// ascending r. row(r) points at the first of the inputs, dout(r) at the panel's first column.
template <int Inputs, class S, class Row, class Dout>
void outer_product_tile(Index num_rows, const Row& row, const Dout& dout, S* gradient) noexcept {
  using Batch = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = 2 * kLanes;
  Batch sum[Inputs][2];
  unroll<Inputs>([&](auto i) {
    sum[i][0] = simd::load(gradient + i * kWidth);
    sum[i][1] = simd::load(gradient + i * kWidth + kLanes);
  });
  for (Index r = 0; r < num_rows; ++r) {
    const S* values = row(r);
    const S* columns = dout(r);
    const Batch low = simd::load(columns), high = simd::load(columns + kLanes);
    unroll<Inputs>([&](auto i) {
      const Batch value(values[i]);
      sum[i][0] = simd::fma(value, low, sum[i][0]);
      sum[i][1] = simd::fma(value, high, sum[i][1]);
    });
  }
  unroll<Inputs>([&](auto i) {
    simd::store(gradient + i * kWidth, sum[i][0]);
    simd::store(gradient + i * kWidth + kLanes, sum[i][1]);
  });
}

}  // namespace moe::inline MOE_ABI::kernel
