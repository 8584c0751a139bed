// SPDX-License-Identifier: MIT
#pragma once

#include "moe/io/checkpoint/packed_ints.hpp"

// Integers as GPTQ and AWQ store them: a row per input, words in the tensors of the module ("up_proj.qweight").
namespace moe::inline MOE_ABI::detail {

/// Words `tensor` [rows, columns] of I32.
inline void require_words(const TensorView& tensor, const std::vector<Index>& shape) {
  require_stored_type(tensor, tensor.dtype == Dtype::I32, "I32");
  require_stored_shape(tensor, shape);
}

/// `scales` [groups, out].
inline TensorView take_group_scales(StoredParts& parts) {
  const TensorView scales = parts.take(parts.module() + "scales");
  require_stored_type(scales, is_floating(scales.dtype), "a floating-point type");
  if (scales.shape.size() != 2) refuse_stored_shape(scales, "[groups, outputs]");
  return scales;
}
inline ScaleGrid grid_of_groups(const TensorView& scales, Index group) {
  const Index outputs = scales.shape[1];
  return {.scales = scales,
          .rows = std::max<Index>(1, outputs),
          .block_columns = group,
          .row_stride = 1,
          .column_stride = outputs};
}

/// GPTQ: `qweight` I32 [in * bits / 32, out], packed along the inputs; `qzeros` I32 [groups, out * bits / 32], packed
/// along the outputs, less 1 (modulo 2^bits) in its first format; `scales` [groups, out]; perhaps `g_idx` I32 [in].
/// w = (q - zero) * scale (arXiv:2210.17323, in the files of AutoGPTQ and GPTQModel).
/// Many files have a bias of zeros for modules without one: it belongs to the weight then, and is not read.
struct GptqLayout {
  static std::string codes(const std::string& name) { return StoredParts::module_of(name) + "qweight"; }
  static bool takes(const StoredParts&, const TensorView&) { return true; }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    const TensorView qweight = parts.take(codes(parts.name())), scales = take_group_scales(parts);
    const TensorView qzeros = parts.take(parts.module() + "qzeros");
    const Index groups = scales.shape[0], outputs = scales.shape[1];
    const int bits = bits_of(qzeros, groups, outputs);
    if (qweight.shape.size() != 2) refuse_stored_shape(qweight, "[inputs * bits / 32, outputs]");
    require_words(qweight, {qweight.shape[0], outputs});
    require_bits(parts, qweight, bits);
    const Index inputs = times_extent(qweight, qweight.shape[0], 32 / bits);
    const Index group = group_size(parts, scales, groups, inputs);
    const std::string g_idx = parts.module() + "g_idx";
    if (parts.has(g_idx)) require_ordered(parts.take(g_idx), inputs, group);
    take_empty_bias(parts);
    return std::make_unique<IntStorage>(
        IntStorage::Parts{.method = QuantMethod::Gptq,
                          .name = "GPTQ ",
                          .outputs = outputs,
                          .inputs = inputs,
                          .group = group,
                          .codes = {.words = qweight, .bits = bits, .row_stride = 1, .column_stride = outputs},
                          .scales = grid_of_groups(scales, group),
                          .zeros = {.words = qzeros,
                                    .bits = bits,
                                    .along = PackedInts::Along::Rows,
                                    .row_stride = 1,
                                    .column_stride = qzeros.shape[1]},
                          .add_to_zeros = parts.stated().zeros_less_one ? 1u : 0u});
  }

 private:
  static void take_empty_bias(StoredParts& parts) {
    const std::string name = parts.module() + "bias";
    if (!parts.has(name)) return;
    const TensorView bias = parts.look_at(name);
    const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
    if (std::all_of(bias.bytes.begin(), bias.bytes.end(), is_zero)) (void)parts.take(name);
  }
  static int bits_of(const TensorView& qzeros, Index groups, Index outputs) {
    for (const int bits : {4, 8})
      if (outputs % (32 / bits) == 0 && qzeros.shape == std::vector<Index>{groups, outputs / (32 / bits)}) {
        require_words(qzeros, qzeros.shape);
        return bits;
      }
    refuse_stored_shape(qzeros, "[" + std::to_string(groups) + ", " + std::to_string(outputs) +
                                    " / 8] for 4 bits or [" + std::to_string(groups) + ", " + std::to_string(outputs) +
                                    " / 4] for 8");
  }
};

/// AWQ of 4 bits: `qweight` I32 [in, out / 8] and `qzeros` I32 [groups, out / 8], both packed along the outputs: the
/// eight of a word stand in the order 0, 2, 4, 6, 1, 3, 5, 7; `scales` [groups, out]. w = (q - zero) * scale
/// (arXiv:2306.00978, in the files of AutoAWQ, version "gemm").
struct AwqLayout {
  static std::string codes(const std::string& name) { return StoredParts::module_of(name) + "qweight"; }
  /// Words are [in, out / 8] where GPTQ has [in / 8, out].
  static bool takes(const StoredParts& parts, const TensorView& codes) {
    if (!parts.has(parts.module() + "scales")) return false;
    const TensorView scales = parts.look_at(parts.module() + "scales");
    return codes.shape.size() == 2 && scales.shape.size() == 2 && scales.shape[1] > 0 && scales.shape[1] % 8 == 0 &&
           codes.shape[1] == scales.shape[1] / 8;
  }
  static std::unique_ptr<WeightStorage> open(StoredParts& parts) {
    // Output k of a word stands at this place.
    constexpr std::array<std::uint8_t, 8> kPlace{0, 4, 1, 5, 2, 6, 3, 7};
    const TensorView qweight = parts.take(codes(parts.name())), scales = take_group_scales(parts);
    const TensorView qzeros = parts.take(parts.module() + "qzeros");
    const Index groups = scales.shape[0], outputs = scales.shape[1], inputs = qweight.shape[0], words = outputs / 8;
    require_words(qweight, {inputs, words});
    require_words(qzeros, {groups, words});
    require_bits(parts, qweight, 4);
    const Index group = group_size(parts, scales, groups, inputs);
    PackedInts ints{.words = qweight,
                    .along = PackedInts::Along::Rows,
                    .row_stride = 1,
                    .column_stride = words,
                    .place_in_word = kPlace};
    PackedInts zeros = ints;
    zeros.words = qzeros;
    return std::make_unique<IntStorage>(IntStorage::Parts{.method = QuantMethod::Awq,
                                                          .name = "AWQ ",
                                                          .outputs = outputs,
                                                          .inputs = inputs,
                                                          .group = group,
                                                          .codes = ints,
                                                          .scales = grid_of_groups(scales, group),
                                                          .zeros = zeros});
  }
};

}  // namespace moe::inline MOE_ABI::detail
