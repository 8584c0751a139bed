// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

static_assert(std::endian::native == std::endian::little, "moe::io reads and writes little-endian hosts only");

/// Element type of a tensor in a file.
enum class Dtype : std::uint8_t { F32, F64 };

/// What may be lost on the way from a file to an object: nothing, or the digits that the target cannot hold.
enum class Narrowing { Refuse, Allow };

namespace detail {

inline constexpr std::array kDtypes{Dtype::F32, Dtype::F64};

struct DtypeTraits {
  std::string_view name = {};
  std::size_t size = 0;
};
constexpr DtypeTraits traits(Dtype dtype) {
  switch (dtype) {
    case Dtype::F32:
      return {"F32", 4};
    case Dtype::F64:
      return {"F64", 8};
  }
  return {};
}

}  // namespace detail

/// Name of a type as safetensors spells it.
constexpr std::string_view dtype_name(Dtype dtype) { return detail::traits(dtype).name; }

/// Bytes per element.
constexpr std::size_t dtype_size(Dtype dtype) { return detail::traits(dtype).size; }

/// The type of that name, if it is known.
constexpr std::optional<Dtype> find_dtype(std::string_view name) {
  for (const Dtype dtype : detail::kDtypes)
    if (dtype_name(dtype) == name) return dtype;
  return std::nullopt;
}

/// The type that holds a C++ scalar as it is.
template <class S>
constexpr Dtype dtype_of() {
  static_assert(std::is_same_v<S, float> || std::is_same_v<S, double>, "moe::dtype_of: S is float or double");
  return std::is_same_v<S, float> ? Dtype::F32 : Dtype::F64;
}

/// True if every value of `from` is a value of `to`.
constexpr bool is_exact(Dtype from, Dtype to) { return from == to || (from == Dtype::F32 && to == Dtype::F64); }

namespace detail {

/// Elements of type `from` in memory, anywhere aligned, as scalars S; rounded to nearest where S is narrower.
template <class S>
void decode(Dtype from, const std::byte* bytes, std::span<S> values) {
  const auto convert = [&]<class Stored>(Stored stored) {
    for (S& value : values) {
      std::memcpy(&stored, bytes, sizeof stored);
      bytes += sizeof stored;
      value = static_cast<S>(stored);
    }
  };
  switch (from) {
    case Dtype::F32:
      return convert(float{});
    case Dtype::F64:
      return convert(double{});
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
