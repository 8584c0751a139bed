// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// GPT-OSS, as transformers has it and as OpenAI publishes it.
namespace moe::inline MOE_ABI::detail {

inline void read_gpt_oss(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", fields.has("num_local_experts") ? "num_local_experts" : "num_experts",
             fields.has("num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token", config);
  config.clamp.limit = fields.number("swiglu_limit", config.clamp.limit);
  config.clamp.alpha = fields.number("swiglu_alpha", config.clamp.alpha);
  config.expert = ExpertKind::ClampedGated;
  config.router_bias = config.expert_bias = true;
}
/// OpenAI's own config.json has no model_type.
inline void write_gpt_oss(const MoeConfig& config, ConfigFields& fields) {
  fields.set("hidden_size", config.model_dim);
  fields.set("intermediate_size", config.hidden_dim);
  fields.set_either("num_local_experts", "num_experts", config.num_experts);
  fields.set_either("num_experts_per_tok", "experts_per_token", config.gate.k);
  fields.set("swiglu_limit", config.clamp.limit);
  fields.set("swiglu_alpha", config.clamp.alpha);
}
inline bool is_gpt_oss(const JsonFields& fields) {
  return fields.has("experts_per_token") && fields.has("swiglu_limit");
}

constexpr FamilyFormat gpt_oss_names() {
  FamilyFormat format = with_router(projections(), "router.weight", "router.bias");
  format = fused(format, ExpertLayout::FusedInterleaved, kFusedGateUp, kFusedDown);
  format.up_bias = "experts.gate_up_proj_bias", format.down_bias = "experts.down_proj_bias";
  return format;
}
constexpr FamilyFormat gpt_oss_original_names() {  // as OpenAI publishes it
  FamilyFormat format = with_router(projections("block.{}.mlp."), "gate.weight", "gate.bias");
  format = fused(format, ExpertLayout::FusedInterleavedOutIn, "mlp1_weight", "mlp2_weight");
  format.up_bias = "mlp1_bias", format.down_bias = "mlp2_bias", format.neighbour = "norm.scale";
  return format;
}
inline constexpr std::array kGptOssFormats{gpt_oss_names(), gpt_oss_original_names()};
inline constexpr Family kGptOss{.name = "gpt_oss",
                                .model_types = {"gpt_oss"},
                                .read = read_gpt_oss,
                                .write = write_gpt_oss,
                                .formats = kGptOssFormats,
                                .is_meant = is_gpt_oss};

}  // namespace moe::inline MOE_ABI::detail
