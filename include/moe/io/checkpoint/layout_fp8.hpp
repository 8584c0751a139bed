// SPDX-License-Identifier: MIT
#pragma once

#include "moe/io/checkpoint/layout_plain.hpp"
#include "moe/io/checkpoint/scale_grid.hpp"

namespace moe::inline MOE_ABI::detail {

/// `name` [.., out, in] in F8_E4M3 or F8_E5M2, times the scales in `name_scale_inv` (DeepSeek-V3, arXiv:2412.19437,
/// section 3.3) or `name_scale` (compressed-tensors, modelopt): a number [] or [1], one per output [.., out] or
/// [.., out, 1] under the second name, one per block [.., ceil(out/a), ceil(in/b)] under both.
class Fp8Storage final : public PlainStorage {
 public:
  /// Whether a scale may be of an output.
  enum class PerOutput { Refused, Allowed };

  Fp8Storage(const TensorView& tensor, const TensorView& scales, PerOutput per_output, const StatedStorage& stated)
      : PlainStorage(tensor) {
    require_stored_type(tensor, dtype_size(tensor.dtype) == 1, "F8_E4M3 or F8_E5M2, as it has a scale");
    if (shape.size() < 2) refuse_stored_shape(tensor, "at least two extents, as it has a scale");
    require_scale_type(scales);
    has_scales = true;
    place_scales(scales, per_output, stated);
  }

  std::optional<WeightFormat> kept_format() const override {
    const bool is_one_group = grid_.block_columns >= columns();
    if (!is_one_group && grid_.block_columns % 8 != 0) return std::nullopt;
    const bool has_group = method == QuantMethod::Fp8Blocks && grid_.block_columns % 8 == 0;
    return WeightFormat{
        .code = code_of(codes.dtype), .scale = scale_type(grid_.scales), .group = has_group ? grid_.block_columns : 0};
  }
  GroupNumbers numbers(Index row, Index column) const override { return {.scale = grid_.at(row, column)}; }
  void read_row(Index row, Index column, std::span<float> values) const override {
    grid_.for_each_run(row, column, std::ssize(values), [&](Index begin, Index count, Index, float scale) {
      const std::span<float> part =
          values.subspan(static_cast<std::size_t>(begin - column), static_cast<std::size_t>(count));
      PlainStorage::read(row * columns() + begin, part);
      scale_values(part, scale);
    });
  }
  void read(Index first, std::span<float> values) const override { WeightStorage::read(first, values); }

 private:
  void place_scales(const TensorView& scales, PerOutput per_output, const StatedStorage& stated) {
    const Index rows = *(shape.end() - 2), across = std::max<Index>(1, columns());
    const std::vector<Index> lead(shape.begin(), shape.end() - 2);
    const auto with = [&](std::vector<Index> extents) {
      extents.insert(extents.begin(), lead.begin(), lead.end());
      return extents;
    };
    method = QuantMethod::Fp8;
    if (scales.shape.empty() || scales.shape == std::vector<Index>{1}) {
      grid_ = {.scales = scales, .rows = std::max<Index>(1, rows), .block_columns = across, .is_e8m0 = is_e8m0(scales)};
      format += " x tensor";
      return;
    }
    if (per_output == PerOutput::Allowed && (scales.shape == with({rows}) || scales.shape == with({rows, 1}))) {
      grid_ = ScaleGrid::of_blocks(scales, rows, across, 1, across);
      format += " x output";
      return;
    }
    const Index a = stated.block_outputs, b = stated.block_inputs;
    const std::vector<Index> blocks = with({num_parts(rows, a), num_parts(columns(), b)});
    if (scales.shape != blocks)
      refuse_stored_shape(scales, (per_output == PerOutput::Allowed ? "[], [1], [" + join(with({rows}), ", ") + "], [" +
                                                                          join(with({rows, 1}), ", ") + "] or ["
                                                                    : std::string("[")) +
                                      join(blocks, ", ") + "]");
    method = QuantMethod::Fp8Blocks;
    grid_ = ScaleGrid::of_blocks(scales, rows, columns(), a, b);
    format += " x " + (a == b ? "" : std::to_string(a) + " x ") + std::to_string(b);
  }

  ScaleGrid grid_;
};

struct Fp8Layout {
  static std::string codes(const std::string& name) { return name; }
  static bool takes(const StoredParts& parts, const TensorView& codes) {
    const bool is_other = codes.dtype == Dtype::U8 || codes.dtype == Dtype::I8;  // of other layouts
    return !is_other && (parts.has(parts.name() + "_scale_inv") || parts.has(parts.name() + "_scale"));
  }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const bool is_inverse = parts.has(parts.name() + "_scale_inv");
    const TensorView codes = parts.take(parts.name());
    const TensorView scales = parts.take(parts.name() + (is_inverse ? "_scale_inv" : "_scale"));
    return std::make_unique<Fp8Storage>(
        codes, scales, is_inverse ? Fp8Storage::PerOutput::Refused : Fp8Storage::PerOutput::Allowed, parts.stated());
  }
};

}  // namespace moe::inline MOE_ABI::detail
