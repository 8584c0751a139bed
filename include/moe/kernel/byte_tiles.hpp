// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "moe/core/simd_amx.hpp"
#include "moe/kernel/integer_codes.hpp"
#include "moe/kernel/integer_tile.hpp"

// Many rows as integers times codes as bytes, by tiles of registers (AMX): the same sums of integers, the same order of
// sums of floats, so the bits of dot_tile.
namespace moe::inline MOE_ABI::kernel::detail {

/// Words of a row of a tile.
inline constexpr Index kMostTileWords = simd::kByteTileBytes / 4;

/// Sums of integers of 16 rows and half a panel.
struct alignas(kCacheLine) TileOfSums {
  std::array<std::int32_t, static_cast<std::size_t>(simd::kByteTileRows* simd::kByteTileRows)> sum;

  std::byte* bytes() { return reinterpret_cast<std::byte*>(sum.data()); }
};

/// to[r] = fma(sums of integers of row r, scale of row r * scale of the weights, to[r]) for Rows rows.
template <int Rows>
[[gnu::always_inline]] inline void add_tile(const TileOfSums& from, const float* of_rows, const float* of_weights,
                                            std::array<simd::Batch<float>, Rows>& to) {
  const simd::Batch<float> weights = simd::load(of_weights);
  const auto* const at = reinterpret_cast<const std::byte*>(from.sum.data());
  simd::unroll<Rows>([&](auto r) {
    const simd::Batch<float> sum = simd::to_floats(simd::load_integers(at + r * simd::kByteTileBytes));
    to[r] = simd::fma(sum, simd::Batch<float>(of_rows[r]) * weights, to[r]);
  });
}

/// What an IntegerTile is multiplied with: a block, of whose sums every `unit` words are a tile.
struct BlockOfTiles {
  const IntegerBlock& block;
  Index unit;
  LinesAhead ahead;

