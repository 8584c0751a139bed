// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/core/aligned.hpp"
#include "moe/core/simd.hpp"
#include "moe/core/unroll.hpp"
#include "moe/kernel/panel_source.hpp"

// The innermost loops: register tiles of the products that a layer needs. Every product starts at +0 and does one fused
// multiply-add per step, in ascending order, in one accumulator; what a tile computes for one row and one column is
// therefore the same whatever else is in the tile. The loops over accumulators are fully unrolled through fold
// expressions: left as loops, g++ 12 keeps the accumulators on the stack and runs at a third of the speed. Tiles are
// not inlined, so that their registers are nobody else's business.
namespace moe::inline MOE_ABI::kernel {

/// Rows of a tile. 16 registers hold 6 x 2 accumulators, one panel row (2) and a broadcast, which leaves 1; 32 hold
/// 12 x 2 likewise, which leaves 5. Two FMA ports of latency 4 need 8 accumulators in flight, so tiles of 4 rows and
/// more run at full speed; the more rows, the less often the panel is read from L2.
#if defined(__aarch64__)  // g++ 12 moves loads up before it assigns registers: with 11 x 2 accumulators it spills
inline constexpr int kTileRows = 10;
#else
inline constexpr int kTileRows = simd::kRegisters == 32 ? 12 : 6;
#endif

/// Panels that a tile of few rows walks side by side: as many as there are accumulators for, at most 4. One stream of
/// weights does not saturate the memory bus (0.87 of the read bandwidth with one panel, 0.99 with four; AVX2, Zen 5,
/// 2026-11-25), and a row alone does not fill the FMA pipeline (2 accumulators of the 8).
constexpr int streams_at_once(int rows) { return std::clamp(kTileRows / rows, 1, 4); }

using simd::unroll;
using simd::with_constant;

/// rows[r][c] += row[c] for `count` rows of a panel: a bias.
template <class S>
void add_to_rows(const S* row, Index count, S* rows) {
  const auto low = simd::load(row), high = simd::load(row + simd::kLanes<S>);
  for (Index r = 0; r < count; ++r) {
    S* to = rows + r * kPanelWidth<S>;
    simd::store(to, simd::load(to) + low);
    simd::store(to + simd::kLanes<S>, simd::load(to + simd::kLanes<S>) + high);
  }
}

/// Cache lines that a tile fetches on the side while it computes: `next` moves towards `end` by `per_block` scalars
/// every kStepsPerBlock steps. Fetching at the pace of the arithmetic hides the memory almost entirely: with 16 rows a
/// product over cold weights runs at 91% of the FMA peak instead of 58%, with 64 at 93% instead of 84% (AVX2, Zen 5,
/// 2026-11-25).
template <class S>
struct ReadAhead {
  const S* next = nullptr;
  const S* end = nullptr;
  Index per_block = 0;

  static constexpr Index kStepsPerBlock = 32;
  static constexpr Index kLine = static_cast<Index>(kCacheLine / sizeof(S));

