// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// DBRX: weights divided by any norm, experts in stacked rows.
namespace moe::inline MOE_ABI::detail {

inline void read_dbrx(const JsonFields& fields, MoeConfig& config) {
  const JsonFields ffn = fields.part("ffn_config");
  config.model_dim = fields.integer("d_model");
  config.hidden_dim = ffn.integer("ffn_hidden_size");
  config.num_experts = ffn.integer("moe_num_experts");
  config.gate.k = ffn.integer("moe_top_k");
  if (ffn.has("ffn_act_fn")) ffn.part("ffn_act_fn").require("name", "silu");
  const bool is_null = ffn.is_null("moe_normalize_expert_weights");
  const double p = is_null ? 0 : ffn.number("moe_normalize_expert_weights", 1);
  config.gate.normalise = p == 0   ? Normalise::Off
                          : p == 1 ? Normalise::Sum
                          : p == 2 ? Normalise::Euclidean
                                   : Normalise::PNorm;
  if (p != 0) config.gate.norm_p = p;
}

inline void write_dbrx(const MoeConfig& config, ConfigFields& fields) {
  fields.set("d_model", config.model_dim);
  ConfigFields ffn = fields.part("ffn_config");
  ffn.set("ffn_hidden_size", config.hidden_dim);
  ffn.set("moe_num_experts", config.num_experts);
  ffn.set("moe_top_k", config.gate.k);
  ffn.part("ffn_act_fn").set_missing("name", "silu");
  const Normalise norm = config.gate.normalise;
  if (norm == Normalise::Off)
    ffn.set("moe_normalize_expert_weights", nullptr);
  else
    ffn.set("moe_normalize_expert_weights", norm == Normalise::Sum         ? 1
                                            : norm == Normalise::Euclidean ? 2
                                                                           : config.gate.norm_p);
}
constexpr FamilyFormat dbrx_names() {
  FamilyFormat format = with_router(projections("transformer.blocks.{}.ffn."), "router.layer.weight");
  format.layout = ExpertLayout::StackedRows;
  format.gate = "experts.mlp.w1", format.up = "experts.mlp.v1", format.down = "experts.mlp.w2";
  return format;
}
inline constexpr std::array kDbrxFormats{dbrx_names()};
inline constexpr Family kDbrx{
    .name = "dbrx", .model_types = {"dbrx"}, .read = read_dbrx, .write = write_dbrx, .formats = kDbrxFormats};

}  // namespace moe::inline MOE_ABI::detail
