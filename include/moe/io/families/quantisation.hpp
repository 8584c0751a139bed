// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/checkpoint/stated_storage.hpp"
#include "moe/io/families/module_list.hpp"
#include "moe/io/file/dtype.hpp"
#include "moe/io/file/json_fields.hpp"

namespace moe::inline MOE_ABI {

/// What a configuration says about the storage of weights. load_moe_block() compares it with the file: matrices of
/// experts are stored as it says, or plainly where not_converted names them. A plain value.
struct Quantisation {
  QuantMethod method = QuantMethod::Unstated;
  std::optional<Dtype> codes = {};  ///< of FP8, where it is said
  ModuleList not_converted = {};    ///< modules stored plainly
  ModuleList converted = {};        ///< the only ones that are not; all where there are none
  StatedStorage storage = {};       ///< what shapes leave open

  /// The same of some modules, where it is another.
  struct Part {
    ModuleList modules = {};
    StatedStorage storage = {};

    friend bool operator==(const Part&, const Part&) = default;
  };
  std::vector<Part> parts = {};

  /// What is left open of a tensor: as the part says that lists its module by its whole name, else the first that
  /// names it, else as `storage` says. O(log of the lengths of the lists), where they are names.
  const StatedStorage& storage_of(std::string_view tensor) const;

  /// Whether a tensor belongs to a module that is stored plainly: the parts of a listed name, between its dots, are
  /// parts of the tensor's name, one after the other. So "gate" is "model.layers.0.mlp.gate.weight", and no
  /// "gate_proj". As fast as ModuleList::names_module_of().
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

inline bool Quantisation::leaves_out(std::string_view tensor) const {
  if (!converted.empty() && !converted.names_module_of(tensor)) return true;
  return not_converted.names_module_of(tensor);
}

inline const StatedStorage& Quantisation::storage_of(std::string_view tensor) const {
  for (const Part& part : parts)
    if (part.modules.has_whole_name_of(tensor)) return part.storage;
  for (const Part& part : parts)
    if (part.modules.names_module_of(tensor)) return part.storage;
  return storage;
}

namespace detail {

/// What lists of modules have together: names are sorted, others compared with every tensor.
class ListedModules {
 public:
  /// Modules that a list names. Throws naming the field for an expression that is not read, and too many.
  void read(const JsonFields& fields, const std::string& list, std::vector<std::string>& modules) {
    for (std::string& module : fields.texts(list)) {
      count(fields, list, module);
      if (module.starts_with(kExpression) && !ModulePattern::compile(std::string_view(module).substr(3)))
        fields.refuse(list, module, "expressions of characters, classes, groups, '|', '*', '+' and '?'");
      modules.push_back(std::move(module));
    }
  }
  void count(const JsonFields& fields, const std::string& list, std::string_view module) {
    constexpr std::size_t kMostPatterns = 4096, kMostCharacters = std::size_t{1} << 17;
    if (++modules_ > kMostModules)
      fail_environment(fields.label(), ": more than ", kMostModules, " modules with ", list, ", expected at most that");
    if (!module.starts_with(kExpression) && module.find('*') == module.npos) return;
    characters_ += module.size();
    if (++patterns_ > kMostPatterns || characters_ > kMostCharacters)
      fail_environment(fields.label(), ": ", patterns_, " expressions of modules with ", list, ", of ", characters_,
                       " characters, expected at most ", kMostPatterns, " of ", kMostCharacters);
  }

 private:
  std::size_t modules_ = 0, patterns_ = 0, characters_ = 0;
};

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
  ListedModules listed;
  std::vector<std::string> modules;
  for (const std::string& rule : fields.part("dynamic").names()) {
    std::string entry = std::string(kExpression) + (rule.starts_with("-:") ? rule.substr(2) : "");
    listed.count(fields, "dynamic", entry);
    if (!rule.starts_with("-:") || !ModulePattern::compile(std::string_view(entry).substr(kExpression.size())))
      fields.refuse("dynamic", rule, "rules that leave out modules, '-:' and an expression");
    modules.push_back(std::move(entry));
  }
  result.not_converted = std::move(modules);
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
