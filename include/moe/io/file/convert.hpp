// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "moe/core/simd_small_floats.hpp"
#include "moe/io/file/dtype.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

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

/// values[i] = convert(element i), for elements anywhere aligned. In blocks of a fixed size, which compilers turn into
/// vector code at -O2 already.
template <class Stored, class S, class Convert>
void decode_elements(const std::byte* bytes, std::span<S> values, const Convert& convert) {
  constexpr std::size_t kBlock = 16;
  std::array<Stored, kBlock> in;
  std::array<S, kBlock> out;
  std::size_t i = 0;
  for (; i + kBlock <= values.size(); i += kBlock) {
    std::memcpy(in.data(), bytes + i * sizeof(Stored), sizeof in);
    for (std::size_t j = 0; j < kBlock; ++j) out[j] = static_cast<S>(convert(in[j]));
    std::memcpy(values.data() + i, out.data(), sizeof out);
  }
  for (; i < values.size(); ++i) {
    std::memcpy(in.data(), bytes + i * sizeof(Stored), sizeof(Stored));
    values[i] = static_cast<S>(convert(in[0]));
  }
}

/// Small floats as floats: eight at a time where the machine can, the others one by one with `convert`.
template <simd::FloatCode kType, class Stored, class S, class Convert>
void decode_small(const std::byte* bytes, std::span<S> values, const Convert& convert) {
  if constexpr (simd::kWidensSmallFloats && std::is_same_v<S, float>) {
    const std::size_t body = values.size() / 8 * 8;
    for (std::size_t i = 0; i < body; i += 8) simd::widen_eight<kType>(bytes + i * sizeof(Stored), values.data() + i);
    bytes += body * sizeof(Stored);
    values = values.subspan(body);
  }
  decode_elements<Stored>(bytes, values, convert);
}

/// Elements of type `from` in memory, anywhere aligned, as floating-point scalars S, rounded to nearest where S is
/// narrower.
template <class S>
void decode(Dtype from, const std::byte* bytes, std::span<S> values) {
  const auto plain = [&]<class Stored>(Stored) {
    decode_elements<Stored>(bytes, values, [](Stored stored) { return stored; });
  };
  if (from == dtype_of<S>()) {
    if (!values.empty()) std::memcpy(values.data(), bytes, values.size_bytes());
    return;
  }
  switch (from) {
    case Dtype::F64:
      return plain(double{});
    case Dtype::F32:
      return plain(float{});
    case Dtype::F16:
      return decode_small<simd::FloatCode::Half, std::uint16_t>(bytes, values, half_to_float);
    case Dtype::BF16:
      return decode_small<simd::FloatCode::Bfloat, std::uint16_t>(bytes, values, bfloat_to_float);
    case Dtype::F8_E4M3:
      return decode_small<simd::FloatCode::E4M3, std::uint8_t>(bytes, values,
                                                               [](auto code) { return kFloatOfCode<E4M3>[code]; });
    case Dtype::F8_E5M2:
      return decode_small<simd::FloatCode::E5M2, std::uint8_t>(bytes, values,
                                                               [](auto code) { return kFloatOfCode<E5M2>[code]; });
    case Dtype::I64:
      return plain(std::int64_t{});
    case Dtype::I32:
      return plain(std::int32_t{});
    case Dtype::I16:
      return plain(std::int16_t{});
    case Dtype::I8:
      return plain(std::int8_t{});
    case Dtype::U64:
      return plain(std::uint64_t{});
    case Dtype::U32:
      return plain(std::uint32_t{});
    case Dtype::U16:
      return plain(std::uint16_t{});
    case Dtype::U8:
      return plain(std::uint8_t{});
    case Dtype::BOOL:
      return decode_elements<std::uint8_t>(bytes, values, [](auto code) { return code != 0; });
    case Dtype::Other:  // refused before
      MOE_ASSERT(values.empty());
  }
}

template <class Stored, class S, class Convert>
void encode_elements(std::span<const S> values, std::byte* bytes, const Convert& convert) {
  for (const S value : values) {
    const auto stored = static_cast<Stored>(convert(value));
    std::memcpy(bytes, &stored, sizeof stored);
    bytes += sizeof stored;
  }
}

/// Floating-point scalars as elements of the floating type `to`, rounded to nearest, ties to even. NaN stays NaN; what
/// is too large becomes infinity, in F8_E4M3 NaN.
template <class S>
void encode(std::span<const S> values, Dtype to, std::byte* bytes) {
  MOE_ASSERT(is_floating(to));
  switch (to) {
    case Dtype::F64:
      return encode_elements<double>(values, bytes, [](S value) { return value; });
    case Dtype::F32:
      return encode_elements<float>(values, bytes, [](S value) { return value; });
    case Dtype::F16:
      return encode_elements<std::uint16_t>(values, bytes, double_to_small<Half>);
    case Dtype::BF16:
      return encode_elements<std::uint16_t>(values, bytes, double_to_small<Bfloat>);
    case Dtype::F8_E4M3:
      return encode_elements<std::uint8_t>(values, bytes, double_to_small<E4M3>);
    case Dtype::F8_E5M2:
      return encode_elements<std::uint8_t>(values, bytes, double_to_small<E5M2>);
    default:
      return;
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
