// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "moe/layer/adapters.hpp"

// How adapters of experts lie in a directory of Hugging Face's PEFT (https://github.com/huggingface/peft, version
// 0.18), adapter_config.json and adapter_model.safetensors. Experts that are modules have a pair of tensors for each of
// theirs,
//   base_model.model.model.layers.0.mlp.experts.3.down_proj.lora_A.weight   [r, inputs]
//   base_model.model.model.layers.0.mlp.experts.3.down_proj.lora_B.weight   [outputs, r]
// and are named in target_modules. Experts that are one parameter [E, rows, columns] for all (target_parameters) have
// lora_A [E r, rows] with the rows of expert e from e r on, and lora_B [columns, r E] whose column j E + e is that of
// expert e, as ParamWrapper.get_delta_weight takes them apart; the wrapper of the first parameter of the module lies
// inside that of the second:
//   base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight    of gate_up_proj
//   base_model.model.model.layers.0.mlp.experts.lora_A.weight               of down_proj
// and without base_layer where there is one. Models store [E, outputs, inputs] (Qwen3, Mixtral) or [E, inputs, outputs]
// (Llama 4): PEFT takes rows for inputs in both, so that for the former lora_A is B transposed, and lora_B is A.
namespace moe::inline MOE_ABI {

/// One tensor per expert and matrix, or per matrix.
enum class PeftLayout { PerExpert, Fused };
/// What the rows of a fused parameter are.
enum class FusedRows { Outputs, Inputs };
/// Experts with a gate beside the up projection (Glu), or without (Mlp).
enum class PeftExperts { Gated, Plain };
/// What becomes of tensors of other modules, such as those of attention.
enum class OtherModules { Refuse, Ignore };

/// Names in files of PEFT. Of Mixtral's own: experts = "model.layers.{}.block_sparse_moe.experts", gate = "w1", up =
/// "w3", down = "w2".
struct PeftOptions {
  std::string experts = "model.layers.{}.mlp.experts";  ///< the module, {} the number of the layer
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj";
  std::string gate_up = "gate_up_proj";  ///< where fused; gates are its first outputs
  FusedRows fused_rows = FusedRows::Outputs;

  PeftLayout layout = PeftLayout::PerExpert;  ///< to be written; files tell their own
  std::string base_model = {};                ///< base_model_name_or_path, to be written

  PeftExperts kind = PeftExperts::Gated;       ///< to be read
  OtherModules others = OtherModules::Refuse;  ///< to be read

  /// Throws std::invalid_argument unless `experts` has one {} between dots, and no name is empty.
  void validate() const {
    const auto place = experts.find("{}");
    if (place == experts.npos || experts.find("{}", place + 1) != experts.npos)
      fail("moe::PeftOptions: experts is '", experts, "', expected a name with {} for the number of the layer");
    for (const std::string* name : {&gate, &up, &down, &gate_up})
      if (name->empty() || name->find('.') != name->npos)
        fail("moe::PeftOptions: a module is called '", *name, "', expected a name without dots");
  }
};

/// Adapters by the number of the layer.
using AdapterLayers = std::map<Index, Adapters>;

namespace detail {

inline constexpr std::string_view kPeftPrefix = "base_model.model.";
inline constexpr const char* kPeftConfig = "adapter_config.json";
inline constexpr const char* kPeftTensors = "adapter_model.safetensors";

/// A number of at most six digits that `text` begins with, without leading zeros, which is cut off.
inline std::optional<Index> cut_number(std::string_view& text) {
  std::size_t digits = 0;
  Index number = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9' && digits < 7)
    number = 10 * number + (text[digits++] - '0');
  if (digits == 0 || digits > 6 || (digits > 1 && text[0] == '0')) return {};
  text.remove_prefix(digits);
  return number;
}
inline bool cut(std::string_view& text, std::string_view start) {
  if (!text.starts_with(start)) return false;
  text.remove_prefix(start.size());
  return true;
}

/// The module of a layer's experts.
inline std::string peft_module(const PeftOptions& options, Index layer) {
  std::string name = options.experts;
  return name.replace(name.find("{}"), 2, std::to_string(layer));
}

/// Whose tensor it is: of an expert's matrix, or of one of all experts.
struct PeftPlace {
  Index layer = 0, expert = -1;  ///< -1: of all
  std::string module;            ///< name of the matrix; of all: "base_layer" or ""

  auto operator<=>(const PeftPlace&) const = default;
};

/// The place of a tensor, and whether it is lora_A; nothing for tensors of other modules.
struct PeftName {
  PeftPlace place;
  bool is_a = false;
};
inline std::optional<PeftName> parse_peft_name(std::string_view name, const PeftOptions& options) {
  PeftName result;
  const auto gap = options.experts.find("{}");
  if (!cut(name, kPeftPrefix) || !cut(name, std::string_view(options.experts).substr(0, gap))) return {};
  const auto layer = cut_number(name);
  if (!layer || !cut(name, std::string_view(options.experts).substr(gap + 2)) || !cut(name, ".")) return {};
  result.place.layer = *layer;
  for (const char* end : {"lora_A.weight", "lora_B.weight"}) {
    if (!name.ends_with(end)) continue;
    result.is_a = end[5] == 'A';
    name.remove_suffix(std::string_view(end).size());
    if (name.empty()) return result;
    name.remove_suffix(1);  // the dot
    if (const auto expert = cut_number(name)) {
      result.place.expert = *expert;
      if (!cut(name, ".")) return {};
      if (name != options.gate && name != options.up && name != options.down) return {};
    } else if (name != "base_layer") {
      return {};
    }
    result.place.module = std::string(name);
    return result;
  }
  return {};
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
