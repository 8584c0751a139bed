// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/deepseek.hpp"

// Kimi K2, which is DeepSeek-V3, and Kimi Linear, which routes alike under names of its own (vLLM main at 01d99586).
// K3, whose experts work in a latent space, is refused.
namespace moe::inline MOE_ABI::detail {

inline constexpr Family kKimiK2{.name = "kimi_k2",
                                .model_types = {"kimi_k2"},
                                .read = read_deepseek_v3,
                                .write = write_deepseek_v3,
                                .formats = kDeepseekV3Formats};

inline void read_kimi_linear(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "num_experts", "num_experts_per_token", config);
  if (fields.has("routed_expert_hidden_size"))
    fields.refuse("routed_expert_hidden_size", fields.integer("routed_expert_hidden_size"), "null: no latent space");
  fields.require("moe_router_activation_func", "sigmoid");
  fields.require("topk_method", "noaux_tc");
  config.shared_dim = fields.integer("num_shared_experts", 0) * config.hidden_dim;
  set_norm(fields.flag("moe_renormalize", true), config);
  config.gate.score = Score::Sigmoid;
  config.gate.epsilon = 1e-20;
  config.gate.scale = fields.number("routed_scaling_factor", 1);
  config.selection_bias = true;
  if (const Index count = fields.integer("num_expert_group", 1); count > 1) {
    require_flag(fields, "use_grouped_topk", true);
    config.gate.groups = {.count = count, .kept = fields.integer("topk_group"), .best = 2};
  }
  require_silu(fields);
}
inline void write_kimi_linear(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "moe_intermediate_size", "num_experts", "num_experts_per_token", fields);
  fields.set_missing("moe_router_activation_func", "sigmoid");
  fields.set("num_shared_experts", num_shared(config));
  fields.set("moe_renormalize", has_norm(config));
  fields.set("routed_scaling_factor", config.gate.scale);
  fields.set("num_expert_group", config.gate.groups.count);
  fields.set("topk_group", config.gate.groups.kept);
  write_silu(fields);
}
inline constexpr std::array kKimiLinearFormats{with_bias(with_shared(numbered()))};
inline constexpr Family kKimiLinear{.name = "kimi_linear",
                                    .model_types = {"kimi_linear"},
                                    .read = read_kimi_linear,
                                    .write = write_kimi_linear,
                                    .formats = kKimiLinearFormats};

}  // namespace moe::inline MOE_ABI::detail
