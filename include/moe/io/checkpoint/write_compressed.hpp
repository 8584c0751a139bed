// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "moe/io/checkpoint/weight_writer.hpp"
#include "moe/io/file/quantised_parameters.hpp"

// The layouts of compressed-tensors (https://github.com/vllm-project/compressed-tensors), which llm-compressor writes,
// and vLLM and transformers read: integers in words, FP8 per output, MXFP4.
namespace moe::inline MOE_ABI {

namespace detail {

/// What compressed-tensors says about weights. Modules are left out by their names, and those below a parent by an
/// expression.
inline nlohmann::ordered_json compressed_statement(const std::string& format, nlohmann::ordered_json weights,
                                                   nlohmann::ordered_json activations, const PlainModules& plain) {
  nlohmann::ordered_json ignore = nlohmann::ordered_json::array();
  for (const std::string& module : plain.modules) ignore.push_back(module);
  for (const std::string& parent : plain.parents) {
    ignore.push_back(parent);
    std::string expression = "re:";
    for (const char c : parent) expression += c == '.' ? std::string("\\.") : std::string(1, c);
    ignore.push_back(expression + "\\..*");
  }
  const nlohmann::ordered_json group = {{"format", format},
                                        {"input_activations", std::move(activations)},
                                        {"output_activations", nullptr},
                                        {"targets", {"Linear"}},
                                        {"weights", std::move(weights)}};
  return {{"config_groups", {{"group_0", group}}}, {"format", format},           {"global_compression_ratio", nullptr},
          {"ignore", std::move(ignore)},           {"kv_cache_scheme", nullptr}, {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

/// A group 0 is one of all inputs: "channel".
inline nlohmann::ordered_json compressed_weights(int bits, const char* type, const WeightFormat& format) {
  const bool is_channel = format.group == 0;
  return {{"actorder", nullptr},
          {"block_structure", nullptr},
          {"dynamic", false},
          {"group_size", is_channel ? nlohmann::ordered_json() : nlohmann::ordered_json(format.group)},
          {"num_bits", bits},
          {"observer", "minmax"},
          {"observer_kwargs", nlohmann::ordered_json::object()},
          {"strategy", is_channel ? "channel" : "group"},
          {"symmetric", !format.has_zero_points},
          {"type", type}};
}

inline bool is_float_scale(ScaleType scale) {
  return scale == ScaleType::F32 || scale == ScaleType::F16 || scale == ScaleType::Bf16;
}

}  // namespace detail

/// "pack-quantized": Int4 or Int8, any group, scales F32, F16 or Bf16, with zero points or without: see
/// PackedIntsLayout. Zero points must be such as the codes are, -8 to 7 of four bits. vLLM takes groups of 32, 64 and
/// 128 and whole outputs, and scales in the type of its activations, to which it converts.
class PackedIntsWriter final : public WeightWriter {
 public:
  /// Throws std::invalid_argument for other formats.
  explicit PackedIntsWriter(const WeightFormat& format = WeightFormat::int4()) : WeightWriter(format) {
    if ((format.code != WeightCode::Int4 && format.code != WeightCode::Int8) || !detail::is_float_scale(format.scale))
      refuse("format is " + format.name() + ", expected int4 or int8 with scales of 16 or 32 bits of packed integers");
  }

  std::string name() const override { return "packed integers"; }
  std::vector<Part> parts(const std::string& name, const std::vector<Index>& shape) const override {
    require_shape(name, shape);
    const Index outputs = shape[0], inputs = shape[1], groups = format().num_groups(inputs);
    std::vector<Part> result{
        {name + "_packed", {.dtype = Dtype::I32, .shape = {outputs, words(inputs)}}},
        {name + "_scale", {.dtype = detail::dtype_of_scale(format().scale), .shape = {outputs, groups}}},
        {name + "_shape", {.dtype = Dtype::I64, .shape = {2}}}};
    if (format().has_zero_points)
      result.push_back({name + "_zero_point", {.dtype = Dtype::I32, .shape = {words(outputs), groups}}});
    return result;
  }
  std::vector<std::vector<std::byte>> encode(const CodeRows& rows) const override {
    require_rows(rows);
    const std::int64_t shape[] = {rows.outputs, rows.inputs};
    const auto* const begin = reinterpret_cast<const std::byte*>(shape);
    std::vector<std::vector<std::byte>> result{packed(rows), rows.bytes.scales, {begin, begin + sizeof shape}};
    if (format().has_zero_points) result.push_back(packed_zeros(rows));
    return result;
  }
  nlohmann::ordered_json statement(const PlainModules& plain) const override {
    return detail::compressed_statement("pack-quantized", detail::compressed_weights(bits(), "int", format()), nullptr,
                                        plain);
  }

 private:
  int bits() const { return format().code_bits(); }
  Index words(Index codes) const { return (codes * bits() + 31) / 32; }

  /// Codes in two's complement become those of 0 to 2^bits - 1; what fills a word is 0.
  std::vector<std::byte> packed(const CodeRows& rows) const {
    const std::byte flip = bits() == 4 ? std::byte{0x88} : std::byte{0x80};
    const Index from = rows.bytes_of_row(), to = 4 * words(rows.inputs);
    std::vector<std::byte> result(static_cast<std::size_t>(rows.outputs * to));
    for (Index o = 0; o < rows.outputs; ++o) {
      std::byte* const row = result.data() + o * to;
      for (Index i = 0; i < from; ++i) row[i] = rows.bytes.codes[static_cast<std::size_t>(o * from + i)] ^ flip;
      if (bits() == 4 && rows.inputs % 2 != 0) row[from - 1] &= std::byte{0x0F};
    }
    return result;
  }
  /// Along the outputs: word w of a group has those of outputs [w * 32 / bits, ..).
  std::vector<std::byte> packed_zeros(const CodeRows& rows) const {
    const Index groups = rows.num_groups(), each = 32 / bits();
    const int middle = 1 << (bits() - 1);
    std::vector<std::uint32_t> packed(static_cast<std::size_t>(words(rows.outputs) * groups));
    for (Index o = 0; o < rows.outputs; ++o)
      for (Index g = 0; g < groups; ++g) {
        const int zero = static_cast<std::int8_t>(rows.bytes.zeros[static_cast<std::size_t>(o * groups + g)]);
        if (zero < -middle || zero >= middle)
          refuse("zero point of output " + std::to_string(o) + " is " + std::to_string(zero) + ", expected " +
                 std::to_string(-middle) + " to " + std::to_string(middle - 1) + " of packed integers");
        packed[static_cast<std::size_t>(o / each * groups + g)] |= static_cast<std::uint32_t>(zero + middle)
                                                                   << (o % each * bits());
      }
    const auto bytes = std::as_bytes(std::span(packed));
    return {bytes.begin(), bytes.end()};
  }
};

/// "float-quantized" with a scale per output: E4M3, group 0, scales F32, F16 or Bf16: `name`, `name_scale` [out, 1].
/// The statement asks for activations rounded to FP8 per token, without which vLLM has no such experts (the scheme
/// FP8_DYNAMIC of llm-compressor); moe does not round them.
class Fp8OutputsWriter final : public WeightWriter {
 public:
  /// Throws std::invalid_argument for other formats.
  explicit Fp8OutputsWriter(const WeightFormat& format = WeightFormat::fp8(0)) : WeightWriter(format) {
    if (format.code != WeightCode::E4M3 || format.group != 0 || !detail::is_float_scale(format.scale))
      refuse("format is " + format.name() + ", expected fp8-g0 with scales of 16 or 32 bits of FP8 per output");
  }

  std::string name() const override { return "FP8 per output"; }
  std::vector<Part> parts(const std::string& name, const std::vector<Index>& shape) const override {
    require_shape(name, shape);
    return {{name, {.dtype = Dtype::F8_E4M3, .shape = shape}},
            {name + "_scale", {.dtype = detail::dtype_of_scale(format().scale), .shape = {shape[0], 1}}}};
  }
  std::vector<std::vector<std::byte>> encode(const CodeRows& rows) const override {
    require_rows(rows);
    return {rows.bytes.codes, rows.bytes.scales};
  }
  nlohmann::ordered_json statement(const PlainModules& plain) const override {
    const nlohmann::ordered_json activations = {{"dynamic", true},     {"num_bits", 8},     {"observer", nullptr},
                                                {"strategy", "token"}, {"symmetric", true}, {"type", "float"}};
    return detail::compressed_statement("float-quantized", detail::compressed_weights(8, "float", format()),
                                        activations, plain);
  }
};

/// "mxfp4-pack-quantized": see MxPackedLayout. Inputs are a multiple of 32.
class MxPackedWriter final : public WeightWriter {
 public:
  MxPackedWriter() : WeightWriter(WeightFormat::mxfp4()) {}

  std::string name() const override { return "packed MXFP4"; }
  std::vector<Part> parts(const std::string& name, const std::vector<Index>& shape) const override {
    require_shape(name, shape);
    const Index group = format().group;
    if (shape[1] % group != 0)
      refuse("weight " + detail::in_quotes(name) + " has " + std::to_string(shape[1]) +
             " inputs, expected a multiple of 32 of MXFP4");
    return {{name + "_packed", {.dtype = Dtype::U8, .shape = {shape[0], shape[1] / 2}}},
            {name + "_scale", {.dtype = Dtype::U8, .shape = {shape[0], shape[1] / group}}}};
  }
  std::vector<std::vector<std::byte>> encode(const CodeRows& rows) const override {
    require_rows(rows);
    return {rows.bytes.codes, rows.bytes.scales};
  }
  nlohmann::ordered_json statement(const PlainModules& plain) const override {
    nlohmann::ordered_json weights = detail::compressed_weights(4, "float", format());
    weights["scale_dtype"] = "torch.uint8";
    return detail::compressed_statement("mxfp4-pack-quantized", std::move(weights), nullptr, plain);
  }
};

}  // namespace moe::inline MOE_ABI
