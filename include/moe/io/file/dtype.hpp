// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

static_assert(std::endian::native == std::endian::little, "moe::io reads and writes little-endian hosts only");
static_assert(sizeof(std::size_t) == 8, "moe::io: sizes in files have 64 bits, and so must addresses");

/// Element type of a tensor in a file. F8_E4M3 is the variant without infinities of Micikevicius et al., "FP8 Formats
/// for Deep Learning", arXiv:2209.05433: largest value 448, NaN is 0x7F and 0xFF. A BOOL takes one byte.
/// Other is any type of which no values are read (F4, F8_E8M0, C64, ...): such a tensor is listed with its bytes.
enum class Dtype : std::uint8_t {
  F64,
  F32,
  F16,
  BF16,
  F8_E4M3,
  F8_E5M2,
  I64,
  I32,
  I16,
  I8,
  U64,
  U32,
  U16,
  U8,
  BOOL,
  Other
};

/// What may be lost on the way from a file to an object or back: nothing, or the digits that the target cannot hold.
enum class Narrowing { Refuse, Allow };

namespace detail {

/// `digits`: of the significand or integer in binary; `exponent`: largest power of two below which values lie.
struct DtypeTraits {
  Dtype dtype;
  std::string_view name;
  std::size_t size;
  bool is_floating, is_signed;
  int digits, exponent;
};

inline constexpr std::array<DtypeTraits, 15> kDtypes{{{Dtype::F64, "F64", 8, true, true, 53, 1024},
                                                      {Dtype::F32, "F32", 4, true, true, 24, 128},
                                                      {Dtype::F16, "F16", 2, true, true, 11, 16},
                                                      {Dtype::BF16, "BF16", 2, true, true, 8, 128},
                                                      {Dtype::F8_E4M3, "F8_E4M3", 1, true, true, 4, 9},
                                                      {Dtype::F8_E5M2, "F8_E5M2", 1, true, true, 3, 16},
                                                      {Dtype::I64, "I64", 8, false, true, 63, 63},
                                                      {Dtype::I32, "I32", 4, false, true, 31, 31},
                                                      {Dtype::I16, "I16", 2, false, true, 15, 15},
                                                      {Dtype::I8, "I8", 1, false, true, 7, 7},
                                                      {Dtype::U64, "U64", 8, false, false, 64, 64},
                                                      {Dtype::U32, "U32", 4, false, false, 32, 32},
                                                      {Dtype::U16, "U16", 2, false, false, 16, 16},
                                                      {Dtype::U8, "U8", 1, false, false, 8, 8},
                                                      {Dtype::BOOL, "BOOL", 1, false, false, 1, 1}}};

inline constexpr DtypeTraits kOtherDtype{Dtype::Other, "another type", 0, false, false, 0, 0};

constexpr const DtypeTraits& traits(Dtype dtype) {
  return dtype == Dtype::Other ? kOtherDtype : kDtypes[static_cast<std::size_t>(dtype)];
}

static_assert([] {
  for (std::size_t i = 0; i < kDtypes.size(); ++i)
    if (static_cast<std::size_t>(kDtypes[i].dtype) != i) return false;
  return true;
}());

}  // namespace detail

/// Name of a type as safetensors spells it.
constexpr std::string_view dtype_name(Dtype dtype) { return detail::traits(dtype).name; }

/// Bytes per element. Throws std::invalid_argument for Other, of which the size is not known.
constexpr std::size_t dtype_size(Dtype dtype) {
  if (dtype == Dtype::Other) fail("moe::dtype_size: dtype is Other, expected a type of known size");
  return detail::traits(dtype).size;
}

/// True for F64 to F8_E5M2.
constexpr bool is_floating(Dtype dtype) { return detail::traits(dtype).is_floating; }

/// The type of that name, if values of it are read.
constexpr std::optional<Dtype> find_dtype(std::string_view name) {
  for (const detail::DtypeTraits& traits : detail::kDtypes)
    if (traits.name == name) return traits.dtype;
  return std::nullopt;
}

/// The type that holds a C++ scalar as it is: float, double, bool, or an integer of 8 to 64 bits.
template <class S>
constexpr Dtype dtype_of() {
  static_assert(std::is_same_v<S, float> || std::is_same_v<S, double> || std::is_integral_v<S>,
                "moe::dtype_of: S is float, double or an integer");
  if (std::is_same_v<S, bool>) return Dtype::BOOL;
  if (std::is_floating_point_v<S>) return sizeof(S) == 4 ? Dtype::F32 : Dtype::F64;
  for (const detail::DtypeTraits& traits : detail::kDtypes)
    if (!traits.is_floating && traits.is_signed == std::is_signed_v<S> && traits.size == sizeof(S)) return traits.dtype;
  return Dtype::U8;  // not reached
}

/// True if every value of `from` is a value of `to`: F16 fits F32, I16 fits F32, I32 does not, U8 fits I16, and so on.
/// (F16 to BF16 and the like lose digits; BOOL is 0 and 1 for any other type.)
constexpr bool is_exact(Dtype from, Dtype to) {
  if (from == Dtype::Other || to == Dtype::Other) return false;
  const detail::DtypeTraits &a = detail::traits(from), &b = detail::traits(to);
  if (from == to) return true;
  if (to == Dtype::BOOL || to == Dtype::F8_E4M3) return false;  // the one has two values, the other no infinities
  if (a.is_floating && !b.is_floating) return false;
  if (a.is_signed && !b.is_signed) return false;
  return a.digits <= b.digits && a.exponent <= b.exponent;
}

namespace detail {

/// Bytes of a tensor of a type that is read, with extents >= 0, or nothing where the number does not fit Index.
inline std::optional<std::uint64_t> tensor_bytes(Dtype dtype, const std::vector<Index>& shape) {
  constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
  std::uint64_t bytes = dtype_size(dtype);
  for (const Index extent : shape) {
    if (extent != 0 && bytes > kMax / static_cast<std::uint64_t>(extent)) return std::nullopt;
    bytes *= static_cast<std::uint64_t>(extent);
  }
  return bytes;
}

/// Bits per element of types that safetensors knows and of which no values are read.
struct OtherBits {
  std::string_view name;
  std::uint64_t bits;
};
inline constexpr std::array<OtherBits, 7> kOtherBits{
    {{"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"C64", 64}}};

/// Bytes of a tensor of such a type, or nothing for one that is not known, parts of bytes, and what does not fit Index.
inline std::optional<std::uint64_t> other_bytes(std::string_view type_name, const std::vector<Index>& shape) {
  constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
  const auto elements = tensor_bytes(Dtype::U8, shape);
  for (const OtherBits& other : kOtherBits)
    if (other.name == type_name && elements && *elements <= kMax / other.bits && *elements * other.bits % 8 == 0)
      return *elements * other.bits / 8;
  return std::nullopt;
}

/// Whether so many bytes can be a tensor of this type and shape. Of a type that nobody knows, an element takes a bit at
/// least, so that a few bytes cannot claim any number of elements.
inline bool can_fill(std::uint64_t bytes, std::string_view type_name, const std::vector<Index>& shape) {
  constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();
  const auto elements = tensor_bytes(Dtype::U8, shape);
  if (!elements) return false;
  for (const OtherBits& other : kOtherBits)
    if (other.name == type_name)
      return bytes <= kMax / 8 && *elements <= kMax / other.bits && *elements * other.bits == bytes * 8;
  return *elements / 8 + (*elements % 8 != 0) <= bytes;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
