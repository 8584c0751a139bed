// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/stated_storage.hpp"
#include "moe/io/families/module_pattern.hpp"
#include "moe/io/file/dtype.hpp"
#include "moe/io/file/json_fields.hpp"

namespace moe::inline MOE_ABI {

/// What a configuration says about the storage of weights. load_moe_block() compares it with the file: matrices of
/// experts are stored as it says, or plainly where not_converted names them. A plain value.
struct Quantisation {
  QuantMethod method = QuantMethod::Unstated;
  std::optional<Dtype> codes = {};  ///< of FP8, where it is said
  /// Modules stored plainly: dotted names, `*` stands for any characters of a part; or "re:" and an expression as
  /// Python's re.match takes it, see detail::ModulePattern.
  std::vector<std::string> not_converted = {};
  std::vector<std::string> converted = {};  ///< the only ones that are not, in the same way; all where there are none
  StatedStorage storage = {};               ///< what shapes leave open

  /// The same of some modules, named as in `converted`, where it is another.
  struct Part {
    std::vector<std::string> modules = {};
    StatedStorage storage = {};

    friend bool operator==(const Part&, const Part&) = default;
  };
  std::vector<Part> parts = {};

  /// What is left open of a tensor: as the part says that lists its module by its whole name, else the first that
  /// names it, else as `storage` says. O(length of the lists).
  const StatedStorage& storage_of(std::string_view tensor) const;

  /// Whether a tensor belongs to a module that is stored plainly: the parts of a listed name, between its dots, are
  /// parts of the tensor's name, one after the other. So "gate" is "model.layers.0.mlp.gate.weight", and no
  /// "gate_proj". O(length of the list * length of the name).
  bool leaves_out(std::string_view tensor) const;

