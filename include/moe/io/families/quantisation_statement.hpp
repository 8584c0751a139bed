// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/families/quantisation.hpp"

// The statement about quantised weights of a config.json: which method, and what compressed-tensors says.
namespace moe::inline MOE_ABI::detail {

/// The group of weights of compressed-tensors, "weights" of a config group.
inline std::string strategy_of(const JsonFields& weights) {
  if (weights.has("strategy")) return weights.text("strategy");
  if (!weights.has("group_size")) return "tensor";
  return weights.integer_or_all("group_size") == 0 ? "channel" : "group";
}

inline Quantisation read_float_weights(const JsonFields& weights, const std::string& strategy) {
  const Index bits = weights.integer("num_bits");
  if (bits != 4 && bits != 8) weights.refuse("num_bits", bits, "4 or 8");
  Quantisation result;
  if (bits == 8) {
    result = {.method = QuantMethod::Fp8, .codes = Dtype::F8_E4M3};
    if (strategy == "tensor" || strategy == "channel") return result;
    if (strategy != "block") weights.refuse("strategy", strategy, "tensor, channel or block");
    result.method = QuantMethod::Fp8Blocks;
    read_blocks(weights, "block_structure", result.storage);
    return result;
  }
  const Index group = weights.integer("group_size");
  if (strategy == "tensor_group" && group == 16) return {.method = QuantMethod::Nvfp4};
  if (strategy == "group" && group == 32) return {.method = QuantMethod::Mxfp4};
  weights.refuse("strategy", strategy + " of " + std::to_string(group),
                 "tensor_group of 16 (NVFP4) or group of 32 (MXFP4)");
}

inline Quantisation read_int_weights(const JsonFields& weights, const std::string& strategy, QuantMethod method) {
  const bool is_packed = method == QuantMethod::PackedInts;
  const Index bits = weights.integer("num_bits");
  if (is_packed ? bits < 1 || bits > 8 : bits != 8) weights.refuse("num_bits", bits, is_packed ? "1 to 8" : "8");
  if (strategy != "channel" && strategy != "group") weights.refuse("strategy", strategy, "channel or group");
  Quantisation result{.method = method};
  result.storage.bits = static_cast<int>(bits);
  result.storage.group = strategy == "channel" ? 0 : weights.integer_or_all("group_size");
  return result;
}

/// A config group; its format may be that of all.
inline Quantisation read_config_group(const JsonFields& group, const std::string& format_of_all) {
  const JsonFields weights = group.part("weights");
  const std::string format = group.text("format", format_of_all);
  const std::string type = weights.text("type", "int"), strategy = strategy_of(weights);
  const bool is_naive = format == "naive-quantized";
  if (type == "float") {
    const Quantisation result = read_float_weights(weights, strategy);
    const std::string_view expected = result.method == QuantMethod::Nvfp4   ? "nvfp4-pack-quantized"
                                      : result.method == QuantMethod::Mxfp4 ? "mxfp4-pack-quantized"
                                                                            : "float-quantized";
    const bool is_eight = expected == "float-quantized";
    if (format != expected && !(is_eight && is_naive))
      group.refuse("format", format, "'" + std::string(expected) + "' for these weights");
    return result;
  }
  if (type != "int") weights.refuse("type", type, "int or float");
  if (format != "pack-quantized" && format != "int-quantized" && !is_naive)
    group.refuse("format", format, "'pack-quantized' or 'int-quantized' for integers");
  return read_int_weights(weights, strategy, format == "pack-quantized" ? QuantMethod::PackedInts : QuantMethod::Ints);
}

/// Class names stand for all modules; others are listed, with "re:" for expressions.
inline std::vector<std::string> read_targets(const JsonFields& group, ListedModules& listed, bool& is_all) {
  std::vector<std::string> modules;
  listed.read(group, "targets", modules);
  is_all = modules.empty() || std::find(modules.begin(), modules.end(), "Linear") != modules.end();
  return modules;
}

inline Quantisation read_compressed_tensors(const JsonFields& fields) {
  const std::string status = fields.text("quantization_status", "compressed");
  if (status != "compressed") fields.refuse("quantization_status", status, "'compressed'");
  if (fields.has("transform_config") && !fields.part("transform_config").names().empty())
    fail_environment(fields.label(), ": transform_config is there, expected weights that are not transformed");
  if (fields.has("sparsity_config") && !fields.part("sparsity_config").names().empty())
    fields.part("sparsity_config").require("format", "dense");
  const JsonFields groups = fields.part("config_groups");
  std::optional<std::pair<std::string, Quantisation>> first;
  Quantisation result;
  std::vector<std::string> converted;
  ListedModules listed;
  bool is_of_all = false;
  constexpr std::size_t kMostGroups = 4096;  // all are asked about every tensor
  if (groups.names().size() > kMostGroups)
    fail_environment(groups.label(), " has ", groups.names().size(), " groups, expected at most ", kMostGroups);
  for (const std::string& name : groups.names()) {
    const JsonFields group = groups.part(name);
    Quantisation found = read_config_group(group, fields.text("format", ""));
    bool is_all = false;
    std::vector<std::string> modules = read_targets(group, listed, is_all);
    if (!first) {
      result = found;
      first.emplace(group.label(), found);
    }
    Quantisation as_first = found;
    if (found.method == QuantMethod::PackedInts) as_first.storage = first->second.storage;  // which may differ
    if (as_first != first->second || (is_all && is_of_all && found.storage != result.storage))
      fail_environment(group.label(), " says something else about weights than ", first->first,
                       ", expected one format for all, but for bits and groups of packed integers");
    if (is_all) result.storage = found.storage;
    is_of_all = is_of_all || is_all;
    converted.insert(converted.end(), modules.begin(), modules.end());
    result.parts.push_back({std::move(modules), found.storage});
  }
  if (!first) fail_environment(groups.label(), " is empty, expected a group of weights");
  if (!is_of_all) result.converted = std::move(converted);
  const auto is_other = [&](const Quantisation::Part& part) { return part.storage != result.storage; };
  if (std::none_of(result.parts.begin(), result.parts.end(), is_other)) result.parts.clear();
  return result;
}

/// A method that config.json files name.
struct StatedMethod {
  std::string_view name;
  Quantisation (*read)(const JsonFields& fields);
};
inline constexpr std::array kStatedMethods{StatedMethod{"fp8", &read_fp8},
                                           StatedMethod{"mxfp4", &read_mxfp4},
                                           StatedMethod{"modelopt", &read_modelopt},
                                           StatedMethod{"modelopt_fp4", &read_modelopt},
                                           StatedMethod{"compressed-tensors", &read_compressed_tensors},
                                           StatedMethod{"gptq", &read_gptq},
                                           StatedMethod{"awq", &read_awq}};

inline Quantisation read_statement(const JsonFields& fields) {
  const std::string name = fields.text("quant_method");
  const auto method = std::find_if(kStatedMethods.begin(), kStatedMethods.end(),
                                   [&](const StatedMethod& stated) { return stated.name == name; });
  if (method == kStatedMethods.end()) {
    std::string known;
    for (const StatedMethod& stated : kStatedMethods) known += "'" + std::string(stated.name) + "', ";
    fields.refuse("quant_method", name, known + "or no such field");
  }
  Quantisation result = method->read(fields);
  ListedModules listed;
  std::vector<std::string> modules(result.not_converted.begin(), result.not_converted.end());
  for (const char* list : {"modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules"})
    listed.read(fields, list, modules);
  result.not_converted = std::move(modules);
  return result;
}

/// All that a config.json says about quantised weights, in any of the fields that are in use, on top or in text_config.
/// (torch_dtype is about computing, not about files.) Throws std::runtime_error naming the field for a method that is
/// not read, and where two statements differ.
inline Quantisation read_quantisation(const JsonFields& top) {
  std::optional<std::pair<std::string, Quantisation>> first;
  const auto read = [&](const JsonFields& fields) {
    for (const char* name : {"quantization_config", "compression_config", "quantization"}) {
      if (!fields.has(name)) continue;
      const JsonFields statement = fields.part(name);
      Quantisation found = read_statement(statement);
      if (!first)
        first.emplace(statement.label(), std::move(found));
      else if (first->second != found)
        fail_environment(statement.label(), " says something else about quantised weights than ", first->first);
    }
  };
  read(top);
  if (top.has("text_config")) read(top.part("text_config"));
  return first ? std::move(first->second) : Quantisation{};
}

}  // namespace moe::inline MOE_ABI::detail
