// SPDX-License-Identifier: MIT
#pragma once

#include "moe/io/checkpoint/packed_ints.hpp"

// Integers as compressed-tensors stores them.
namespace moe::inline MOE_ABI::detail {

/// "pack-quantized": `name_packed` I32 [out, ceil(in * bits / 32)], value k of a row at its bits [k * bits, ..),
/// stored plus 2^(bits - 1); `name_scale` [out, groups]; `name_shape` [2]: out, in; perhaps `name_zero_point` I32
/// [ceil(out * bits / 32), groups], packed along the outputs, and `name_g_idx` [in]. Of 3, 5, 6 and 7 bits older files
/// have floor(32 / bits) values in every word (https://github.com/vllm-project/compressed-tensors/pull/732), which the
/// number of words tells, else that of zero points; where both have as many, they are taken to lie across words.
struct PackedIntsLayout {
  static std::string codes(const std::string& name) { return name + "_packed"; }
  static bool takes(const StoredParts&, const TensorView&) { return true; }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView packed = parts.take(codes(parts.name())), scales = parts.take(parts.name() + "_scale");
    const auto [outputs, inputs] = shape_of(parts.take(parts.name() + "_shape"));
    require_stored_type(packed, packed.dtype == Dtype::I32, "I32");
    const int bits = bits_of(parts, packed, outputs, inputs);
    require_bits(parts, packed, bits);
    const bool is_dense = packed.shape[1] == words_of(inputs, bits, true) &&
                          (packed.shape[1] != words_of(inputs, bits, false) || !has_padded_zeros(parts, outputs, bits));
    require_stored_type(scales, is_floating(scales.dtype), "a floating-point type");
    if (scales.shape.size() != 2 || scales.shape[0] != outputs)
      refuse_stored_shape(scales, "[" + std::to_string(outputs) + ", groups]");
    const Index groups = scales.shape[1], group = group_size(parts, scales, groups, inputs);
    IntStorage::Parts ints{.method = QuantMethod::PackedInts, .outputs = outputs, .inputs = inputs, .group = group};
    ints.codes = {
        .words = packed, .bits = bits, .is_dense = is_dense, .row_stride = packed.shape[1], .column_stride = 1};
    ints.scales = ScaleGrid::of_blocks(scales, outputs, inputs, 1, group);
    if (parts.has(parts.name() + "_zero_point")) {
      const TensorView zeros = parts.take(parts.name() + "_zero_point");
      require_stored_type(zeros, zeros.dtype == Dtype::I32, "I32");
      require_stored_shape(zeros, {words_of(outputs, bits, is_dense), groups});
      ints.zeros = {.words = zeros,
                    .bits = bits,
                    .is_dense = is_dense,
                    .along = PackedInts::Along::Rows,
                    .row_stride = groups,
                    .column_stride = 1};
    }
    if (parts.has(parts.name() + "_g_idx")) require_ordered(parts.take(parts.name() + "_g_idx"), inputs, group);
    return std::make_unique<IntStorage>(std::move(ints));
  }

 private:
  static std::pair<Index, Index> shape_of(const TensorView& tensor) {
    require_stored_type(tensor, tensor.dtype == Dtype::I64 || tensor.dtype == Dtype::I32, "I64");
    require_stored_shape(tensor, {2});
    const std::vector<std::int64_t> extents = read_all<std::int64_t>(tensor);
    if (extents[0] < 0 || extents[1] < 0)
      fail_environment(tensor.label, ": tensor ", in_quotes(tensor.name), " holds [",
                       join({extents[0], extents[1]}, ", "), "], expected extents of a matrix");
    return {extents[0], extents[1]};
  }
  /// That so many integers take.
  static Index words_of(Index count, int bits, bool is_dense) {
    if (32 % bits == 0 || !is_dense) return num_parts(count, 32 / bits);
    return count / 32 * bits + num_parts(count % 32 * bits, 32);
  }
  /// Whether there are zero points in as many words as older files alone have.
  static bool has_padded_zeros(const StoredParts& parts, Index outputs, int bits) {
    const std::string name = parts.name() + "_zero_point";
    if (!parts.has(name) || words_of(outputs, bits, true) == words_of(outputs, bits, false)) return false;
    const TensorView zeros = parts.look_at(name);
    return !zeros.shape.empty() && zeros.shape[0] == words_of(outputs, bits, false);
  }
  /// Those that are stated, if they fit the shape; else of 4 and 8 those that do.
  static int bits_of(const StoredParts& parts, const TensorView& packed, Index outputs, Index inputs) {
    const auto fits = [&](int bits) {
      return packed.shape == std::vector<Index>{outputs, words_of(inputs, bits, true)} ||
             packed.shape == std::vector<Index>{outputs, words_of(inputs, bits, false)};
    };
    const std::optional<int> stated = parts.stated().bits;
    if (stated && *stated >= 1 && *stated <= 8 && *stated != 4 && fits(*stated)) return *stated;
    if (fits(8) && !fits(4)) return 8;
    if (!fits(4) && stated && *stated >= 1 && *stated <= 8 && *stated != 4 && *stated != 8)
      refuse_stored_shape(packed, "[" + std::to_string(outputs) + ", " +
                                      std::to_string(words_of(inputs, *stated, true)) + "] for the " +
                                      std::to_string(*stated) + " bits that are stated, as " +
                                      in_quotes(parts.name() + "_shape") + " says");
    if (!fits(4))
      refuse_stored_shape(packed, "[" + std::to_string(outputs) + ", " + std::to_string(num_parts(inputs, 8)) +
                                      "] for 4 bits or [" + std::to_string(outputs) + ", " +
                                      std::to_string(num_parts(inputs, 4)) + "] for 8, as " +
                                      in_quotes(parts.name() + "_shape") + " says");
    return 4;
  }
};

/// "int-quantized": `name` I8 [out, in], `name_scale` [out, groups], perhaps `name_zero_point` I8 of the same shape.
struct Int8Layout {
  static std::string codes(const std::string& name) { return name; }
  static bool takes(const StoredParts& parts, const TensorView& codes) {
    return codes.dtype == Dtype::I8 && parts.has(parts.name() + "_scale");
  }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView codes = parts.take(parts.name()), scales = parts.take(parts.name() + "_scale");
    if (codes.shape.size() != 2) refuse_stored_shape(codes, "[outputs, inputs]");
    require_bits(parts, codes, 8);
    const Index outputs = codes.shape[0], inputs = codes.shape[1];
    require_stored_type(scales, is_floating(scales.dtype), "a floating-point type");
    if (scales.shape.size() != 2 || scales.shape[0] != outputs)
      refuse_stored_shape(scales, "[" + std::to_string(outputs) + ", groups]");
    const Index groups = scales.shape[1], group = group_size(parts, scales, groups, inputs);
    IntStorage::Parts ints{.method = QuantMethod::Ints, .outputs = outputs, .inputs = inputs, .group = group};
    ints.codes = {.words = codes, .bits = 8, .row_stride = inputs, .column_stride = 1};
    ints.scales = ScaleGrid::of_blocks(scales, outputs, inputs, 1, group);
    if (parts.has(parts.name() + "_zero_point")) {
      const TensorView zeros = parts.take(parts.name() + "_zero_point");
      require_stored_type(zeros, zeros.dtype == Dtype::I8, "I8");
      require_stored_shape(zeros, scales.shape);
      ints.zeros = {.words = zeros, .bits = 8, .row_stride = groups, .column_stride = 1};
    }
    return std::make_unique<IntStorage>(std::move(ints));
  }
};

}  // namespace moe::inline MOE_ABI::detail