  friend bool operator==(const Quantisation&, const Quantisation&) = default;
};

/// The method in words: "fp8 in blocks with scales".
constexpr std::string_view method_text(QuantMethod method) {
  switch (method) {
    case QuantMethod::Fp8Blocks:
      return "fp8 in blocks with scales";
    case QuantMethod::Fp8:
      return "fp8 with scales of matrices or outputs";
    case QuantMethod::Mxfp4:
      return "mxfp4";
    case QuantMethod::Nvfp4:
      return "nvfp4";
    case QuantMethod::PackedInts:
      return "packed integers";
    case QuantMethod::Ints:
      return "integers of 8 bits";
    case QuantMethod::Gptq:
      return "gptq";
    case QuantMethod::Awq:
      return "awq";
    case QuantMethod::GgufBlocks:
      return "blocks of GGUF";
    case QuantMethod::Unstated:
      break;
  }
  return "nothing";
}

namespace detail {

inline constexpr std::string_view kExpression = "re:";

/// The module of a weight: "mlp.up_proj" of "mlp.up_proj.weight".
inline std::string_view module_of_weight(std::string_view tensor) {
  constexpr std::string_view kWeight = ".weight";
  return tensor.substr(0, tensor.size() - (tensor.ends_with(kWeight) ? kWeight.size() : 0));
}
inline bool lists_module_of(const std::vector<std::string>& entries, std::string_view tensor) {
  return std::find(entries.begin(), entries.end(), module_of_weight(tensor)) != entries.end();
}

/// Whether an entry of a list of modules is about a tensor.
inline bool names_module_of(std::string_view entry, std::string_view tensor) {
  if (entry.starts_with(kExpression)) {
    const auto pattern = ModulePattern::compile(entry.substr(kExpression.size()));
    return pattern && pattern->matches_begin(module_of_weight(tensor));
  }
  if (entry.empty()) return false;
  for (std::string_view rest = tensor; !rest.empty(); take_part(rest))
    if (begins_with_parts(rest, entry)) return true;
  return false;
}

inline bool any_names_module_of(const std::vector<std::string>& entries, std::string_view tensor) {
  if (lists_module_of(entries, tensor)) return true;  // there may be one for every matrix
  return std::any_of(entries.begin(), entries.end(),
                     [&](const std::string& entry) { return names_module_of(entry, tensor); });
}

}  // namespace detail

inline bool Quantisation::leaves_out(std::string_view tensor) const {
  if (!converted.empty() && !detail::any_names_module_of(converted, tensor)) return true;
  return detail::any_names_module_of(not_converted, tensor);
}

inline const StatedStorage& Quantisation::storage_of(std::string_view tensor) const {
  for (const Part& part : parts)
    if (detail::lists_module_of(part.modules, tensor)) return part.storage;
  for (const Part& part : parts)
    if (detail::any_names_module_of(part.modules, tensor)) return part.storage;
  return storage;
}

namespace detail {

/// Modules that a list names. Throws naming the field for an expression that is not read.
inline void read_modules(const JsonFields& fields, const std::string& list, std::vector<std::string>& modules) {
  for (std::string& module : fields.texts(list)) {
    if (module.starts_with(kExpression) && !ModulePattern::compile(std::string_view(module).substr(kExpression.size())))
      fields.refuse(list, module, "expressions of characters, classes, groups, '|', '*', '+' and '?'");
    modules.push_back(std::move(module));
  }
  constexpr std::size_t kMostModules = std::size_t{1}
                                       << 16;  // each is compared with every tensor; models have thousands
  if (modules.size() > kMostModules)
    fail_environment(fields.label(), ": ", modules.size(), " modules in ", list, ", expected at most ", kMostModules);
}

/// Sizes [outputs, inputs] of blocks that share a scale.
inline void read_blocks(const JsonFields& fields, const std::string& name, StatedStorage& storage) {
  const std::vector<Index> sizes = fields.integers(name);
  if (sizes.size() != 2 || sizes[0] == 0 || sizes[1] == 0)
    fail_environment(fields.label(), ": ", name, " is [", join(sizes, ", "), "], expected two sizes above 0");
  storage.block_outputs = sizes[0];
  storage.block_inputs = sizes[1];
}

/// "fp8": in blocks where their size is said, else with a scale per matrix or output.
inline Quantisation read_fp8(const JsonFields& fields) {
  Quantisation result{.method = QuantMethod::Fp8};
  if (fields.has("weight_block_size")) {
    result.method = QuantMethod::Fp8Blocks;
    read_blocks(fields, "weight_block_size", result.storage);
  }
  if (!fields.has("fmt")) return result;
  const std::string format = fields.text("fmt");  // "e4m3", "float8_e4m3fn"
  if (format.find("e4m3") != format.npos)
    result.codes = Dtype::F8_E4M3;
  else if (format.find("e5m2") != format.npos)
    result.codes = Dtype::F8_E5M2;
  else
    fields.refuse("fmt", format, "e4m3 or e5m2");
  return result;
}

inline Quantisation read_mxfp4(const JsonFields&) { return {.method = QuantMethod::Mxfp4}; }

inline Quantisation read_modelopt(const JsonFields& fields) {
  const std::string algorithm = fields.text("quant_algo");
  if (algorithm == "FP8") return {.method = QuantMethod::Fp8, .codes = Dtype::F8_E4M3};
  if (algorithm != "NVFP4" && algorithm != "W4A16_NVFP4") fields.refuse("quant_algo", algorithm, "FP8 or NVFP4");
  if (fields.integer("group_size", 16) != 16) fields.refuse("group_size", fields.integer("group_size"), "16 of NVFP4");
  return {.method = QuantMethod::Nvfp4};
}

/// Modules with settings of their own: "-:" and an expression are those that are left out.
inline void read_dynamic(const JsonFields& fields, Quantisation& result) {
  if (!fields.has("dynamic")) return;
  for (const std::string& rule : fields.part("dynamic").names()) {
    const std::string entry = std::string(kExpression) + (rule.starts_with("-:") ? rule.substr(2) : "");
    if (!rule.starts_with("-:") || !ModulePattern::compile(std::string_view(entry).substr(kExpression.size())))
      fields.refuse("dynamic", rule, "rules that leave out modules, '-:' and an expression");
    result.not_converted.push_back(entry);
  }
}

inline Quantisation read_gptq(const JsonFields& fields) {
  Quantisation result{.method = QuantMethod::Gptq};
  const Index bits = fields.integer("bits");
  if (bits != 4 && bits != 8) fields.refuse("bits", bits, "4 or 8");
  result.storage.bits = static_cast<int>(bits);
  result.storage.group = fields.integer_or_all("group_size");
  const char* const name = fields.has("checkpoint_format") ? "checkpoint_format" : "format";
  const std::string format = fields.text(name, "gptq");
  if (format != "gptq" && format != "gptq_v2") fields.refuse(name, format, "gptq or gptq_v2");
  result.storage.zeros_less_one = format == "gptq";
  fields.require("pack_dtype", "int32");
  read_dynamic(fields, result);
  return result;
}

inline Quantisation read_awq(const JsonFields& fields) {
  Quantisation result{.method = QuantMethod::Awq};
  const std::string bits = fields.has("w_bit") ? "w_bit" : "bits";
  if (fields.integer(bits) != 4) fields.refuse(bits, fields.integer(bits), "4");
  result.storage.bits = 4;
  result.storage.group = fields.integer_or_all(fields.has("q_group_size") ? "q_group_size" : "group_size");
  const std::string version = fields.text("version", "gemm");
  if (version != "gemm" && version != "GEMM") fields.refuse("version", version, "gemm");
  return result;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
