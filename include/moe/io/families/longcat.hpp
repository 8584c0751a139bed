// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// LongCat-Flash, with experts that give back their input.
namespace moe::inline MOE_ABI::detail {

inline void read_longcat(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "expert_ffn_hidden_size", "n_routed_experts", "moe_topk", config);
  fields.require("zero_expert_type", "identity");
  config.num_identity_experts = fields.integer("zero_expert_num", 0);
  config.gate.scale = fields.number("routed_scaling_factor", 1);
  set_norm(false, config);
  config.selection_bias = true;
  config.router_bias = fields.flag("router_bias", false);
  require_silu(fields);
}

inline void write_longcat(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "expert_ffn_hidden_size", "n_routed_experts", "moe_topk", fields);
  fields.set_missing("zero_expert_type", "identity");
  fields.set("zero_expert_num", config.num_identity_experts);
  fields.set("routed_scaling_factor", config.gate.scale);
  fields.set("router_bias", config.router_bias);
  write_silu(fields);
}
constexpr FamilyFormat longcat_names() {
  return with_bias(with_router(projections(), "router.classifier.weight", "router.classifier.bias"),
                   "router.e_score_correction_bias");
}
constexpr FamilyFormat resaved_longcat() {  // transformers main at 0469a353
  FamilyFormat format = resaved(longcat_names());
  format.identities_have_gates = true;
  return format;
}
inline constexpr std::array kLongcatFormats{longcat_names(), resaved_longcat()};
inline constexpr Family kLongcat{.name = "longcat_flash",
                                 .model_types = {"longcat_flash"},
                                 .read = read_longcat,
                                 .write = write_longcat,
                                 .formats = kLongcatFormats};

}  // namespace moe::inline MOE_ABI::detail
