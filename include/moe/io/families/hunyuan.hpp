// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// HunYuan, whose config.json may have a number for every layer, and Hy3, which routes by sigmoids.
namespace moe::inline MOE_ABI::detail {

/// Experts and shared experts are as wide as moe_intermediate_size says, or else intermediate_size.
inline void read_hunyuan(const JsonFields& fields, MoeConfig& config) {
  config.model_dim = fields.integer("hidden_size");
  config.num_experts = fields.integer_of_layers("num_experts");
  config.gate.k = fields.integer_of_layers("moe_topk");
  config.hidden_dim = fields.has("moe_intermediate_size") ? fields.integer_of_layers("moe_intermediate_size")
                                                          : fields.integer("intermediate_size");
  if (fields.flag("use_mixed_mlp_moe", true))
    config.shared_dim =
        config.hidden_dim * (fields.has("num_shared_expert") ? fields.integer_of_layers("num_shared_expert") : 1);
  require_silu(fields);
}

inline void write_hunyuan(const MoeConfig& config, ConfigFields& fields) {
  fields.set("hidden_size", config.model_dim);
  fields.set_of_layers("num_experts", config.num_experts);
  fields.set_of_layers("moe_topk", config.gate.k);
  if (fields.has("moe_intermediate_size") || !fields.has("intermediate_size"))
    fields.set_of_layers("moe_intermediate_size", config.hidden_dim);
  else
    fields.set("intermediate_size", config.hidden_dim);
  fields.set("use_mixed_mlp_moe", config.shared_dim != 0);
  if (config.shared_dim != 0) fields.set_of_layers("num_shared_expert", num_shared(config));
  write_silu(fields);
}
constexpr FamilyFormat hunyuan_names() {
  FamilyFormat format = projections();
  format.router = "gate.wg.weight";
  format.shared_gate = "shared_mlp.gate_proj.weight", format.shared_up = "shared_mlp.up_proj.weight";
  format.shared_down = "shared_mlp.down_proj.weight";
  return format;
}
inline constexpr std::array kHunyuanFormats{hunyuan_names(), resaved(hunyuan_names())};
inline constexpr Family kHunyuan{.name = "hunyuan_v1_moe",
                                 .model_types = {"hunyuan_v1_moe"},
                                 .read = read_hunyuan,
                                 .write = write_hunyuan,
                                 .formats = kHunyuanFormats};

/// Published with flags of what the class in transformers always does (main at 008e5743), and at first with another
/// name for the width of experts.
inline void read_hy3(const JsonFields& fields, MoeConfig& config) {
  const char* width = fields.has("moe_intermediate_size") ? "moe_intermediate_size" : "expert_hidden_dim";
  read_sizes(fields, width, "num_experts", "num_experts_per_tok", config);
  for (const char* name : {"moe_router_use_sigmoid", "moe_router_enable_expert_bias", "route_norm"})
    require_flag(fields, name, true);
  config.shared_dim = fields.integer("num_shared_experts", 1) * config.hidden_dim;
  config.gate.score = Score::Sigmoid;
  config.gate.epsilon = 1e-20;
  config.gate.scale = fields.number("router_scaling_factor", 2.826);
  config.selection_bias = true;
  require_silu(fields);
}
inline void write_hy3(const MoeConfig& config, ConfigFields& fields) {
  fields.set("hidden_size", config.model_dim);
  fields.set_either("moe_intermediate_size", "expert_hidden_dim", config.hidden_dim);
  fields.set("num_experts", config.num_experts);
  fields.set("num_experts_per_tok", config.gate.k);
  for (const char* name : {"moe_router_use_sigmoid", "moe_router_enable_expert_bias", "route_norm"})
    fields.set_missing(name, true);
  fields.set("num_shared_experts", num_shared(config));
  fields.set("router_scaling_factor", config.gate.scale);
  write_silu(fields);
}
constexpr FamilyFormat hy3_names() {
  FamilyFormat format = with_bias(hunyuan_names(), "expert_bias");
  format.router = "router.gate.weight";
  return format;
}
inline constexpr std::array kHy3Formats{hy3_names(),
                                        resaved(with_bias(with_shared(projections()), "e_score_correction_bias"))};
inline constexpr Family kHy3{
    .name = "hy_v3", .model_types = {"hy_v3"}, .read = read_hy3, .write = write_hy3, .formats = kHy3Formats};

}  // namespace moe::inline MOE_ABI::detail
