// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/checkpoint/scale_grid.hpp"

namespace moe::inline MOE_ABI::detail {

/// Codes E2M1, two in a byte, that of the even input in its low half, with a scale per group of inputs.
class Fp4Storage final : public WeightStorage {
 public:
  /// `tensor` holds the codes of a shape, `grid` a scale per row and group.
  Fp4Storage(const TensorView& tensor, std::vector<Index> extents, const ScaleGrid& grid, QuantMethod stored_as)
      : grid_(grid) {
    method = stored_as;
    format = stored_as == QuantMethod::Nvfp4 ? "NVFP4" : "MXFP4";
    codes = tensor;
    shape = std::move(extents);
    has_scales = true;
  }

  std::optional<WeightFormat> kept_format() const override {
    return method == QuantMethod::Nvfp4 ? WeightFormat::nvfp4() : WeightFormat::mxfp4();
  }
  std::uint32_t code(Index row, Index column) const override {
    const Index place = row * columns() + column;
    return std::to_integer<std::uint32_t>(codes.bytes[static_cast<std::size_t>(place / 2)]) >> (place % 2 * 4) & 15u;
  }
  void read_codes(Index row, Index column, std::span<std::uint32_t> to) const override {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = Fp4Storage::code(row, column + static_cast<Index>(i));
  }
  GroupNumbers numbers(Index row, Index column) const override { return {.scale = grid_.at(row, column)}; }
  void read_row(Index row, Index column, std::span<float> values) const override {
    const Index start = row * columns(), count = std::ssize(values);
    const Index whole = grid_.is_e8m0 && column % kMxBlock == 0 && start % 2 == 0 ? count / kMxBlock : 0;
    const std::byte* const exponents = grid_.scales.bytes.data() + grid_.place_of(row, column);
    for (Index b = 0; b < whole; ++b)
      simd::widen_e2m1(codes.bytes.data() + (start + column) / 2 + b * kMxBytes,
                       e8m0_to_float(std::to_integer<std::uint8_t>(exponents[b])), values.data() + b * kMxBlock);
    const Index done = whole * kMxBlock;
    grid_.for_each_run(row, column + done, count - done, [&](Index begin, Index size, Index, float scale) {
      const Index place = begin - column;
      decode(start + begin, scale * matrix_scale, values.subspan(static_cast<std::size_t>(place)), size);
    });
  }

 private:
  /// At most a block of 32 values, into as many and more, of which those that follow in the row may be overwritten.
  void decode(Index place, float scale, std::span<float> values, Index count) const {
    const std::byte* const bytes = codes.bytes.data() + place / 2;
    const Index odd = place % 2;
    // All the values are of this row, so there are codes of as many.
    if (odd == 0 && std::ssize(values) >= kMxBlock) return simd::widen_e2m1(bytes, scale, values.data());
    std::array<std::byte, kMxBytes> part{};
    std::array<float, kMxBlock> whole;
    std::copy_n(bytes, (odd + count + 1) / 2, part.begin());
    simd::widen_e2m1(part.data(), scale, whole.data());
    std::copy_n(whole.begin() + odd, count, values.begin());
  }

  ScaleGrid grid_;
};

/// Shape of the values of codes [.., in / 2].
inline std::vector<Index> shape_of_pairs(const TensorView& codes) {
  require_stored_type(codes, codes.dtype == Dtype::U8, "U8");
  if (codes.shape.size() < 2) refuse_stored_shape(codes, "[.., outputs, inputs / 2]");
  std::vector<Index> shape = codes.shape;
  shape.back() = times_extent(codes, shape.back(), 2);
  return shape;
}

/// Scales [.., out, ceil(in / group)] of values of a shape.
inline ScaleGrid grid_of_rows(const TensorView& scales, std::vector<Index> shape, Index group) {
  const Index columns = shape.back();
  shape.back() = num_parts(columns, group);
  require_stored_shape(scales, shape);
  return ScaleGrid::of_blocks(scales, *(shape.end() - 2), columns, 1, group);
}

/// `name_blocks` [.., in / 32, 16] and `name_scales` [.., in / 32] in U8: GPT-OSS, with `_` or `.` before the last
/// word. The scale is 2^(byte - 127), NaN for 255 (Open Compute Project, "OCP Microscaling Formats (MX)
/// Specification" 1.0).
template <char kSeparator>
struct MxBlocksLayout {
  static std::string codes(const std::string& name) { return name + kSeparator + "blocks"; }
  static bool takes(const StoredParts&, const TensorView&) { return true; }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView blocks = parts.take(codes(parts.name()));
    const TensorView scales = parts.take(parts.name() + kSeparator + "scales");
    const std::size_t rank = blocks.shape.size();
    if (rank < 2 || blocks.shape.back() != kMxBytes) refuse_stored_shape(blocks, "[.., inputs / 32, 16]");
    require_stored_type(blocks, blocks.dtype == Dtype::U8, "U8");
    std::vector<Index> shape = blocks.shape;
    shape.pop_back();
    require_stored_type(scales, scales.dtype == Dtype::U8, "U8");
    require_stored_shape(scales, shape);
    const Index across = shape.back();
    shape.back() = times_extent(blocks, across, kMxBlock);
    const ScaleGrid grid{
        .scales = scales, .block_columns = kMxBlock, .matrix_stride = across, .column_stride = 1, .is_e8m0 = true};
    return std::make_unique<Fp4Storage>(blocks, std::move(shape), grid, QuantMethod::Mxfp4);
  }
};

