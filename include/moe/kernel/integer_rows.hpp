// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "moe/core/aligned.hpp"
#include "moe/core/simd_dot.hpp"
#include "moe/kernel/code_panels.hpp"

// Rows of a product as integers of 8 bits, with a scale for every group of the weights.
namespace moe::inline MOE_ABI::kernel::detail {

/// Inputs of codes that are bytes at a time: 16 KiB in AVX-512.
inline constexpr Index kDotInputs = 512;
/// Inputs whose integers are summed up before they become floats.
inline Index inputs_per_sum(const CodePanels& of) { return std::min(of.group, kDotInputs); }

/// Memory of rows as integers: codes in words of four, a row after the other, and per sum of integers of every row the
/// scale, and where the sum begins: -offset * sum of the codes, for weights that are stored as value + offset.
struct IntegerRows {
  IntegerRows(const CodePanels& of, Index num_rows, std::byte* to)
      : count(num_rows),
        stride(stride_of(of)),
        code(to),
        scale(reinterpret_cast<float*>(to + num_rows * stride)),
        start(reinterpret_cast<std::int32_t*>(scale + num_rows * sums_of(of))) {}

  Index count, stride;  ///< rows; bytes from one to the next: an odd number of cache lines
  std::byte* code;
  float* scale;         ///< [sums, count]
  std::int32_t* start;  ///< [sums, count]

  static Index stride_of(const CodePanels& of) {
    constexpr auto kUnit = static_cast<Index>(kCacheLine);
    return ((of.inputs + kUnit - 1) / kUnit | 1) * kUnit;
  }
  static Index sums_of(const CodePanels& of) {
    const Index whole = of.inputs / of.group, rest = of.inputs % of.group, each = inputs_per_sum(of);
    return whole * ((of.group + each - 1) / each) + (rest + each - 1) / each;
  }
  static Index bytes_of_row(const void* of) {
    const auto& panels = *static_cast<const CodePanels*>(of);
    return stride_of(panels) + 8 * sums_of(panels);
  }
};

/// Rounds x[0, count) to to[0, padded), with zeros behind. Returns the scale: the value is code * scale. A row with a
/// number that is not finite has scale NaN; one below 2^-100 throughout counts as 0.
inline float round_to_integers(const float* x, Index count, Index padded, std::int8_t* to) {
  using Batch = simd::Batch<float>;
  const Index body = count - count % simd::kLanes<float>;
  Batch most(0.0f), bad(0.0f);
  for (Index i = 0; i < body; i += simd::kLanes<float>) {
    const Batch v = simd::load(x + i);
    most = simd::max(most, simd::abs(v));
    bad = bad + v * Batch(0.0f);
  }
  float rest = 0, bad_rest = 0;
  for (Index i = body; i < count; ++i) {
    rest = std::max(rest, std::abs(x[i]));
    bad_rest += x[i] * 0.0f;
  }
  const float largest = std::max(rest, simd::reduce_max(most));
  std::fill(to + count, to + padded, std::int8_t{0});
  if (std::isnan(bad_rest) || simd::any(!(bad == bad))) {
    std::fill_n(to, count, std::int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (largest < 0x1p-100f) {
    std::fill_n(to, count, std::int8_t{0});
    return 0;
  }
  const float inverse = 127.0f / largest;
  for (Index i = 0; i < body; i += simd::kLanes<float>) simd::store_rounded(simd::load(x + i) * Batch(inverse), to + i);
  for (Index i = body; i < count; ++i) to[i] = static_cast<std::int8_t>(std::nearbyint(x[i] * inverse));
  return largest / 127.0f;
}

/// ConvertedProduct::convert of weights that are read as Codes.
template <class Codes>
void convert_to_integers(const void* matrix, const float* row, Index r, Index count, std::byte* memory) {
  const auto& of = *static_cast<const CodePanels*>(matrix);
  const IntegerRows rows(of, count, memory);
  auto* const code = reinterpret_cast<std::int8_t*>(rows.code + r * rows.stride);
  const Index each = inputs_per_sum(of);
  Index at = r;
  for (Index begin = 0; begin < of.inputs; begin += of.group) {
    const Index size = std::min(of.group, of.inputs - begin), padded = (size + 7) / 8 * 8;
    std::int8_t* const to = code + begin;
    const float scale = round_to_integers(row + begin, size, padded, to);
    for (Index i = 0; i < size; i += each, at += count) {
      rows.scale[at] = scale;
      rows.start[at] = -Codes::kOffset * simd::sum_of_bytes(to + i, std::min(padded - i, each));
    }
    if constexpr (Codes::kPairsApart) simd::set_pairs_apart(to, padded);
  }
}

}  // namespace moe::inline MOE_ABI::kernel::detail
