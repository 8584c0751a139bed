// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "moe/layer/adapters.hpp"

// How adapters of experts lie in a directory of Hugging Face's PEFT (https://github.com/huggingface/peft, versions 0.18
// to 0.20), adapter_config.json and adapter_model.safetensors. Experts that are modules have a pair of tensors for each
// of theirs,
//   base_model.model.model.layers.0.mlp.experts.3.down_proj.lora_A.weight   [r, inputs]
//   base_model.model.model.layers.0.mlp.experts.3.down_proj.lora_B.weight   [outputs, r]
// and are named in target_modules. Experts that are one parameter [E, rows, columns] for all (target_parameters) have
// lora_A [E r, ..] with the rows of expert e from e r on, and lora_B [.., r E] whose column j E + e is that of expert
// e, as ParamWrapper.get_delta_weight takes them apart; the wrapper of the first parameter of the module lies inside
// that of the second:
//   base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight    of gate_up_proj
//   base_model.model.model.layers.0.mlp.experts.lora_A.weight               of down_proj
// and without base_layer where there is one. lora_A has the inputs for columns from 0.19.1 on; before, the rows of the
// parameter: of models that store [E, outputs, inputs] (Qwen3, Mixtral) the outputs, so that lora_A is B transposed,
// and lora_B is A; of those that store [E, inputs, outputs] (Llama 4, GPT-OSS) the inputs. Transformers 4 does not say
// that these do (is_transposed), and PEFT from 0.19.1 on then takes outputs for columns: PeftOptions::fused_columns.
namespace moe::inline MOE_ABI {

/// One tensor per expert and matrix, or per matrix.
enum class PeftLayout { PerExpert, Fused };
/// What the columns of lora_A of a fused parameter are: inputs as PEFT has it from 0.19.1 on, or outputs.
enum class FusedColumns { Inputs, Outputs };
/// How the gates and ups of a fused parameter follow each other: all gates first, or in turns (GPT-OSS).
enum class GateUpOrder { GatesFirst, InTurns };
/// Experts with a gate beside the up projection (Glu), or without (Mlp).
enum class PeftExperts { Gated, Plain };
/// What becomes of tensors of other modules, such as those of attention.
enum class OtherModules { Refuse, Ignore };

/// Names in files of PEFT. Of Mixtral's own: experts = "model.layers.{}.block_sparse_moe.experts", gate = "w1", up =
/// "w3", down = "w2".
struct PeftOptions {
  std::string experts = "model.layers.{}.mlp.experts";  ///< the module, {} the number of the layer
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj";
  std::string gate_up = "gate_up_proj";  ///< where fused
  GateUpOrder gate_up_order = GateUpOrder::GatesFirst;
  /// To be written: inputs if nothing is said. To be read: what the peft_version of the file means, if nothing is said.
  std::optional<FusedColumns> fused_columns = {};

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

/// Rows that are gates and ups in turns, gates first; and back.
inline Matrix<float> gates_first(const Matrix<float>& in_turns) {
  Matrix<float> result(in_turns.rows(), in_turns.cols());
  const Index units = in_turns.rows() / 2;
  for (Index u = 0; u < units; ++u)
    for (Index part = 0; part < 2; ++part) result.row(part * units + u) = in_turns.row(2 * u + part);
  return result;
}
inline Matrix<float> gates_in_turns(const Matrix<float>& gates_first) {
  Matrix<float> result(gates_first.rows(), gates_first.cols());
  const Index units = gates_first.rows() / 2;
  for (Index u = 0; u < units; ++u)
    for (Index part = 0; part < 2; ++part) result.row(2 * u + part) = gates_first.row(part * units + u);
  return result;
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