  const std::byte* words(Index sum, Index column) const {
    return block.words + (block.sum[static_cast<std::size_t>(sum)].word * kCodeWidth + column) * 4;
  }
  Index count(Index sum) const {
    return (block.sum[static_cast<std::size_t>(sum + 1)].word - block.sum[static_cast<std::size_t>(sum)].word) / unit;
  }
  Index input(Index sum) const { return block.sum[static_cast<std::size_t>(sum)].input; }
};

/// Short sums: Rows rows by half a panel, whose floats stay in registers. Many sums of integers at a time: what a tile
/// has stored is only read quickly some time later.
template <int Rows>
[[gnu::noinline]] void add_short_sums(const IntegerTile& tile, const BlockOfTiles& of, Index column,
                                      float* sums) noexcept {
  constexpr Index kAtOnce = 8;  // 8 KiB
  std::array<TileOfSums, kAtOnce> waiting;
  std::array<simd::Batch<float>, Rows> total;
  simd::unroll<Rows>([&](auto r) { total[r] = simd::load(sums + r * kCodeWidth); });
  const Index num_sums = of.block.num_sums, stride = tile.rows.stride;
  const std::byte* const row = tile.code(0);
  FetchAhead ahead(of.ahead, num_sums);
  const auto multiply = [&](auto which, Index s, std::byte* to) __attribute__((always_inline)) {
    const std::byte *from = row + of.input(s), *weights = of.words(s, column);
    ahead.fetch_next();
    simd::clear_tile<which>();
    for (Index left = of.count(s); left > 0; --left) {
      simd::load_tile<4 + which % 2>(from, stride);
      simd::load_tile<6 + which % 2>(weights, 4 * kCodeWidth);
      simd::add_tile_products<which, 4 + which % 2, 6 + which % 2>();
      from += 4 * of.unit;
      weights += of.unit * (4 * kCodeWidth);
    }
    simd::store_tile<which>(to, simd::kByteTileBytes);
  };
  for (Index first = 0; first < num_sums; first += kAtOnce) {
    const Index count = std::min(kAtOnce, num_sums - first);
    std::byte* to = waiting[0].bytes();
    for (Index s = 0; s < count; s += 4)
      simd::unroll<4>([&](auto i) {
        if (s + i < count) multiply(i, first + s + i, to);
        to += sizeof(TileOfSums);
      });
    for (Index s = 0; s < count; ++s)
      add_tile<Rows>(waiting[static_cast<std::size_t>(s)], tile.scale(first + s),
                     of.block.scale + (first + s) * kCodeWidth + column, total);
  }
  simd::unroll<Rows>([&](auto r) { simd::store(sums + r * kCodeWidth, total[r]); });
}

/// Long sums: 32 rows by a panel, four chains of products at a time. to[rows / 16][half]
inline void multiply_long_sum(const IntegerTile& tile, const BlockOfTiles& of, Index s, std::array<TileOfSums, 4>& to) {
  const Index stride = tile.rows.stride;
  const std::byte *from = tile.code(0) + of.input(s), *weights = of.words(s, 0);
  simd::unroll<4>([](auto i) { simd::clear_tile<i>(); });
  const Index count = of.count(s);
  FetchAhead ahead(of.ahead, count);
  for (Index i = 0; i < count; ++i) {
    ahead.fetch_next();
    simd::load_tile<4>(from, stride);
    simd::load_tile<6>(weights, 4 * kCodeWidth);
    simd::load_tile<7>(weights + 4 * kCodeLanes, 4 * kCodeWidth);
    simd::add_tile_products<0, 4, 6>();
    simd::add_tile_products<1, 4, 7>();
    simd::load_tile<5>(from + simd::kByteTileRows * stride, stride);
    simd::add_tile_products<2, 5, 6>();
    simd::add_tile_products<3, 5, 7>();
    from += 4 * of.unit;
    weights += of.unit * (4 * kCodeWidth);
  }
  simd::unroll<4>([&](auto i) { simd::store_tile<i>(to[static_cast<std::size_t>(i)].bytes(), simd::kByteTileBytes); });
}

/// sums[r][c] += a sum of integers, of Rows rows and half a panel.
template <int Rows>
[[gnu::noinline]] void add_long_sum(const TileOfSums& from, const float* of_rows, const float* of_weights,
                                    float* sums) noexcept {
  std::array<simd::Batch<float>, Rows> total;
  simd::unroll<Rows>([&](auto r) { total[r] = simd::load(sums + r * kCodeWidth); });
  add_tile<Rows>(from, of_rows, of_weights, total);
  simd::unroll<Rows>([&](auto r) { simd::store(sums + r * kCodeWidth, total[r]); });
}

/// Rows of `tile` up to `count` of them times a block. Rows behind them are read, and what comes of it is not used.
inline void add_block_by_tiles(const IntegerTile& tile, Index count, const BlockOfTiles& of, float* sums) {
  constexpr Index kRows = simd::kByteTileRows, kLong = 3;
  const Index num_sums = of.block.num_sums;
  if (num_sums == 0) return;
  const Index passes = (count + 2 * kRows - 1) / (2 * kRows);
  std::array<TileOfSums, 4> waiting;
  for (Index pass = 0; pass < passes; ++pass) {
    const LinesAhead ahead = of.ahead.part(pass, passes);
    const auto each = [&](const auto& add) {  // of two by two parts
      for (Index part = 0; part < 4; ++part) {
        const Index row = (2 * pass + part / 2) * kRows, column = part % 2 * kCodeLanes;
        if (row < count)
          simd::with_constant<kRows>(static_cast<int>(std::min(kRows, count - row)), [&](auto rows) {
            add(rows, part, row, column, sums + row * kCodeWidth + column);
          });
      }
    };
    if (of.count(0) < kLong) {
      each([&](auto rows, Index part, Index row, Index column, float* to) {
        add_short_sums<rows>({tile.rows, tile.first + row, tile.sum}, {of.block, of.unit, ahead.part(part, 4)}, column,
                             to);
      });
      continue;
    }
    for (Index s = 0; s < num_sums; ++s) {
      multiply_long_sum({tile.rows, tile.first + 2 * pass * kRows, tile.sum},
                        {of.block, of.unit, ahead.part(s, num_sums)}, s, waiting);
      each([&](auto rows, Index part, Index row, Index column, float* to) {
        add_long_sum<rows>(waiting[static_cast<std::size_t>(part)], tile.scale(s) + row,
                           of.block.scale + s * kCodeWidth + column, to);
      });
    }
  }
}

}  // namespace moe::inline MOE_ABI::kernel::detail
