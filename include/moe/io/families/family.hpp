// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "moe/io/families/config_fields.hpp"
#include "moe/io/families/moe_config.hpp"
#include "moe/io/file/json_fields.hpp"

// What the library knows of a family of published models, and what several of them say alike. Each family is in a file
// beside this one, by lineage; families.hpp lists them.
namespace moe::inline MOE_ABI {

/// How the weights of the experts lie in a file. E experts, hidden width F, model width D; [rows, columns] of a tensor,
/// rows being outputs where it is "out x in".
enum class ExpertLayout : std::uint8_t {
  PerExpert,              ///< three (or two) tensors per expert, each out x in
  FusedOutIn,             ///< [E, 2F, D], gates before ups, and [E, D, F]
  FusedApart,             ///< gate [E, F, D], up [E, F, D] and down [E, D, F]
  FusedInOut,             ///< [E, D, 2F], gates before ups, and [E, F, D]
  FusedInterleaved,       ///< [E, D, 2F], gate and up columns in turn, and [E, F, D]; quantised: the next
  FusedInterleavedOutIn,  ///< [E, 2F, D], gate and up rows in turn, and [E, D, F]
  StackedRows,            ///< gate and up [E * F, D] out x in, down [E * F, D] in x out
};

/// Names of the tensors of one MoE block below a prefix. "{}" stands for the number of the layer or of the expert; an
/// empty name for a tensor that the family does not have.
struct FamilyFormat {
  std::string_view prefix = {};
  std::string_view router = {}, router_bias = {}, selection_bias = {};
  Index selection_bias_rank = 1;  ///< [num_logits], or [1, num_logits]
  ExpertLayout layout = ExpertLayout::PerExpert;
  std::string_view gate = {}, up = {}, down = {};  ///< of the experts; fused: `gate` holds both; an MLP has no `gate`
  bool identities_have_gates = false;  ///< fused: `gate` has entries of identity experts, too, which nothing reads
  std::string_view gate_bias = {}, up_bias = {}, down_bias = {};        ///< fused: `up_bias` holds both, but FusedApart
  std::string_view shared_gate = {}, shared_up = {}, shared_down = {};  ///< fused: `shared_gate` holds both, out x in
  std::string_view shared_score = {};
  std::string_view output_bias = {};
  std::string_view neighbour = {};             ///< how names begin that are below the prefix, but no part of the block
  std::array<std::string_view, 2> owned = {};  ///< of a prefix that is a layer: names that begin so are the block's
};

/// A family: what its models are called, what their config.json says, and in which formats their tensors come.
struct Family {
  std::string_view name = {};                        ///< as MoeConfig::family has it
  std::array<std::string_view, 2> model_types = {};  ///< of config.json; the second may be empty
  void (*read)(const detail::JsonFields&, MoeConfig&) = nullptr;
  void (*write)(const MoeConfig&, detail::ConfigFields&) = nullptr;  ///< what `read` would read
  std::span<const FamilyFormat> formats = {};
  bool (*is_meant)(const detail::JsonFields&) = nullptr;  ///< by a config.json without model_type; null for none
  bool has_dense_width = false;  ///< the field for the width of experts is about dense layers, too
};

/// `name` with its "{}" replaced by a number.
inline std::string numbered_name(std::string_view name, Index number) {
  const std::size_t place = name.find("{}");
  if (place == name.npos) return std::string(name);
  return std::string(name.substr(0, place)) + std::to_string(number) + std::string(name.substr(place + 2));
}

namespace detail {

inline constexpr std::string_view kMlp = "model.layers.{}.mlp.", kTextMlp = "model.language_model.layers.{}.mlp.",
                                  kSparse = "model.layers.{}.block_sparse_moe.",
                                  kExpertGate = "experts.{}.gate_proj.weight", kExpertUp = "experts.{}.up_proj.weight",
                                  kExpertDown = "experts.{}.down_proj.weight", kFusedGateUp = "experts.gate_up_proj",
                                  kFusedDown = "experts.down_proj", kBias = "gate.e_score_correction_bias";

/// A format with the names that most families share; the rest is set by name.
constexpr FamilyFormat projections(std::string_view prefix = kMlp) {
  return {.prefix = prefix, .router = "gate.weight", .gate = kExpertGate, .up = kExpertUp, .down = kExpertDown};
}
constexpr FamilyFormat numbered(std::string_view prefix = kSparse) {  // w1, w3, w2
  FamilyFormat format = projections(prefix);
  format.gate = "experts.{}.w1.weight", format.up = "experts.{}.w3.weight", format.down = "experts.{}.w2.weight";
  return format;
}
/// Shared experts in the plural, as DeepSeek has them.
constexpr FamilyFormat with_shared(FamilyFormat format) {
  format.shared_gate = "shared_experts.gate_proj.weight", format.shared_up = "shared_experts.up_proj.weight";
  format.shared_down = "shared_experts.down_proj.weight";
  return format;
}
/// A shared expert in the singular, as Qwen2 has it.
constexpr FamilyFormat with_shared_expert(FamilyFormat format) {
  format.shared_gate = "shared_expert.gate_proj.weight", format.shared_up = "shared_expert.up_proj.weight";
  format.shared_down = "shared_expert.down_proj.weight";
  return format;
}
constexpr FamilyFormat with_bias(FamilyFormat format, std::string_view name = kBias) {
  format.selection_bias = name;
  return format;
}
constexpr FamilyFormat fused(FamilyFormat format, ExpertLayout layout, std::string_view gate_up,
                             std::string_view down) {
  format.layout = layout;
  format.gate = gate_up, format.up = {}, format.down = down;
  return format;
}
/// As transformers 5 saves a block whose published files hold an expert per tensor.
constexpr FamilyFormat resaved(FamilyFormat format, std::string_view prefix = kMlp) {
  format.prefix = prefix;
  return fused(format, ExpertLayout::FusedOutIn, kFusedGateUp, kFusedDown);
}
constexpr FamilyFormat with_router(FamilyFormat format, std::string_view router, std::string_view bias = {}) {
  format.router = router, format.router_bias = bias;
  return format;
}

/// Sizes under the names that differ least.
inline void read_sizes(const JsonFields& fields, const char* hidden, const char* experts, const char* k,
                       MoeConfig& config) {
  config.model_dim = fields.integer("hidden_size");
  config.hidden_dim = fields.integer(hidden);
  config.num_experts = fields.integer(experts);
  config.gate.k = fields.integer(k);
}
inline void write_sizes(const MoeConfig& config, const char* hidden, const char* experts, const char* k,
                        ConfigFields& fields) {
  fields.set("hidden_size", config.model_dim);
  fields.set(hidden, config.hidden_dim);
  fields.set(experts, config.num_experts);
  fields.set(k, config.gate.k);
}
inline void require_silu(const JsonFields& fields) { fields.require("hidden_act", "silu"); }
/// Sizes where Mixtral has them, as do many after it.
inline void read_local(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "num_local_experts", "num_experts_per_tok", config);
  require_silu(fields);
}

inline void write_silu(ConfigFields& fields) { fields.set_missing("hidden_act", "silu"); }
inline void write_local(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "intermediate_size", "num_local_experts", "num_experts_per_tok", fields);
  write_silu(fields);
}

/// Throws unless a flag, if it is there, has this value.
inline void require_flag(const JsonFields& fields, const char* name, bool expected) {
  if (fields.flag(name, expected) != expected) fields.refuse(name, !expected, expected ? "true" : "false");
}

inline void set_norm(bool normalises, MoeConfig& config) {
  config.gate.normalise = normalises ? Normalise::Sum : Normalise::Off;
}
inline bool has_norm(const MoeConfig& config) { return config.gate.normalise != Normalise::Off; }
/// Shared experts side by side, each as wide as one of the others.
inline Index num_shared(const MoeConfig& config) { return config.shared_dim / config.hidden_dim; }

}  // namespace detail

}  // namespace moe::inline MOE_ABI