/// compressed-tensors "mxfp4-pack-quantized": `name_packed` U8 [.., out, in / 2], `name_scale` in U8 or F8_E8M0
/// [.., out, ceil(in / 32)].
struct MxPackedLayout {
  static std::string codes(const std::string& name) { return name + "_packed"; }
  static bool takes(const StoredParts&, const TensorView& codes) { return codes.dtype == Dtype::U8; }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView packed = parts.take(codes(parts.name())), scales = parts.take(parts.name() + "_scale");
    std::vector<Index> shape = shape_of_pairs(packed);
    require_stored_type(scales, scales.dtype == Dtype::U8 || is_e8m0(scales),
                        "U8 or F8_E8M0, as there is no global scale");
    ScaleGrid grid = grid_of_rows(scales, shape, kMxBlock);
    grid.is_e8m0 = true;
    return std::make_unique<Fp4Storage>(packed, std::move(shape), grid, QuantMethod::Mxfp4);
  }
};

/// NVFP4: codes U8 [.., out, in / 2], `name_scale` F8_E4M3 [.., out, ceil(in / 16)] and a float, with which all scales
/// are multiplied first.
inline std::unique_ptr<WeightStorage> open_nvfp4(StoredParts& parts, const TensorView& packed, float matrix_scale) {
  constexpr Index kGroup = WeightFormat::nvfp4().group;
  const TensorView scales = parts.take(parts.name() + "_scale");
  std::vector<Index> shape = shape_of_pairs(packed);
  require_stored_type(scales, scales.dtype == Dtype::F8_E4M3, "F8_E4M3");
  const ScaleGrid grid = grid_of_rows(scales, shape, kGroup);
  auto storage = std::make_unique<Fp4Storage>(packed, std::move(shape), grid, QuantMethod::Nvfp4);
  storage->matrix_scale = matrix_scale;
  return storage;
}

/// As modelopt writes it: codes in `name`, the float in `name_scale_2`.
struct NvModeloptLayout {
  static std::string codes(const std::string& name) { return name; }
  static bool takes(const StoredParts& parts, const TensorView& codes) {
    return codes.dtype == Dtype::U8 && (parts.has(parts.name() + "_scale") || parts.has(parts.name() + "_scale_2"));
  }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView packed = parts.take(parts.name());
    return open_nvfp4(parts, packed, one_number(parts.take(parts.name() + "_scale_2")));
  }
};

/// As compressed-tensors "nvfp4-pack-quantized" writes it: codes in `name_packed`, and a float `name_global_scale` by
/// which scales are divided. They are multiplied with its reciprocal here, rounded to float, as a matrix of codes has
/// it; so a scale may differ from the quotient in its last bit.
struct NvPackedLayout {
  static std::string codes(const std::string& name) { return name + "_packed"; }
  static bool takes(const StoredParts& parts, const TensorView&) { return parts.has(parts.name() + "_global_scale"); }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView packed = parts.take(codes(parts.name()));
    return open_nvfp4(parts, packed, 1 / one_number(parts.take(parts.name() + "_global_scale")));
  }
};

}  // namespace moe::inline MOE_ABI::detail
