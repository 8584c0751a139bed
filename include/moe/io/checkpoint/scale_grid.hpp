// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/io/checkpoint/weight_storage.hpp"

namespace moe::inline MOE_ABI::detail {

/// The type of scales F8_E8M0, which is no type of other numbers.
inline bool is_e8m0(const TensorView& tensor) { return tensor.dtype == Dtype::Other && tensor.other == "F8_E8M0"; }

/// How a matrix that keeps them stores such scales: of types that no format has, as floats, which hold them.
inline ScaleType scale_type(const TensorView& scales) {
  if (is_e8m0(scales)) return ScaleType::E8M0;
  if (scales.dtype == Dtype::BF16) return ScaleType::Bf16;
  return scales.dtype == Dtype::F16 ? ScaleType::F16 : ScaleType::F32;
}

inline void require_scale_type(const TensorView& scales) {
  require_stored_type(scales, is_floating(scales.dtype) || is_e8m0(scales), "a floating-point type or F8_E8M0");
}

/// Scales where they lie: in blocks of rows and columns, of which the strides say how to get from one to the next.
struct ScaleGrid {
  TensorView scales = {};
  Index rows = 1;                           ///< of a matrix
  Index block_rows = 1, block_columns = 1;  ///< that share a scale
  Index matrix_stride = 0, row_stride = 0, column_stride = 0;
  bool is_e8m0 = false;  ///< also of U8

  /// In the order of the file: [.., rows / block_rows, columns / block_columns].
  static ScaleGrid of_blocks(const TensorView& scales, Index rows, Index columns, Index block_rows,
                             Index block_columns) {
    if (scales.bytes.empty())  // products of other extents may be out of range
      return {.scales = scales, .block_rows = block_rows, .block_columns = block_columns};
    const Index across = num_parts(columns, block_columns);
    return {.scales = scales,
            .rows = std::max<Index>(1, rows),
            .block_rows = block_rows,
            .block_columns = block_columns,
            .matrix_stride = num_parts(rows, block_rows) * across,
            .row_stride = across,
            .column_stride = 1,
            .is_e8m0 = detail::is_e8m0(scales)};
  }

  Index place_of(Index row, Index column) const {
    return row / rows * matrix_stride + row % rows / block_rows * row_stride + column / block_columns * column_stride;
  }
  float at(Index row, Index column) const { return number(place_of(row, column)); }

  /// Calls each_run(column, count, block, scale) for the values of a row from a column on, by the scale that they
  /// share.
  template <class EachRun>
  void for_each_run(Index row, Index column, Index count, const EachRun& each_run) const {
    Index block = column / block_columns, place = place_of(row, column);
    while (count > 0) {
      const Index size = std::min((block + 1) * block_columns - column, count);
      each_run(column, size, block, number(place));
      column += size;
      count -= size;
      ++block;
      place += column_stride;
    }
  }

  float number(Index place) const {
    if (is_e8m0) return e8m0_to_float(std::to_integer<std::uint8_t>(scales.bytes[static_cast<std::size_t>(place)]));
    const std::byte* const bytes = scales.bytes.data() + static_cast<std::size_t>(place) * dtype_size(scales.dtype);
    const auto load = [&]<class Stored>(Stored stored) {
      std::memcpy(&stored, bytes, sizeof stored);
      return stored;
    };
    switch (scales.dtype) {
      case Dtype::F32:
        return load(float{});
      case Dtype::F16:
        return half_to_float(load(std::uint16_t{}));
      case Dtype::BF16:
        return bfloat_to_float(load(std::uint16_t{}));
      case Dtype::F8_E4M3:
        return kFloatOfCode<E4M3>[load(std::uint8_t{})];
      default: {
        float value = 0;
        detail::decode(scales.dtype, bytes, std::span(&value, 1));
        return value;
      }
    }
  }
};

/// The one number of a tensor: [] or [1].
inline float one_number(const TensorView& tensor) {
  require_stored_type(tensor, is_floating(tensor.dtype), "a floating-point type");
  if (!tensor.shape.empty() && tensor.shape != std::vector<Index>{1}) refuse_stored_shape(tensor, "[] or [1]");
  return ScaleGrid{.scales = tensor}.number(0);
}

}  // namespace moe::inline MOE_ABI::detail
