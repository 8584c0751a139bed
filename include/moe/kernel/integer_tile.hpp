// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "moe/core/unroll.hpp"
#include "moe/kernel/integer_codes.hpp"

// Rows as integers times codes as bytes, four inputs at a time.
namespace moe::inline MOE_ABI::kernel::detail {

/// Rows of a tile: 12 x 2 sums, two registers of weights.
inline constexpr int kDotRows = simd::kRegisters == 32 ? 12 : 4;
/// Some of the rows, and the first sum of integers of a block.
struct IntegerTile {
  const IntegerRows& rows;
  Index first, sum;

  const std::byte* code(Index r) const { return rows.code + (first + r) * rows.stride; }
  /// Of sum s, of the rows one after the other.
  const float* scale(Index s) const { return rows.scale + (sum + s) * rows.count + first; }
  const std::int32_t* start(Index s) const { return rows.start + (sum + s) * rows.count + first; }
};

/// Lines of the codes of the next block, which are fetched while this one is multiplied: read when they are expanded,
/// they would be waited for.
struct LinesAhead {
  std::uintptr_t at;  ///< nothing may lie there
  Index count;

  /// The i-th of n parts.
  LinesAhead part(Index i, Index n) const {
    const Index begin = count * i / n;
    return {at + static_cast<std::uintptr_t>(begin * kLine), count * (i + 1) / n - begin};
  }
};

/// The same in `passes` steps.
class FetchAhead {
 public:
  FetchAhead(const LinesAhead& of, Index passes) : left_(of), lines_((of.count + passes - 1) / passes) {}

  void fetch_next() {
    const Index lines = std::min(lines_, left_.count);
    left_.count -= lines;
    for (Index line = 0; line < lines; ++line, left_.at += kCacheLine)
      __builtin_prefetch(reinterpret_cast<const void*>(left_.at), 0, 2);
  }

 private:
  LinesAhead left_;
  Index lines_;
};

/// Words between two fetches.
inline constexpr Index kDotWordsPerFetch = 8;

/// sums[r][c] += sum over sums of integers, which become floats, times their scales.
template <simd::FirstFactor kFirst, int Rows>
[[gnu::noinline]] void dot_tile(const IntegerTile& tile, const IntegerBlock& block, FetchAhead ahead,
                                float* sums) noexcept {
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
    for (const std::byte* const end = block.words + ends.word * (4 * kCodeWidth); at < end;) {
      ahead.fetch_next();
      for (const std::byte* const stop = std::min(end, at + kDotWordsPerFetch * 4 * kCodeWidth); at < stop;
           at += 4 * kCodeWidth, offset += 4) {
        const simd::Integers low = simd::load_integers(at), high = simd::load_integers(at + 4 * kCodeLanes);
        simd::unroll<Rows>([&](auto r) {
          std::int32_t word;
          std::memcpy(&word, code[r] + offset, sizeof word);
          sum[r][0] = simd::add_products<kFirst>(sum[r][0], low, word);
          sum[r][1] = simd::add_products<kFirst>(sum[r][1], high, word);
        });
      }
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
void add_block(const IntegerTile& tile, Index count, const IntegerBlock& block, const LinesAhead& lines, float* sums) {
  const Index tiles = (count + kDotRows - 1) / kDotRows;
  const Index words = block.sum[static_cast<std::size_t>(block.num_sums)].word;
  const Index fetches = std::max<Index>(1, (words + kDotWordsPerFetch - 1) / kDotWordsPerFetch);
  for (Index t = 0; t < tiles; ++t) {
    const Index first = t * (count / tiles) + std::min(t, count % tiles);
    const Index height = count / tiles + (t < count % tiles ? 1 : 0);
    simd::with_constant<kDotRows>(static_cast<int>(height), [&](auto height_of_tile) {
      dot_tile<kFirst, height_of_tile>({tile.rows, tile.first + first, tile.sum}, block,
                                       {lines.part(t, tiles), fetches}, sums + first * kCodeWidth);
    });
  }
}

}  // namespace moe::inline MOE_ABI::kernel::detail
