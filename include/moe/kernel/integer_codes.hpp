// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "moe/core/simd_dot.hpp"
#include "moe/kernel/code_product.hpp"
#include "moe/kernel/integer_rows.hpp"

// Codes of weights as bytes, block by block, in L1.
namespace moe::inline MOE_ABI::kernel::detail {

/// What bytes of weights stand for, as an integer: the value, or the value plus kOffset.
enum class ByteForm { Value, Offset };

// Codes of a format as bytes, four inputs to a lane: `read` gives the two words of eight inputs of half a panel, as
// integers, which kFactor makes values.

struct Int8Bytes {
  static constexpr simd::FirstFactor kFirst =
      simd::kMultipliesUnsigned ? simd::FirstFactor::Unsigned : simd::FirstFactor::Signed;
  static constexpr std::int32_t kOffset = simd::kMultipliesUnsigned ? 128 : 0;
  static constexpr float kFactor = 1;
  static constexpr bool kPairsApart = false;

  template <ByteForm kForm>
  static simd::TwoIntegers read(const std::byte* at) {
    const simd::Integers first = simd::words_of_bytes(at, kCodeWidth);
    const simd::Integers second = simd::words_of_bytes(at + 4 * kCodeWidth, kCodeWidth);
    if constexpr (kForm == ByteForm::Value || kOffset == 0)
      return {first, second};
    else
      return {simd::plus_128(first), simd::plus_128(second)};
  }
  static constexpr Index kRegisterBytes = kCodeLanes;
};

/// Four bits by a table. The even inputs come first.
template <std::int32_t offset, const std::array<std::int8_t, 16>& Values>
struct NibbleBytes {
  static constexpr simd::FirstFactor kFirst = simd::FirstFactor::Unsigned;
  static constexpr std::int32_t kOffset = offset;
  static constexpr bool kPairsApart = true;
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;

  template <ByteForm kForm>
  static constexpr std::array<std::uint8_t, 16> kTable = [] {
    std::array<std::uint8_t, 16> table{};
    for (std::size_t i = 0; i < 16; ++i)
      table[i] = static_cast<std::uint8_t>(Values[i] + (kForm == ByteForm::Offset ? offset : 0));
    return table;
  }();
  template <ByteForm kForm>
  static simd::TwoIntegers read(const std::byte* at) {
    return simd::look_up_bytes(at, kTable<kForm>);
  }
};
inline constexpr std::array<std::int8_t, 16> kIntegerOfInt4{0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
inline constexpr std::array<std::int8_t, 16> kTwiceE2M1{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
struct Int4Bytes : NibbleBytes<8, kIntegerOfInt4> {
  static constexpr float kFactor = 1;
};
struct E2M1Bytes : NibbleBytes<12, kTwiceE2M1> {
  static constexpr float kFactor = 0.5f;
};

/// Part of a panel as bytes: whole sums of integers, kDotInputs inputs at most.
struct IntegerBlock {
  static constexpr Index kWords = kDotInputs / 4, kMostSums = kDotInputs / 8;
  struct Sum {
    Index word, input;  ///< where it begins, in `words` and in a row
  };
  alignas(kCacheLine) std::byte words[kWords * 4 * kCodeWidth];
  alignas(kCacheLine) float scale[kMostSums * kCodeWidth];
  std::array<Sum, kMostSums + 1> sum;  ///< and where the last one ends
  Index num_sums = 0;
  const std::byte *codes_begin = nullptr, *codes_end = nullptr;  ///< of the panel
};

/// How codes come from memory: a little ahead of being expanded, or block by block, while the tiles of the one before
/// are multiplied. Few rows do not take long enough for that.
enum class CodeFetch { AsExpanded, ByTiles };

/// Inputs from `begin` on, as many whole sums as there is room for; sums are filled up to multiples of `unit` words,
/// with zeros. Returns where the inputs end.
template <class Codes, ByteForm kForm>
Index expand_codes(const CodePanels& of, Index panel, Index begin, Index unit, CodeFetch fetch, IntegerBlock& to) {
  const Index each = inputs_per_sum(of), bytes = step_bytes(of.format);
  const simd::Batch<float> factor(Codes::kFactor);
  Index input = begin, word = 0, sum = 0;
  while (input < of.inputs) {
    const Index g = input / of.group, first = g * of.group, last = std::min(of.inputs, first + of.group);
    const Index end = std::min(last, input + each), steps = (end - input + 7) / 8;
    const Index words = (2 * steps + unit - 1) / unit * unit;
    if (word + words > IntegerBlock::kWords) break;
    const std::byte* const at = of.panel(panel) + g * of.group_bytes;
    for (Index half = 0; half < 2; ++half)
      simd::store(to.scale + sum * kCodeWidth + half * kCodeLanes,
                  load_scales(of.format.scale, at + half * kCodeLanes * of.format.scale_bits() / 8, of.scale) * factor);
    to.sum[static_cast<std::size_t>(sum)] = {word, input};
    if (fetch == CodeFetch::AsExpanded && input == first) fetch_ahead(std::array{at}, 0, of.header_bytes);
    const std::byte* codes = at + of.header_bytes + (input - first) / 8 * bytes;
    if (sum == 0) to.codes_begin = codes;
    std::byte* out = to.words + word * (4 * kCodeWidth);
    for (Index step = 0; step < steps; ++step, codes += bytes, out += 8 * kCodeWidth) {
      if (fetch == CodeFetch::AsExpanded) fetch_ahead(std::array{codes}, 0, bytes);
      simd::unroll<2>([&](auto half) {
        const simd::TwoIntegers both = Codes::template read<kForm>(codes + half * Codes::kRegisterBytes);
        simd::store_integers(out + half * (4 * kCodeLanes), both.even);
        simd::store_integers(out + 4 * kCodeWidth + half * (4 * kCodeLanes), both.odd);
      });
    }
    std::memset(out, 0, static_cast<std::size_t>((words - 2 * steps) * 4 * kCodeWidth));
    to.codes_end = codes;
    ++sum;
    word += words;
    input = end;
  }
  to.sum[static_cast<std::size_t>(sum)] = {word, input};
  to.num_sums = sum;
  return input;
}

}  // namespace moe::inline MOE_ABI::kernel::detail
