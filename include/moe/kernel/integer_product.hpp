// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/kernel/grouped_gemm.hpp"
#include "moe/kernel/integer_codes.hpp"

// Products of rows as integers with codes as bytes: a block of a panel is expanded once and stays in L1 while the rows
// pass over it.
namespace moe::inline MOE_ABI::kernel::detail {

/// Rows of a tile: 12 x 2 sums, two registers of weights.
inline constexpr int kDotRows = simd::kRegisters == 32 ? 12 : 4;
/// Most rows whose sums wait between two blocks of a panel: 48 KiB of stack in AVX-512.
inline constexpr Index kMostDotRows = 384;

/// Some of the rows, and the first sum of integers of a block.
struct IntegerTile {
  const IntegerRows& rows;
  Index first, sum;

  const std::byte* code(Index r) const { return rows.code + (first + r) * rows.stride; }
  /// Of sum s, of the rows one after the other.
  const float* scale(Index s) const { return rows.scale + (sum + s) * rows.count + first; }
  const std::int32_t* start(Index s) const { return rows.start + (sum + s) * rows.count + first; }
};

/// sums[r][c] += sum over sums of integers, which become floats, times their scales.
template <simd::FirstFactor kFirst, int Rows>
[[gnu::noinline]] void dot_tile(const IntegerTile& tile, const IntegerBlock& block, float* sums) noexcept {
  using Batch = simd::Batch<float>;
  const std::byte* code[Rows];
  simd::unroll<Rows>([&](auto r) { code[r] = tile.code(r) + block.sum[0].input; });
  const std::byte* at = block.words;
  Index offset = 0;
  for (Index s = 0; s < block.num_sums; ++s) {
    simd::Integers sum[Rows][2];
    const std::int32_t* const start = tile.start(s);
    simd::unroll<Rows>([&](auto r) { sum[r][0] = sum[r][1] = simd::integers(start[r]); });
    const auto& ends = block.sum[static_cast<std::size_t>(s + 1)];
    for (const std::byte* const end = block.words + ends.word * (4 * kCodeWidth); at < end;
         at += 4 * kCodeWidth, offset += 4) {
      const simd::Integers low = simd::load_integers(at), high = simd::load_integers(at + 4 * kCodeLanes);
      simd::unroll<Rows>([&](auto r) {
        std::int32_t word;
        std::memcpy(&word, code[r] + offset, sizeof word);
        sum[r][0] = simd::add_products<kFirst>(sum[r][0], low, word);
        sum[r][1] = simd::add_products<kFirst>(sum[r][1], high, word);
      });
    }
    const float *const of_weights = block.scale + s * kCodeWidth, *const of_rows = tile.scale(s);
    const Batch low = simd::load(of_weights), high = simd::load(of_weights + kCodeLanes);
    simd::unroll<Rows>([&](auto r) {
      const Batch of_row(of_rows[r]);
      float* const to = sums + r * kCodeWidth;
      simd::store(to, simd::fma(simd::to_floats(sum[r][0]), of_row * low, simd::load(to)));
      simd::store(to + kCodeLanes, simd::fma(simd::to_floats(sum[r][1]), of_row * high, simd::load(to + kCodeLanes)));
    });
  }
}

/// Rows of `tile` up to `count` of them times a block.
template <simd::FirstFactor kFirst>
void add_block(const IntegerTile& tile, Index count, const IntegerBlock& block, float* sums) {
  const Index tiles = (count + kDotRows - 1) / kDotRows;
  for (Index t = 0; t < tiles; ++t) {
    const Index first = t * (count / tiles) + std::min(t, count % tiles);
    const Index height = count / tiles + (t < count % tiles ? 1 : 0);
    simd::with_constant<kDotRows>(static_cast<int>(height), [&](auto height_of_tile) {
      dot_tile<kFirst, height_of_tile>({tile.rows, tile.first + first, tile.sum}, block, sums + first * kCodeWidth);
    });
  }
}

/// ConvertedProduct::multiply of weights that are read as Codes.
template <class Codes>
void multiply_integers(const ConvertedRows& converted, const PanelRange<float>& panels,
                       const FinishRef<float>& finish) {
  const auto& of = *static_cast<const CodePanels*>(panels.of.matrix);
  const Index num_rows = converted.end - converted.begin;
  const IntegerRows rows(of, num_rows, const_cast<std::byte*>(converted.data));
  alignas(kCacheLine) float sums[kMostDotRows * kCodeWidth];
  IntegerBlock block;
  const Index parts = (num_rows + kMostDotRows - 1) / kMostDotRows;
  for (Index part = 0; part < parts; ++part) {
    const Index first = num_rows * part / parts, count = num_rows * (part + 1) / parts - first;
    for (Index p = panels.first; p < panels.last; ++p) {
      std::fill_n(sums, count * kCodeWidth, 0.0f);
      for (Index input = 0, sum = 0; input < of.inputs; sum += block.num_sums) {
        input = expand_codes<Codes, ByteForm::Offset>(of, p, input, 2, block);
        add_block<Codes::kFirst>({rows, first, sum}, count, block, sums);
      }
      for (Index r = 0; r < count; r += kTileRows)
        finish(converted.begin + first + r, static_cast<int>(std::min<Index>(kTileRows, count - r)), p,
               sums + r * kCodeWidth);
    }
  }
}

}  // namespace moe::inline MOE_ABI::kernel::detail
