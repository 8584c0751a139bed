// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <limits>
#include <string>
#include <utility>

#include "moe/io/families/family.hpp"

// Switch Transformers and NLLB, whose experts have a capacity.
namespace moe::inline MOE_ABI::detail {

/// Version 1.1 has gated experts with GELU, which its config.json says in one or another field.
inline ExpertKind switch_expert(const JsonFields& fields) {
  const std::string act = fields.text("dense_act_fn", "relu"), projection = fields.text("feed_forward_proj", act);
  for (const auto& [name, value] : {std::pair("dense_act_fn", act), std::pair("feed_forward_proj", projection)})
    if (value != "relu" && value != "gated-gelu" && value != "gelu_new")
      fields.refuse(name, value, "'relu', 'gated-gelu' or 'gelu_new'");
  const bool gated = fields.flag("is_gated_act", act != "relu" || projection != "relu");
  if (gated == (act == "relu" && projection == "relu"))
    fields.refuse("is_gated_act", gated, "gated experts with GELU or plain ones with ReLU");
  return gated ? ExpertKind::GeluGated : ExpertKind::ReluPlain;
}

inline void read_switch(const JsonFields& fields, MoeConfig& config) {
  config.model_dim = fields.integer("d_model");
  config.hidden_dim = fields.integer("d_ff");
  config.num_experts = fields.integer("num_experts");
  config.gate = TopKGate::switch_transformer();
  config.router_bias = fields.flag("router_bias", false);
  config.expert = switch_expert(fields);
  config.capacity = CapacityOptions{.factor = 0,
                                    .evaluation_factor = 0,
                                    .min_capacity = fields.integer("expert_capacity", 64),
                                    .scope = CapacityScope::Group};
}

inline void write_switch(const MoeConfig& config, ConfigFields& fields) {
  const bool gated = config.expert == ExpertKind::GeluGated;
  fields.set("d_model", config.model_dim);
  fields.set("d_ff", config.hidden_dim);
  fields.set("num_experts", config.num_experts);
  fields.set("router_bias", config.router_bias);
  fields.set_missing("feed_forward_proj", gated ? "gated-gelu" : "relu");
  if (config.capacity) fields.set("expert_capacity", config.capacity->min_capacity);
}

constexpr FamilyFormat switch_names(std::string_view prefix) {
  FamilyFormat format = with_router(projections(prefix), "router.classifier.weight", "router.classifier.bias");
  format.gate = {}, format.up = "experts.expert_{}.wi.weight", format.down = "experts.expert_{}.wo.weight";
  return format;
}
constexpr FamilyFormat gated_switch_names(std::string_view prefix) {  // version 1.1
  FamilyFormat format = switch_names(prefix);
  format.gate = "experts.expert_{}.wi_0.weight", format.up = "experts.expert_{}.wi_1.weight";
  return format;
}
inline constexpr std::array kSwitchFormats{
    switch_names("encoder.block.{}.layer.1.mlp."), switch_names("decoder.block.{}.layer.2.mlp."),
    gated_switch_names("encoder.block.{}.layer.1.mlp."), gated_switch_names("decoder.block.{}.layer.2.mlp.")};
inline constexpr Family kSwitch{.name = "switch",
                                .model_types = {"switch_transformers"},
                                .read = read_switch,
                                .write = write_switch,
                                .formats = kSwitchFormats,
                                .has_dense_width = true};

inline void read_nllb(const JsonFields& fields, MoeConfig& config) {
  config.model_dim = fields.integer("d_model");
  config.hidden_dim = fields.integer("encoder_ffn_dim");
  config.num_experts = fields.integer("num_experts");
  config.gate = {.k = 2, .normalise = Normalise::Off};
  config.router_bias = fields.flag("router_bias", false);
  config.expert = ExpertKind::ReluPlain;
  config.expert_bias = true;
  fields.require("activation_function", "relu");
  fields.require("second_expert_policy", "all");
  CapacityOptions capacity{.factor = 0, .evaluation_factor = 0, .min_capacity = 0};
  if (fields.is_null("expert_capacity"))
    capacity.factor = capacity.evaluation_factor = 1, capacity.multiple = 2;  // 2 ceil(T / E)
  else
    capacity.min_capacity = fields.integer("expert_capacity", 64);
  const double fraction = fields.number("moe_eval_capacity_token_fraction", 1);
  if (fraction > 0) {  // ceil(fraction * T) = ceil(factor * 2 T / E)
    capacity.evaluation_factor = fraction * static_cast<double>(config.num_experts) / 2;
    capacity.evaluation_min_capacity = 0;
    capacity.evaluation_multiple = 1;
  }
  if (fields.flag("batch_prioritized_routing", false)) capacity.order = ServiceOrder::ByScore;
  capacity.weights = fields.flag("normalize_router_prob_before_dropping", false) ? KeptWeights::NormalisedFirst
                                                                                 : KeptWeights::Renormalised;
  capacity.floor = std::numeric_limits<float>::epsilon();
  capacity.evaluation_scale = 1 - fields.number("moe_token_dropout", 0.2);
  config.capacity = capacity;
}

inline void write_nllb(const MoeConfig& config, ConfigFields& fields) {
  fields.set("d_model", config.model_dim);
  fields.set("encoder_ffn_dim", config.hidden_dim);
  fields.set("num_experts", config.num_experts);
  fields.set("router_bias", config.router_bias);
  fields.set_missing("activation_function", "relu");
  fields.set_missing("second_expert_policy", "all");
  if (!config.capacity) return;
  const CapacityOptions& capacity = *config.capacity;
  if (capacity.factor == 0)
    fields.set("expert_capacity", capacity.min_capacity);
  else
    fields.set("expert_capacity", nullptr);
  const bool is_fraction = capacity.evaluation_multiple == 1;
  const double fraction = capacity.evaluation_factor * 2 / static_cast<double>(config.num_experts);
  fields.set("moe_eval_capacity_token_fraction", is_fraction ? fraction : -1.0);
  fields.set("batch_prioritized_routing", capacity.order == ServiceOrder::ByScore);
  fields.set("normalize_router_prob_before_dropping", capacity.weights == KeptWeights::NormalisedFirst);
  fields.set("moe_token_dropout", 1 - capacity.evaluation_scale);
}

constexpr FamilyFormat nllb_names(std::string_view prefix) {
  FamilyFormat format = with_router(projections(prefix), "router.classifier.weight", "router.classifier.bias");
  format.gate = {}, format.up = "experts.expert_{}.fc1.weight", format.down = "experts.expert_{}.fc2.weight";
  format.up_bias = "experts.expert_{}.fc1.bias", format.down_bias = "experts.expert_{}.fc2.bias";
  return format;
}
inline constexpr std::array kNllbFormats{nllb_names("model.encoder.layers.{}.ffn."),
                                         nllb_names("model.decoder.layers.{}.ffn.")};
inline constexpr Family kNllb{.name = "nllb_moe",
                              .model_types = {"nllb-moe"},
                              .read = read_nllb,
                              .write = write_nllb,
                              .formats = kNllbFormats,
                              .has_dense_width = true};

}  // namespace moe::inline MOE_ABI::detail
