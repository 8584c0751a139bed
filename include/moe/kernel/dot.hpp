// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "moe/core/simd_dot.hpp"
#include "moe/kernel/code_product.hpp"
#include "moe/kernel/grouped_gemm.hpp"
#include "moe/kernel/integer_rows.hpp"

// Products of rows that are rounded, too: to integers of 8 bits, or to BF16. Rows are converted once for all panels of
// a share; codes become bytes, block by block, in L1, and then one tile serves all formats. What is computed for a row
// depends on the row and the weights alone.
namespace moe::inline MOE_ABI {

/// What rows are rounded to before they are multiplied with weights in few bits.
enum class Dot : std::uint8_t {
  Exact,  ///< nothing
  /// Integers of 8 bits, with a scale per row and group of the weights: max |x| / 127. Of Int8, Int4 and E2M1 without
  /// zero points.
  Int8,
  /// BF16, by the instruction VDPBF16PS (AVX512-BF16). Of Bf16.
  Bf16,
};

namespace kernel {

namespace detail {

/// Rows of a tile: 12 x 2 sums, two registers of weights.
inline constexpr int kDotRows = simd::kRegisters == 32 ? 12 : 4;
/// Most bytes of converted rows, which lie on the stack.
inline constexpr Index kDotBytes = Index{64} << 10;
/// Most inputs of a matrix: a row of them has room there.
inline constexpr Index kMostDotInputs = Index{32} << 10;

/// Codes of a format as bytes, four inputs to a lane: value() plus kOffset, times 1 / kFactor.
struct Int8Bytes {
  static constexpr simd::FirstFactor kFirst =
      simd::kMultipliesUnsigned ? simd::FirstFactor::Unsigned : simd::FirstFactor::Signed;
  static constexpr std::int32_t kOffset = simd::kMultipliesUnsigned ? 128 : 0;
  static constexpr float kFactor = 1;
  static constexpr bool kPairsApart = false;