  void advance() {
    const Index most = end - next;  // compared as counts: a pointer behind the end of its array is undefined
    const Index count = std::min(most, per_block);
    for (Index i = 0; i < count; i += kLine) __builtin_prefetch(next + i);
    if (count > 0) next += count;
  }
};

/// sums[r][c] = sum_k rows[r][k] * panel[k][c] for Rows rows and one panel. sums is [Rows, 2 * lanes], contiguous and
/// aligned; if Continues, the chains go on from what it holds.
template <int Rows, bool Continues, class S>
[[gnu::noinline]] void multiply_tile(const S* const* rows, const S* panel, Index depth, ReadAhead<S> ahead,
                                     S* sums) noexcept {
  using Batch = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = kPanelWidth<S>;
  Batch sum[Rows][2];
  unroll<Rows>([&](auto r) {
    unroll<2>([&](auto c) { sum[r][c] = Continues ? simd::load(sums + r * kWidth + c * kLanes) : Batch(S{0}); });
  });
  for (Index begin = 0; begin < depth; begin += ReadAhead<S>::kStepsPerBlock) {
    ahead.advance();
    const Index end = std::min(depth, begin + ReadAhead<S>::kStepsPerBlock);
    for (Index k = begin; k < end; ++k) {
      const Batch low = simd::load(panel + k * kWidth), high = simd::load(panel + k * kWidth + kLanes);
      unroll<Rows>([&](auto r) {
        const Batch value(rows[r][k]);
        sum[r][0] = simd::fma(value, low, sum[r][0]);
        sum[r][1] = simd::fma(value, high, sum[r][1]);
      });
    }
  }
  unroll<Rows>([&](auto r) { unroll<2>([&](auto c) { simd::store(sums + r * kWidth + c * kLanes, sum[r][c]); }); });
}

/// The same for Streams panels `distance` apart, without reading ahead: each is a long stream of its own, which the
/// hardware prefetches better than any instruction could. sums is [Streams, Rows, 2 * lanes].
template <int Rows, int Streams, class S>
[[gnu::noinline]] void stream_tile(const S* const* rows, const S* panel, Index distance, Index depth,
                                   S* sums) noexcept {
  using Batch = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = kPanelWidth<S>;
  constexpr int kColumns = 2 * Streams;
  Batch sum[Rows][kColumns];
  unroll<Rows>([&](auto r) { unroll<kColumns>([&](auto c) { sum[r][c] = Batch(S{0}); }); });
  for (Index k = 0; k < depth; ++k) {
    Batch value[Rows];
    unroll<Rows>([&](auto r) { value[r] = Batch(rows[r][k]); });
    unroll<kColumns>([&](auto c) {
      const Batch weight = simd::load(panel + c / 2 * distance + k * kWidth + c % 2 * kLanes);
      unroll<Rows>([&](auto r) { sum[r][c] = simd::fma(value[r], weight, sum[r][c]); });
    });
  }
  unroll<Rows>([&](auto r) {
    unroll<kColumns>([&](auto c) { simd::store(sums + (c / 2 * Rows + r) * kWidth + c % 2 * kLanes, sum[r][c]); });
  });
}

/// Rows a stride apart, from the first column that counts on.
template <class S>
struct OuterRows {
  const S* rows;
  Index stride;
};

/// gradient[i][c] += sum_r in.rows[r][i] * dout.rows[r][c] for Inputs consecutive inputs and the two registers of one
/// panel, ascending r. Fetches what lies at `next` for another tile, as gradients do not fit into caches.
template <int Inputs, class S>
[[gnu::noinline]] void outer_product_tile(OuterRows<S> in, OuterRows<S> dout, Index num_rows, S* gradient,
                                          const S* next) noexcept {
  using Batch = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = kPanelWidth<S>;
  for (Index line = 0; line < Inputs * kWidth; line += ReadAhead<S>::kLine) __builtin_prefetch(next + line, 1);
  Batch sum[Inputs][2];
  unroll<Inputs>(
      [&](auto i) { unroll<2>([&](auto c) { sum[i][c] = simd::load(gradient + i * kWidth + c * kLanes); }); });
  for (Index r = 0; r < num_rows; ++r) {
    const S *row = in.rows + r * in.stride, *columns = dout.rows + r * dout.stride;
    const Batch low = simd::load(columns), high = simd::load(columns + kLanes);
    unroll<Inputs>([&](auto i) {
      const Batch value(row[i]);
      sum[i][0] = simd::fma(value, low, sum[i][0]);
      sum[i][1] = simd::fma(value, high, sum[i][1]);
    });
  }
  unroll<Inputs>(
      [&](auto i) { unroll<2>([&](auto c) { simd::store(gradient + i * kWidth + c * kLanes, sum[i][c]); }); });
}

}  // namespace moe::inline MOE_ABI::kernel
