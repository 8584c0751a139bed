// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/deepseek.hpp"

// Nemotron-H and Nemotron 3: routing of DeepSeek-V3 to experts without a gate, whose ReLU is squared. Models whose
// experts work in a latent space, between two projections, are refused.
namespace moe::inline MOE_ABI::detail {

/// The shared expert is as wide as a field of its own says, or that times their number, according to whom one asks
/// (transformers main at 008d9e95; vLLM): with one it is the same.
inline void read_nemotron(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", config);
  if (fields.has("moe_latent_size"))
    fields.refuse("moe_latent_size", fields.integer("moe_latent_size"), "null: no latent space");
  if (const Index count = fields.integer("n_shared_experts", 1); count != 1)
    fields.refuse("n_shared_experts", count, "1");
  require_flag(fields, "mlp_bias", false);
  fields.require("mlp_hidden_act", "relu2");
  config.shared_dim = fields.integer("moe_shared_expert_intermediate_size");
  config.gate.scale = fields.number("routed_scaling_factor", 1);
  config.expert = ExpertKind::SquaredReluPlain;
  read_v3_routing(fields, config);
}

inline void write_nemotron(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", fields);
  fields.set_missing("n_shared_experts", 1);
  fields.set_missing("mlp_hidden_act", "relu2");
  fields.set("moe_shared_expert_intermediate_size", config.shared_dim);
  fields.set("routed_scaling_factor", config.gate.scale);
  write_v3_routing(config, fields);
}

constexpr FamilyFormat nemotron_names(std::string_view prefix) {
  FamilyFormat format = deepseek_v3_names(prefix);
  format.gate = format.shared_gate = {};
  return format;
}
constexpr FamilyFormat resaved_nemotron() {
  FamilyFormat format = nemotron_names("model.layers.{}.mixer.");
  format.layout = ExpertLayout::FusedOutIn;
  format.up = "experts.up_proj", format.down = kFusedDown;
  return format;
}
inline constexpr std::array kNemotronFormats{nemotron_names("backbone.layers.{}.mixer."), resaved_nemotron()};
inline constexpr Family kNemotron{.name = "nemotron_h",
                                  .model_types = {"nemotron_h"},
                                  .read = read_nemotron,
                                  .write = write_nemotron,
                                  .formats = kNemotronFormats};

}  // namespace moe::inline MOE_ABI::detail
