// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "moe/core/simd_dot.hpp"
#include "moe/kernel/code_product.hpp"
#include "moe/kernel/grouped_gemm.hpp"

// Products of rows that are rounded to BF16 with weights that are.
namespace moe::inline MOE_ABI::kernel::detail {

/// Bytes of a row: an odd number of cache lines.
inline Index bytes_of_bfloats(const void* matrix) {
  return ((2 * static_cast<const CodePanels*>(matrix)->inputs + kLine - 1) / kLine | 1) * kLine;
}

/// ConvertedProduct::convert: pairs, the last one with a zero.
inline void convert_to_bfloats(const void* matrix, const float* row, Index r, Index, std::byte* memory) {
  const Index inputs = static_cast<const CodePanels*>(matrix)->inputs;
  auto* const to = reinterpret_cast<std::uint16_t*>(memory + r * bytes_of_bfloats(matrix));
  simd::store_bfloats(row, inputs, to);
  if (inputs % 2 != 0) to[inputs] = 0;
}

/// sums[r][c] = sum over pairs of inputs, in ascending order. Fetches ahead as multiply_tile: a word of two codes is as
/// wide as a float.
template <int Rows>
[[gnu::noinline]] void bfloat_tile(const std::byte* rows, Index stride, Index words, const std::byte* panel,
                                   ReadAhead<float> ahead, float* sums) noexcept {
  using Batch = simd::Batch<float>;
  Batch sum[Rows][2];
  simd::unroll<Rows>([&](auto r) { sum[r][0] = sum[r][1] = Batch(0.0f); });
  const std::byte* row[Rows];
  simd::unroll<Rows>([&](auto r) { row[r] = rows + r * stride; });
  for (Index begin = 0; begin < words; begin += ReadAhead<float>::kStepsPerBlock) {
    ahead.advance();
    const Index end = std::min(words, begin + ReadAhead<float>::kStepsPerBlock);
    for (Index w = begin; w < end; ++w) {
      const std::byte* const at = panel + w * (4 * kCodeWidth);
      simd::unroll<Rows>([&](auto r) {
        std::uint32_t pair;
        std::memcpy(&pair, row[r] + 4 * w, sizeof pair);
        sum[r][0] = simd::add_bfloat_products(sum[r][0], at, pair);
        sum[r][1] = simd::add_bfloat_products(sum[r][1], at + 4 * kCodeLanes, pair);
      });
    }
  }
  simd::unroll<Rows>([&](auto r) {
    simd::store(sums + r * kCodeWidth, sum[r][0]);
    simd::store(sums + r * kCodeWidth + kCodeLanes, sum[r][1]);
  });
}

/// ConvertedProduct::multiply
inline void multiply_bfloats(const ConvertedRows& rows, const PanelRange<float>& panels,
                             const FinishRef<float>& finish) {
  if (rows.begin == rows.end || panels.first == panels.last) return;
  const auto& of = *static_cast<const CodePanels*>(panels.of.matrix);
  alignas(kCacheLine) float sums[kTileRows * kCodeWidth];
  const Index stride = bytes_of_bfloats(&of), words = (of.inputs + 1) / 2;
  const Tiles tiles(0, rows.end - rows.begin);
  const auto words_of = [&](Index p) { return reinterpret_cast<const float*>(of.panel(p)); };
  const float* const behind = words_of(panels.last - 1) + words * kCodeWidth;
  for (Index p = panels.first; p < panels.last; ++p) {
    const PanelPart<float> part = part_in_memory(tiles, words_of(p), 0, words, behind);
    for (Index t = 0; t < tiles.count(); ++t) {
      simd::with_constant<kTileRows>(tiles.height(t), [&](auto height) {
        bfloat_tile<height>(rows.data + tiles.begin(t) * stride, stride, words, of.panel(p), read_ahead(tiles, t, part),
                            sums);
      });
      finish(rows.begin + tiles.begin(t), tiles.height(t), p, sums);
    }
  }
}

}  // namespace moe::inline MOE_ABI::kernel::detail
