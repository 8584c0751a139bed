// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// HunYuan, whose config.json may have a number for every layer.
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

constexpr FamilyFormat hunyuan_names() {
  FamilyFormat format = projections();
  format.router = "gate.wg.weight";
  format.shared_gate = "shared_mlp.gate_proj.weight", format.shared_up = "shared_mlp.up_proj.weight";
  format.shared_down = "shared_mlp.down_proj.weight";
  return format;
}
inline constexpr std::array kHunyuanFormats{hunyuan_names(), resaved(hunyuan_names())};
inline constexpr Family kHunyuan{
    .name = "hunyuan_v1_moe", .model_types = {"hunyuan_v1_moe"}, .read = read_hunyuan, .formats = kHunyuanFormats};

}  // namespace moe::inline MOE_ABI::detail