  /// The two words of eight inputs of half a panel.
  static simd::TwoIntegers read(const std::byte* at) {
    const simd::Integers first = simd::words_of_bytes(at, kCodeWidth);
    const simd::Integers second = simd::words_of_bytes(at + 4 * kCodeWidth, kCodeWidth);
    if constexpr (kOffset == 0)
      return {first, second};
    else
      return {simd::plus_128(first), simd::plus_128(second)};
  }
  static constexpr Index kRegisterBytes = kCodeLanes;
};
/// Of codes of 4 bits the even inputs come first.
struct Int4Bytes {
  static constexpr simd::FirstFactor kFirst = simd::FirstFactor::Unsigned;
  static constexpr std::int32_t kOffset = 8;
  static constexpr float kFactor = 1;
  static constexpr bool kPairsApart = true;
  static constexpr std::array<std::uint8_t, 16> kTable{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7};
  static simd::TwoIntegers read(const std::byte* at) { return simd::look_up_bytes(at, kTable); }
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;
};
/// Twice the value: 0, 1, 2, 3, 4, 6, 8, 12.
struct E2M1Bytes {
  static constexpr simd::FirstFactor kFirst = simd::FirstFactor::Unsigned;
  static constexpr std::int32_t kOffset = 12;
  static constexpr float kFactor = 0.5f;
  static constexpr bool kPairsApart = true;
  static constexpr std::array<std::uint8_t, 16> kTable{12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
  static simd::TwoIntegers read(const std::byte* at) { return simd::look_up_bytes(at, kTable); }
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;
};

/// Part of a panel as bytes: kDotInputs inputs at most, in sums of integers.
struct DotBlock {
  alignas(kCacheLine) std::byte words[kDotInputs * kCodeWidth];
  alignas(kCacheLine) float scale[kDotInputs / 8 * kCodeWidth];
  std::array<Index, kDotInputs / 8 + 1> offset;  ///< words before every sum
  Index num_sums = 0;
};

/// Inputs from `begin` on, as many whole sums as there is room for. Returns where they end.
template <class Codes>
Index expand_codes(const CodePanels& of, Index panel, Index begin, DotBlock& to) {
  const Index each = inputs_per_sum(of), bytes = step_bytes(of.format);
  Index input = begin, words = 0, sum = 0;
  while (input < of.inputs) {
    const Index g = input / of.group, first = g * of.group, last = std::min(of.inputs, first + of.group);
    const Index end = std::min(last, input + each), steps = (end - input + 7) / 8;
    if (2 * (words / 2 + steps) > kDotInputs / 4) break;
    const std::byte* const at = of.panel(panel) + g * of.group_bytes;
    const simd::Batch<float> factor(Codes::kFactor);
    for (Index half = 0; half < 2; ++half)
      simd::store(to.scale + sum * kCodeWidth + half * kCodeLanes,
                  load_scales(of.format.scale, at + half * kCodeLanes * of.format.scale_bits() / 8, of.scale) * factor);
    to.offset[static_cast<std::size_t>(sum)] = words;
    const std::byte* codes = at + of.header_bytes + (input - first) / 8 * bytes;
    for (Index step = 0; step < steps; ++step, codes += bytes, words += 2) {
      for (Index line = 0; line < bytes; line += kLine) __builtin_prefetch(ahead_of(codes, line));
      std::byte* const out = to.words + words * (4 * kCodeWidth);
      for (Index half = 0; half < 2; ++half) {
        const simd::TwoIntegers both = Codes::read(codes + half * Codes::kRegisterBytes);
        simd::store_integers(out + half * (4 * kCodeLanes), both.even);
        simd::store_integers(out + 4 * kCodeWidth + half * (4 * kCodeLanes), both.odd);
      }
    }
    ++sum;
    input = end;
  }
  to.offset[static_cast<std::size_t>(sum)] = words;
  to.num_sums = sum;
  return input;
}

/// Rows from `first` on, at word `word` and sum `sum` of each, times a block: sums[r][c] += ...
struct DotTile {
  const IntegerRows& rows;
  Index first, word, sum;
};

template <simd::FirstFactor kFirst, int Rows>
[[gnu::noinline]] void dot_tile(const DotTile& tile, const DotBlock& block, std::int32_t offset, float* sums) noexcept {
  using Batch = simd::Batch<float>;
  const IntegerRows& rows = tile.rows;
  const std::int32_t* code[Rows];
  simd::unroll<Rows>([&](auto r) { code[r] = rows.code + (tile.first + r) * rows.words + tile.word; });
  const float* const scale = rows.scale + tile.first * rows.sums + tile.sum;
  const std::int32_t* const total = rows.total + tile.first * rows.sums + tile.sum;
  for (Index s = 0; s < block.num_sums; ++s) {
    simd::Integers sum[Rows][2];
    simd::unroll<Rows>([&](auto r) {
      sum[r][0] = simd::integers(-offset * total[r * rows.sums + s]);
      sum[r][1] = sum[r][0];
    });
    const Index end = block.offset[static_cast<std::size_t>(s + 1)];
    for (Index w = block.offset[static_cast<std::size_t>(s)]; w < end; ++w) {
      const std::byte* const at = block.words + w * (4 * kCodeWidth);
      const simd::Integers low = simd::load_integers(at), high = simd::load_integers(at + 4 * kCodeLanes);
      simd::unroll<Rows>([&](auto r) {
        sum[r][0] = simd::add_products<kFirst>(sum[r][0], low, code[r][w]);
        sum[r][1] = simd::add_products<kFirst>(sum[r][1], high, code[r][w]);
      });
    }
    const float* const of_weights = block.scale + s * kCodeWidth;
    const Batch low = simd::load(of_weights), high = simd::load(of_weights + kCodeLanes);
    simd::unroll<Rows>([&](auto r) {
      const Batch of_row(scale[r * rows.sums + s]);
      float* const to = sums + r * kCodeWidth;
      simd::store(to, simd::fma(simd::to_floats(sum[r][0]), of_row * low, simd::load(to)));
      simd::store(to + kCodeLanes, simd::fma(simd::to_floats(sum[r][1]), of_row * high, simd::load(to + kCodeLanes)));
    });
  }
}

/// Rows that are converted at a time.
inline Index dot_rows_at_once(Index bytes_of_row) {
  return std::clamp<Index>(kDotBytes / std::max<Index>(1, bytes_of_row), 1, 4 * kDotRows);
}

/// PanelDecoder::product of Dot::Int8.
template <class Codes>
void multiply_integers(const RowSource<float>& in, Index begin, Index end, const PanelRange<float>& panels,
                       const FinishRef<float>& finish) {
  const auto& of = *static_cast<const CodePanels*>(panels.of.matrix);
  alignas(kCacheLine) std::byte memory[kDotBytes];
  alignas(kCacheLine) float sums[4 * kDotRows * kCodeWidth];
  DotBlock block;
  const Index at_once = dot_rows_at_once(IntegerRows::bytes_of(of));
  const Index blocks = (end - begin + at_once - 1) / at_once, size = (end - begin + blocks - 1) / blocks;
  IntegerRows rows{.words = IntegerRows::words_of(of.inputs), .sums = IntegerRows::sums_of(of)};
  auto* const code = reinterpret_cast<std::int32_t*>(memory);
  auto* const scale = reinterpret_cast<float*>(code + size * rows.words);
  auto* const total = reinterpret_cast<std::int32_t*>(scale + size * rows.sums);
  rows.code = code, rows.scale = scale, rows.total = total;
  for (Index row = begin; row < end; row += size) {
    const Index count = std::min(size, end - row);
    for (Index r = 0; r < count; ++r)
      convert_row<Codes::kPairsApart>(of, in.row(row + r), reinterpret_cast<std::int8_t*>(code + r * rows.words),
                                      scale + r * rows.sums, total + r * rows.sums);
    const Index tiles = (count + kDotRows - 1) / kDotRows;
    for (Index p = panels.first; p < panels.last; ++p) {
      std::fill_n(sums, count * kCodeWidth, 0.0f);
      Index sum = 0, word = 0;
      for (Index input = 0; input < of.inputs;) {
        input = expand_codes<Codes>(of, p, input, block);
        for (Index t = 0; t < tiles; ++t) {
          const Index first = t * (count / tiles) + std::min(t, count % tiles);
          const Index height = count / tiles + (t < count % tiles ? 1 : 0);
          simd::with_constant<kDotRows>(static_cast<int>(height), [&](auto height_of_tile) {
            dot_tile<Codes::kFirst, height_of_tile>({rows, first, word, sum}, block, Codes::kOffset,
                                                    sums + first * kCodeWidth);
          });
        }
        sum += block.num_sums;
        word += block.offset[static_cast<std::size_t>(block.num_sums)];
      }
      for (Index r = 0; r < count; r += kTileRows)
        finish(row + r, static_cast<int>(std::min<Index>(kTileRows, count - r)), p, sums + r * kCodeWidth);
    }
  }
}

/// sums[r][c] = sum over pairs of inputs, in ascending order.
template <int Rows>
[[gnu::noinline]] void bfloat_tile(const std::uint32_t* rows, Index words, const std::byte* panel,
                                   float* sums) noexcept {
  using Batch = simd::Batch<float>;
  Batch sum[Rows][2];
  simd::unroll<Rows>([&](auto r) { sum[r][0] = sum[r][1] = Batch(0.0f); });
  for (Index w = 0; w < words; ++w) {
    const std::byte* const at = panel + w * (4 * kCodeWidth);
    if (w % 2 == 0) __builtin_prefetch(ahead_of(at, 0));
    __builtin_prefetch(ahead_of(at, kLine));
    simd::unroll<Rows>([&](auto r) {
      sum[r][0] = simd::add_bfloat_products(sum[r][0], at, rows[r * words + w]);
      sum[r][1] = simd::add_bfloat_products(sum[r][1], at + 4 * kCodeLanes, rows[r * words + w]);
    });
  }
  simd::unroll<Rows>([&](auto r) {
    simd::store(sums + r * kCodeWidth, sum[r][0]);
    simd::store(sums + r * kCodeWidth + kCodeLanes, sum[r][1]);
  });
}

/// Nearest BF16, ties to even; NaN stays NaN.
inline std::uint32_t rounded_to_bfloat(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return (bits >> 16 | 0x40u) & 0xFFFFu;
  return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

/// PanelDecoder::product of Dot::Bf16.
inline void multiply_bfloats(const RowSource<float>& in, Index begin, Index end, const PanelRange<float>& panels,
                             const FinishRef<float>& finish) {
  const auto& of = *static_cast<const CodePanels*>(panels.of.matrix);
  alignas(kCacheLine) std::array<std::uint32_t, kDotBytes / 4> rows;
  alignas(kCacheLine) float sums[kDotRows * kCodeWidth];
  const Index words = (of.inputs + 1) / 2;
  const Index at_once = dot_rows_at_once(4 * std::max<Index>(1, words));
  const Index blocks = (end - begin + at_once - 1) / at_once, size = (end - begin + blocks - 1) / blocks;
  for (Index row = begin; row < end; row += size) {
    const Index count = std::min(size, end - row);
    for (Index r = 0; r < count; ++r) {
      const float* const x = in.row(row + r);
      for (Index w = 0; w < words; ++w) {
        const std::uint32_t second = 2 * w + 1 < of.inputs ? rounded_to_bfloat(x[2 * w + 1]) : 0;
        rows[static_cast<std::size_t>(r * words + w)] = rounded_to_bfloat(x[2 * w]) | second << 16;
      }
    }
    const Index tiles = (count + kDotRows - 1) / kDotRows;
    for (Index p = panels.first; p < panels.last; ++p)
      for (Index t = 0; t < tiles; ++t) {
        const Index first = t * (count / tiles) + std::min(t, count % tiles);
        const Index height = count / tiles + (t < count % tiles ? 1 : 0);
        simd::with_constant<kDotRows>(static_cast<int>(height), [&](auto height_of_tile) {
          bfloat_tile<height_of_tile>(rows.data() + first * words, words, of.panel(p), sums);
        });
        finish(row + first, static_cast<int>(height), p, sums);
      }
  }
}

template <class Codes>
inline constexpr PanelDecoder<float> with_product(const PanelDecoder<float>& exact) {
  PanelDecoder<float> result = exact;
  result.product = &multiply_integers<Codes>;
  return result;
}
inline constexpr PanelDecoder<float> kInt8Dot = with_product<Int8Bytes>(kDecoderOf<Int8Codes<false>>);
inline constexpr PanelDecoder<float> kInt4Dot = with_product<Int4Bytes>(kDecoderOf<Int4Codes<false>>);
inline constexpr PanelDecoder<float> kE2M1Dot = with_product<E2M1Bytes>(kDecoderOf<E2M1Codes>);
inline constexpr PanelDecoder<float> kBf16Dot{.decode = &decode_codes<Bf16Codes>, .product = &multiply_bfloats};

}  // namespace detail

/// Whether a matrix of this format and so many inputs can be multiplied with rounded rows, on this machine.
inline bool can_dot(const WeightFormat& format, Index inputs, Dot dot) {
  if (dot == Dot::Exact) return true;
  if (inputs > detail::kMostDotInputs) return false;
  if (dot == Dot::Bf16) return format.code == WeightCode::Bf16 && simd::kMultipliesBfloats;
  const bool is_known =
      format.code == WeightCode::Int8 || format.code == WeightCode::Int4 || format.code == WeightCode::E2M1;
  return is_known && !format.has_zero_points;
}

/// How a matrix for which can_dot() holds is read.
inline const PanelDecoder<float>& dot_decoder_of(const WeightFormat& format, Dot dot) {
  if (dot == Dot::Bf16) return detail::kBf16Dot;
  if (format.code == WeightCode::Int8) return detail::kInt8Dot;
  return format.code == WeightCode::Int4 ? detail::kInt4Dot : detail::kE2M1Dot;
}

}  // namespace kernel

}  // namespace moe::inline MOE_ABI
