// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "moe/core/simd_dot.hpp"
#include "moe/kernel/code_panels.hpp"

// Rows of a product as integers of 8 bits, with a scale for every group of the weights.
namespace moe::inline MOE_ABI::kernel::detail {

/// Inputs of codes that are bytes at a time: 16 KiB in AVX-512.
inline constexpr Index kDotInputs = 512;
/// Inputs whose integers are summed up before they become floats.
inline Index inputs_per_sum(const CodePanels& of) { return std::min(of.group, kDotInputs); }

/// Rows as integers: codes in words of four, and per sum of integers the scale and the sum of the codes.
struct IntegerRows {
  Index words = 0, sums = 0;            ///< of a row
  const std::int32_t* code = nullptr;   ///< [rows, words]
  const float* scale = nullptr;         ///< [rows, sums]
  const std::int32_t* total = nullptr;  ///< [rows, sums]

  static Index words_of(Index inputs) { return (inputs + 7) / 8 * 2; }
  static Index sums_of(const CodePanels& of) {
    const Index whole = of.inputs / of.group, rest = of.inputs % of.group, each = inputs_per_sum(of);
    return whole * ((of.group + each - 1) / each) + (rest + each - 1) / each;
  }
  static Index bytes_of(const CodePanels& of) { return 4 * words_of(of.inputs) + 8 * sums_of(of); }
};

/// Rounds x[0, count) to to[0, padded), with zeros behind. Returns the scale: the value is code * scale. A row with a
/// number that is not finite has scale NaN; one below 2^-100 throughout counts as 0.
inline float round_to_integers(const float* x, Index count, Index padded, std::int8_t* to) {
  using Batch = simd::Batch<float>;
  Batch most(0.0f), bad(0.0f);
  float rest = 0, bad_rest = 0;
  simd::for_each<float>(
      count,
      [&](Index i) {
        const Batch v = simd::load(x + i);
        most = simd::max(most, simd::abs(v));
        bad = bad + v * Batch(0.0f);
      },
      [&](Index i, Index n) {
        for (Index j = i; j < i + n; ++j) {
          rest = std::max(rest, std::abs(x[j]));
          bad_rest += x[j] * 0.0f;
        }
      });
  const float largest = std::max(rest, simd::reduce_max(most));
  std::fill(to + count, to + padded, std::int8_t{0});
  if (std::isnan(bad_rest + simd::reduce_add(bad))) {
    std::fill_n(to, count, std::int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (largest < 0x1p-100f) {
    std::fill_n(to, count, std::int8_t{0});
    return 0;
  }
  const float inverse = 127.0f / largest;
  simd::for_each<float>(
      count, [&](Index i) { simd::store_rounded(simd::load(x + i) * Batch(inverse), to + i); },
      [&](Index i, Index n) {
        for (Index j = i; j < i + n; ++j) to[j] = static_cast<std::int8_t>(std::nearbyint(x[j] * inverse));
      });
  return largest / 127.0f;
}

/// Of every eight codes the even ones, then the odd ones.
inline void set_pairs_apart(std::int8_t* codes, Index count) {
  for (Index i = 0; i < count; i += 8) {
    std::array<std::int8_t, 8> eight;
    std::copy_n(codes + i, 8, eight.begin());
    for (std::size_t j = 0; j < 4; ++j) {
      codes[i + static_cast<Index>(j)] = eight[2 * j];
      codes[i + static_cast<Index>(j) + 4] = eight[2 * j + 1];
    }
  }
}

/// A row of a matrix product, as IntegerRows has it.
template <bool kPairsApart>
void convert_row(const CodePanels& of, const float* row, std::int8_t* code, float* scale, std::int32_t* total) {
  const Index each = inputs_per_sum(of);
  for (Index begin = 0; begin < of.inputs; begin += of.group) {
    const Index count = std::min(of.group, of.inputs - begin), padded = (count + 7) / 8 * 8;
    std::int8_t* const to = code + begin;
    const float of_group = round_to_integers(row + begin, count, padded, to);
    for (Index i = 0; i < count; i += each) {
      std::int32_t sum = 0;
      for (Index j = i; j < std::min(count, i + each); ++j) sum += to[j];
      *scale++ = of_group;
      *total++ = sum;
    }
    if constexpr (kPairsApart) set_pairs_apart(to, padded);
  }
}

}  // namespace moe::inline MOE_ABI::kernel::detail
