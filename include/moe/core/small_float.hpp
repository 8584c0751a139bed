// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include "moe/core/abi.hpp"

// Floats of 16 bits and fewer, one at a time: what stands in files and in codes of weights.
namespace moe::inline MOE_ABI::detail {

/// A float of few bits: a sign, kExponent bits, kFraction bits, subnormals. IEEE: the largest exponent is infinity or
/// NaN; otherwise only all ones is NaN, and there is no infinity.
template <int kExponentBits, int kFractionBits, bool kIeee>
struct SmallFloat {
  static constexpr int kExponent = kExponentBits, kFraction = kFractionBits;
  static constexpr int kBias = (1 << (kExponent - 1)) - 1;
  static constexpr std::uint32_t kSign = 1u << (kExponent + kFraction);
  static constexpr std::uint32_t kNan = kIeee ? ((1u << (kExponent + 1)) - 1) << (kFraction - 1) : kSign - 1;
  static constexpr std::uint32_t kOverflow =
      kIeee ? ((1u << kExponent) - 1) << kFraction : kNan;  ///< what is too large
};
using Half = SmallFloat<5, 10, true>;
using Bfloat = SmallFloat<8, 7, true>;
using E4M3 = SmallFloat<4, 3, false>;
using E5M2 = SmallFloat<5, 2, true>;

/// The value of a code; exact. NaN keeps its sign.
template <class F>
constexpr float small_to_float(std::uint32_t code) {
  const std::uint32_t sign = (code & F::kSign) << (31 - F::kExponent - F::kFraction);
  const std::uint32_t magnitude = code & (F::kSign - 1), exponent = magnitude >> F::kFraction;
  const std::uint32_t fraction = magnitude & ((1u << F::kFraction) - 1);
  if (magnitude > F::kOverflow || (magnitude == F::kOverflow && F::kOverflow == F::kNan))
    return std::bit_cast<float>(sign | 0x7FC00000u | fraction << (23 - F::kFraction));
  if (magnitude == F::kOverflow) return std::bit_cast<float>(sign | 0x7F800000u);
  if (exponent != 0) {
    const auto rebased = static_cast<std::uint32_t>(static_cast<int>(exponent) + 127 - F::kBias);
    return std::bit_cast<float>(sign | rebased << 23 | fraction << (23 - F::kFraction));
  }
  // fraction * 2^(1 - bias - kFraction), a normal float for all types but Bfloat, which is not decoded this way.
  const auto unit = static_cast<std::uint32_t>(127 + 1 - F::kBias - F::kFraction);
  const float value = static_cast<float>(fraction) * std::bit_cast<float>(unit << 23);
  return sign == 0 ? value : -value;
}

/// The code nearest to `value`, ties to even; too large gives infinity, or NaN where there is none.
template <class F>
constexpr std::uint32_t double_to_small(double value) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::uint32_t sign = bits >> 63 != 0 ? F::kSign : 0;
  const int biased = static_cast<int>(bits >> 52 & 0x7FF), exponent = biased - 1023;
  std::uint64_t significand = bits & ((std::uint64_t{1} << 52) - 1);
  if (biased == 0x7FF) return sign | (significand != 0 ? F::kNan : F::kOverflow);
  if (biased != 0) significand |= std::uint64_t{1} << 52;
  constexpr int kLeast = 1 - F::kBias;
  if (exponent > F::kBias + 1) return sign | F::kOverflow;
  const int base = std::max(exponent, kLeast), shift = 52 - F::kFraction + base - exponent;
  if (shift > 54) return sign;  // below half of the least subnormal
  const std::uint64_t below = significand & ((std::uint64_t{1} << shift) - 1), half = std::uint64_t{1} << (shift - 1);
  std::uint64_t kept = significand >> shift;
  if (below > half || (below == half && kept % 2 != 0)) ++kept;
  // `kept` brings its own leading one, which counts up the exponent, as does the carry of rounding.
  const std::uint64_t code = (static_cast<std::uint64_t>(base - kLeast) << F::kFraction) + kept;
  return sign | static_cast<std::uint32_t>(std::min<std::uint64_t>(code, F::kOverflow));
}

template <class F>
inline constexpr std::array<float, 256> kFloatOfCode = [] {
  std::array<float, 256> table{};
  for (std::uint32_t code = 0; code < 256; ++code) table[code] = small_to_float<F>(code);
  return table;
}();

inline float half_to_float(std::uint16_t code) {
  // Scaled by 2^112 as a float of the same bits; branches would stop the vectoriser. Subnormals become normal.
  const float scaled = std::bit_cast<float>((code & 0x7FFFu) << 13) * 0x1p112f;
  std::uint32_t bits = std::bit_cast<std::uint32_t>(scaled);
  bits |= bits >= 0x47800000u ? 0x7F800000u : 0;  // from 65536 on: infinity or NaN
  bits |= bits > 0x7F800000u ? 0x00400000u : 0;   // quiet, as the instruction makes it
  return std::bit_cast<float>(bits | (code & 0x8000u) << 16);
}

inline float bfloat_to_float(std::uint16_t code) { return std::bit_cast<float>(std::uint32_t{code} << 16); }

/// The value of a code E2M1 of 4 bits: a sign, 2 bits of exponent with bias 1, 1 of fraction.
inline constexpr std::array<float, 16> kFloatOfE2M1{0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                                    -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

/// 2^(code - 127), a scale E8M0; 255 is NaN.
constexpr float e8m0_to_float(std::uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(code == 0 ? 0x00400000u : std::uint32_t{code} << 23);
}

}  // namespace moe::inline MOE_ABI::detail
