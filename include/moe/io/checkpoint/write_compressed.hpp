// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/weight_writer.hpp"
#include "moe/io/file/quantised_parameters.hpp"

// The layouts of compressed-tensors (https://github.com/vllm-project/compressed-tensors), which llm-compressor writes,
// and vLLM and transformers read: integers in words, FP8 per output, MXFP4.
namespace moe::inline MOE_ABI {

namespace detail {

/// A config group of compressed-tensors.
inline nlohmann::ordered_json compressed_group(const std::string& format, nlohmann::ordered_json weights,
                                               nlohmann::ordered_json activations,
                                               const std::vector<std::string>& targets) {
  return {{"format", format},
          {"input_activations", std::move(activations)},
          {"output_activations", nullptr},
          {"targets", targets},
          {"weights", std::move(weights)}};
}

/// What compressed-tensors says about weights. Modules are left out by their names, and those below a parent by an
/// expression.
inline nlohmann::ordered_json compressed_statement(const std::string& format, nlohmann::ordered_json groups,
                                                   const PlainModules& plain) {
  nlohmann::ordered_json ignore = nlohmann::ordered_json::array();
  for (const std::string& module : plain.modules) ignore.push_back(module);
  for (const std::string& parent : plain.parents) {
    ignore.push_back(parent);
    std::string expression = "re:";
    for (const char c : parent) expression += c == '.' ? std::string("\\.") : std::string(1, c);
    ignore.push_back(expression + "\\..*");
  }
  return {{"config_groups", std::move(groups)}, {"format", format},           {"global_compression_ratio", nullptr},
          {"ignore", std::move(ignore)},        {"kv_cache_scheme", nullptr}, {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}
/// With one group, of all linear modules.
inline nlohmann::ordered_json compressed_statement(const std::string& format, nlohmann::ordered_json weights,
                                                   nlohmann::ordered_json activations, const PlainModules& plain) {
  return compressed_statement(
      format, {{"group_0", compressed_group(format, std::move(weights), std::move(activations), {"Linear"})}}, plain);
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

/// "pack-quantized": integers of 1 to 8 bits, scales F32, F16 or Bf16, with zero points or without: see
/// PackedIntsLayout; of 3, 5, 6 and 7 bits values lie across words, as compressed-tensors has them since June 2026.
/// Inputs are a multiple of the group, which compressed-tensors finds by dividing them by the number of scales.
/// Zero points must be such as the codes are, -8 to 7 of four bits. vLLM runs experts of 4 and 8 bits, in groups of 32,
/// 64 and 128 and whole outputs, and converts scales to the type of its activations. Scales of round_to_nearest() may
/// be negative, which is a number like others to whoever multiplies.
class PackedIntsWriter final : public WeightWriter {
 public:
  /// Throws std::invalid_argument for other formats.
  explicit PackedIntsWriter(const WeightFormat& format = WeightFormat::int4()) : WeightWriter(format) {
    if ((format.code != WeightCode::Int4 && format.code != WeightCode::Int8) || !detail::is_float_scale(format.scale))
      refuse("format is " + format.name() + ", expected integers with scales of 16 or 32 bits of packed integers");
  }

  std::string name() const override { return "packed integers"; }
  std::vector<Part> parts(const std::string& name, const std::vector<Index>& shape) const override {
    require_shape(name, shape);
    const Index outputs = shape[0], inputs = shape[1], groups = format().num_groups(inputs), group = format().group;
    if (group != 0 && inputs % group != 0)
      refuse("weight " + detail::in_quotes(name) + " has " + std::to_string(inputs) +
             " inputs, expected a multiple of " + std::to_string(group) + " of " + format().name() +
             ", or a group of all inputs");
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
    return detail::compressed_statement(kFormat, {{"group_0", group({"Linear"})}}, plain);
  }
  /// The part of a statement about modules of this format: their names, or classes.
  nlohmann::ordered_json group(const std::vector<std::string>& targets) const {
    return detail::compressed_group(kFormat, detail::compressed_weights(bits(), "int", format()), nullptr, targets);
  }

  static constexpr const char* kFormat = "pack-quantized";

 private:
  int bits() const { return format().value_bits(); }
  Index words(Index codes) const { return (codes * bits() + 31) / 32; }

  /// Codes in two's complement become those of 0 to 2^bits - 1; what fills a word is 0.
  std::vector<std::byte> packed(const CodeRows& rows) const {
    if (format().value_bits() != format().code_bits()) return packed_bytes(rows);
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
  /// The same of codes that take a byte and have fewer bits.
  std::vector<std::byte> packed_bytes(const CodeRows& rows) const {
    const Index each = words(rows.inputs);
    const int middle = 1 << (bits() - 1);
    std::vector<std::uint32_t> result(static_cast<std::size_t>(rows.outputs * each));
    for (Index o = 0; o < rows.outputs; ++o)
      for (Index i = 0; i < rows.inputs; ++i) {
        const int code = static_cast<std::int8_t>(rows.bytes.codes[static_cast<std::size_t>(o * rows.inputs + i)]);
        if (code < -middle || code >= middle)
          refuse("code of output " + std::to_string(o) + ", input " + std::to_string(i) + " is " +
                 std::to_string(code) + ", expected " + std::to_string(-middle) + " to " + std::to_string(middle - 1) +
                 " of " + format().name());
        put(std::span(result).subspan(static_cast<std::size_t>(o * each)), 1, i, code + middle);
      }
    const auto bytes = std::as_bytes(std::span(result));
    return {bytes.begin(), bytes.end()};
  }
  /// Integer `place` of words that lie `stride` apart.
  void put(std::span<std::uint32_t> words, Index stride, Index place, int integer) const {
    const Index bit = place * bits(), word = bit / 32 * stride;
    const std::uint64_t shifted = std::uint64_t(static_cast<std::uint32_t>(integer)) << bit % 32;
    words[static_cast<std::size_t>(word)] |= static_cast<std::uint32_t>(shifted);
    if (bit % 32 + bits() > 32)
      words[static_cast<std::size_t>(word + stride)] |= static_cast<std::uint32_t>(shifted >> 32);
  }
  /// Along the outputs, each group in words of its own.
  std::vector<std::byte> packed_zeros(const CodeRows& rows) const {
    const Index groups = rows.num_groups();
    const int middle = 1 << (bits() - 1);
    std::vector<std::uint32_t> packed(static_cast<std::size_t>(words(rows.outputs) * groups));
    for (Index o = 0; o < rows.outputs; ++o)
      for (Index g = 0; g < groups; ++g) {
        const int zero = static_cast<std::int8_t>(rows.bytes.zeros[static_cast<std::size_t>(o * groups + g)]);
        if (zero < -middle || zero >= middle)
          refuse("zero point of output " + std::to_string(o) + " is " + std::to_string(zero) + ", expected " +
                 std::to_string(-middle) + " to " + std::to_string(middle - 1) + " of packed integers");
        put(std::span(packed).subspan(static_cast<std::size_t>(g)), groups, o, zero + middle);
      }
    const auto bytes = std::as_bytes(std::span(packed));
    return {bytes.begin(), bytes.end()};
  }
};

/// "pack-quantized" with a format for each weight, as plans of bits have them: a config group for every format, whose
/// targets are modules by their whole names, or all linear modules where there is one format. compressed-tensors
/// decodes such files whatever the bits are; vLLM has one scheme for all experts of a layer, which it looks up by its
/// own names, not always those of the file: a plan of one format, of 4 or 8 bits, is what it surely finds.
///   std::map<std::string, WeightFormat> formats{{"model.layers.0.mlp.experts.0.up_proj.weight", ..}, ..};
///   const moe::MixedIntsWriter writer(formats);  // see add_formats() for those of a block
class MixedIntsWriter final : public WeightWriter {
 public:
  /// Throws std::invalid_argument for no weights, more than read_moe_config() takes (2^18), and formats that
  /// PackedIntsWriter refuses.
  explicit MixedIntsWriter(std::map<std::string, WeightFormat> formats)
      : WeightWriter(formats.empty() ? WeightFormat::int4() : formats.begin()->second), formats_(std::move(formats)) {
    if (formats_.empty() || formats_.size() > detail::kMostModules)
      refuse(std::to_string(formats_.size()) + " weights, expected 1 to " + std::to_string(detail::kMostModules) +
             " of packed integers");
    for (const auto& [weight, format] : formats_)
      if (std::ranges::find(writers_, format, &WeightWriter::format) == writers_.end()) writers_.emplace_back(format);
    std::ranges::stable_sort(writers_, {}, [](const auto& writer) { return writer.format().value_bits(); });
  }

  std::string name() const override { return "packed integers of several bits"; }
  bool is_uniform() const override { return false; }
  WeightFormat format_of(const std::string& weight) const override {
    const auto found = formats_.find(weight);
    if (found == formats_.end())
      refuse("weight " + detail::in_quotes(weight) + " has no format, expected one for every weight of the experts");
    return found->second;
  }
  std::vector<Part> parts(const std::string& weight, const std::vector<Index>& shape) const override {
    return writer_of(format_of(weight)).parts(weight, shape);
  }
  std::vector<std::vector<std::byte>> encode(const CodeRows& rows) const override {
    return writer_of(rows.format).encode(rows);
  }
  nlohmann::ordered_json statement(const PlainModules& plain) const override {
    if (writers_.size() == 1) return writers_.front().statement(plain);
    constexpr std::string_view kWeight = ".weight";
    nlohmann::ordered_json groups = nlohmann::ordered_json::object();
    for (std::size_t w = 0; w < writers_.size(); ++w) {
      std::vector<std::string> modules;
      for (const auto& [weight, format] : formats_)
        if (format == writers_[w].format())
          modules.push_back(weight.ends_with(kWeight) ? weight.substr(0, weight.size() - kWeight.size()) : weight);
      groups["group_" + std::to_string(w)] = writers_[w].group(modules);
    }
    return detail::compressed_statement(PackedIntsWriter::kFormat, std::move(groups), plain);
  }

 private:
  const PackedIntsWriter& writer_of(const WeightFormat& format) const {
    const auto found = std::ranges::find(writers_, format, &WeightWriter::format);
    if (found == writers_.end()) refuse("codes are " + format.name() + ", expected one of the formats of " + name());
    return *found;
  }

  std::map<std::string, WeightFormat> formats_;
  std::vector<PackedIntsWriter> writers_;
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
