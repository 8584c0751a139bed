// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "moe/core/simd_small_floats.hpp"
#include "moe/core/small_float.hpp"
#include "moe/io/file/dtype.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

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

/// double_to_small<Bfloat>() of a float: the same bits, in a loop that compilers turn into vectors.
constexpr std::uint32_t float_to_bfloat(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t nan = (bits >> 16 & Bfloat::kSign) | Bfloat::kNan;
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
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
      if constexpr (std::is_same_v<S, float>)
        return encode_elements<std::uint16_t>(values, bytes, float_to_bfloat);
      else
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
