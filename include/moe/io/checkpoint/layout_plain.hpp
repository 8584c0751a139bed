// SPDX-License-Identifier: MIT
#pragma once

#include "moe/io/checkpoint/weight_storage.hpp"

namespace moe::inline MOE_ABI::detail {

/// The code of a type of few bits.
inline WeightCode code_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::BF16:
      return WeightCode::Bf16;
    case Dtype::F16:
      return WeightCode::F16;
    case Dtype::F8_E4M3:
      return WeightCode::E4M3;
    case Dtype::F8_E5M2:
      return WeightCode::E5M2;
    default:
      return WeightCode::Zeros;
  }
}

/// `name` of any floating-point type.
class PlainStorage : public WeightStorage {
 public:
  explicit PlainStorage(const TensorView& tensor) {
    require_known(tensor);
    require_stored_type(tensor, is_floating(tensor.dtype), "a floating-point type");
    codes = tensor;
    shape = tensor.shape;
    format = dtype_name(tensor.dtype);
  }

  std::optional<WeightFormat> kept_format() const override {
    const WeightCode code = code_of(codes.dtype);
    if (code == WeightCode::Zeros) return std::nullopt;
    return WeightFormat{.code = code};
  }
  std::uint32_t code(Index row, Index column) const override {
    std::uint32_t bits = 0;
    const std::size_t each = std::min(sizeof bits, dtype_size(codes.dtype));
    std::memcpy(&bits, at(row * columns() + column), each);
    return bits;
  }
  void read_codes(Index row, Index column, std::span<std::uint32_t> to) const override {
    const std::byte* const bytes = at(row * columns() + column);
    if (dtype_size(codes.dtype) == 1) {
      for (std::size_t i = 0; i < to.size(); ++i) to[i] = std::to_integer<std::uint32_t>(bytes[i]);
    } else {
      for (std::size_t i = 0; i < to.size(); ++i) to[i] = PlainStorage::code(row, column + static_cast<Index>(i));
    }
  }
  GroupNumbers numbers(Index, Index) const override { return {}; }
  void read_row(Index row, Index column, std::span<float> values) const override {
    read(row * columns() + column, values);
  }
  void read(Index first, std::span<float> values) const override { detail::decode(codes.dtype, at(first), values); }

 private:
  const std::byte* at(Index place) const {
    return codes.bytes.data() + static_cast<std::size_t>(place) * dtype_size(codes.dtype);
  }
};

struct PlainLayout {
  static std::string codes(const std::string& name) { return name; }
  static bool takes(const StoredParts&, const TensorView&) { return true; }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    return std::make_unique<PlainStorage>(parts.take(parts.name()));
  }
};

}  // namespace moe::inline MOE_ABI::detail
