// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/kernel/byte_tiles.hpp"
#include "moe/kernel/grouped_gemm.hpp"
#include "moe/kernel/integer_streams.hpp"
#include "moe/kernel/integer_tile.hpp"

// Products of rows as integers with codes as bytes: a block of a panel is expanded once and stays in L1 while the rows
// pass over it.
namespace moe::inline MOE_ABI::kernel::detail {

/// Most rows whose sums wait between two blocks of a panel: 48 KiB of stack in AVX-512.
inline constexpr Index kMostDotRows = 384;

/// From so many rows on tiles of registers are faster: they take the time of 16, but for sums. 8 rows take 1.3 times as
/// long as without them, 16 half as long (int4 in groups of 32, Xeon with AMX, 2026-12-01).
inline constexpr Index kLeastTileRows = 11;

/// All rows by some panels: add(sum, first row, count, block, lines, sums) adds a block of codes in form kForm, of
/// which the first sum of integers is `sum`, and fetches lines.
template <class Codes, ByteForm kForm, class Add>
void multiply_blocks_of_bytes(const ConvertedRows& rows, const PanelRange<float>& panels, Index unit, const Add& add,
                              const FinishRef<float>& finish) {
  const auto& of = *static_cast<const CodePanels*>(panels.of.matrix);
  alignas(kCacheLine) float sums[kMostDotRows * kCodeWidth];
  IntegerBlock block;
  const Index num_rows = rows.end - rows.begin, parts = (num_rows + kMostDotRows - 1) / kMostDotRows;
  const CodeFetch fetch = num_rows < kLeastTileRows ? CodeFetch::AsExpanded : CodeFetch::ByTiles;
  for (Index part = 0; part < parts; ++part) {
    const Index first = num_rows * part / parts, count = num_rows * (part + 1) / parts - first;
    for (Index p = panels.first; p < panels.last; ++p) {
      std::fill_n(sums, count * kCodeWidth, 0.0f);
      for (Index input = 0, sum = 0; input < of.inputs; sum += block.num_sums) {
        input = expand_codes<Codes, kForm>(of, p, input, unit, fetch, block);
        const Index bytes = fetch == CodeFetch::ByTiles ? block.codes_end - block.codes_begin : 0;
        add(sum, first, count, block,
            LinesAhead{reinterpret_cast<std::uintptr_t>(block.codes_end), (bytes + kLine - 1) / kLine}, sums);
      }
      for (Index r = 0; r < count; r += kTileRows)
        finish(rows.begin + first + r, static_cast<int>(std::min<Index>(kTileRows, count - r)), p,
               sums + r * kCodeWidth);
    }
  }
}

/// ConvertedProduct::multiply of weights that are read as Codes.
template <class Codes>
void multiply_integers(const ConvertedRows& converted, const PanelRange<float>& panels,
                       const FinishRef<float>& finish) {
  const auto& of = *static_cast<const CodePanels*>(panels.of.matrix);
  const IntegerRows rows(of, converted.end - converted.begin, const_cast<std::byte*>(converted.data));
  if (rows.count == 0) return;
  if (rows.count <= kMostStreamedDotRows)
    return multiply_integer_streams<Codes>(rows, converted.begin, panels, finish);
  if constexpr (simd::kMultipliesByteTiles)
    if (rows.count >= kLeastTileRows && simd::may_use_byte_tiles()) {
      const Index unit = std::min(kMostTileWords, 2 * ((inputs_per_sum(of) + 7) / 8));
      const simd::ByteTiles tiles(unit);
      return multiply_blocks_of_bytes<Codes, ByteForm::Value>(
          converted, panels, unit,
          [&](Index sum, Index first, Index count, const IntegerBlock& block, const LinesAhead& lines, float* sums) {
            add_block_by_tiles({rows, first, sum}, count, {block, unit, lines}, sums);
          },
          finish);
    }
  multiply_blocks_of_bytes<Codes, ByteForm::Offset>(
      converted, panels, 2,
      [&](Index sum, Index first, Index count, const IntegerBlock& block, const LinesAhead& lines, float* sums) {
        add_block<Codes::kFirst>({rows, first, sum}, count, block, lines, sums);
      },
      finish);
}

}  // namespace moe::inline MOE_ABI::kernel::detail
