// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "moe/io/families/family_readers_capacity.hpp"

// What the config.json of each family says, in terms of this library. A function per way to say it.
namespace moe::inline MOE_ABI::detail {

inline void read_sizes(const JsonFields& fields, const char* hidden, const char* experts, const char* k,
                       MoeConfig& config) {
  config.model_dim = fields.integer("hidden_size");
  config.hidden_dim = fields.integer(hidden);
  config.num_experts = fields.integer(experts);
  config.gate.k = fields.integer(k);
}
inline void require_silu(const JsonFields& fields) { fields.require("hidden_act", "silu"); }

/// Mixtral and what routes as it does: a softmax over the chosen.
inline void read_mixtral(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "num_local_experts", "num_experts_per_tok", config);
  require_silu(fields);
}
inline void read_granite_shared(const JsonFields& fields, MoeConfig& config) {
  read_mixtral(fields, config);
  config.shared_dim = fields.integer("shared_intermediate_size");
}
inline void read_jetmoe(const JsonFields& fields, MoeConfig& config) {
  read_mixtral(fields, config);
  fields.require("activation_function", "silu");
  config.output_bias = true;
}
inline void read_phimoe(const JsonFields& fields, MoeConfig& config) {
  read_mixtral(fields, config);
  if (config.gate.k != SparseMixerGate::kChoices)
    fail_environment(fields.label(), ": num_experts_per_tok is ", config.gate.k, ", expected 2 of this family");
  config.sparse_mixer = SparseMixerGate{.jitter = fields.number("router_jitter_noise", 0.01)};
}
inline void read_gpt_oss(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", fields.has("num_local_experts") ? "num_local_experts" : "num_experts",
             fields.has("num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token", config);
  config.clamp.limit = fields.number("swiglu_limit", config.clamp.limit);
  config.clamp.alpha = fields.number("swiglu_alpha", config.clamp.alpha);
  config.expert = ExpertKind::ClampedGated;
  config.router_bias = config.expert_bias = true;
}
inline void read_llama4(const JsonFields& fields, MoeConfig& config) {
  read_mixtral(fields, config);
  config.gate.score = Score::Sigmoid;
  config.gate.normalise = Normalise::Off;
  config.weight_on = WeightOn::Input;
  config.shared_dim = config.hidden_dim;
}
inline void read_minimax(const JsonFields& fields, MoeConfig& config) {
  read_mixtral(fields, config);
  config.gate.score = Score::Sigmoid;
  config.selection_bias = true;
}

inline void set_norm(bool normalises, MoeConfig& config) {
  config.gate.normalise = normalises ? Normalise::Sum : Normalise::Off;
}
inline void read_olmoe(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(fields.flag("norm_topk_prob", false), config);
  require_silu(fields);
}
inline void read_qwen3(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(fields.flag("norm_topk_prob", false), config);
  require_silu(fields);
}
inline void read_qwen2(const JsonFields& fields, MoeConfig& config) {
  read_qwen3(fields, config);
  config.shared_dim = fields.integer("shared_expert_intermediate_size");
  config.shared_gate = SharedGate::Sigmoid;
}
inline void read_jamba(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(false, config);
  require_silu(fields);
}
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
inline void read_aria(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "moe_num_experts", "moe_topk", config);
  config.shared_dim = fields.integer("moe_num_shared_experts", 2) * config.hidden_dim;
  require_silu(fields);
}

inline void read_deepseek(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", config);
  config.shared_dim = fields.integer("n_shared_experts", 0) * config.hidden_dim;
  config.gate.scale = fields.number("routed_scaling_factor", 1);
  require_silu(fields);
}
inline void read_groups(const JsonFields& fields, Index best, MoeConfig& config) {
  const Index count = fields.integer("n_group", 1);
  if (count > 1) config.gate.groups = {.count = count, .kept = fields.integer("topk_group"), .best = best};
}
/// The code published with the model either normalises, by sum + 1e-20, or scales, by what norm_topk_prob says and only
/// for more than one choice; that is followed. The class in transformers never normalises. All releases have false.
inline void read_deepseek_v2(const JsonFields& fields, MoeConfig& config) {
  read_deepseek(fields, config);
  set_norm(false, config);
  if (fields.flag("norm_topk_prob", false) && config.gate.k > 1) {
    set_norm(true, config);
    config.gate.epsilon = 1e-20;
    config.gate.scale = 1;
  }
  fields.require("scoring_func", "softmax");
  const std::string method = fields.text("topk_method", "greedy");
  if (method == "group_limited_greedy")
    read_groups(fields, 1, config);
  else if (method != "greedy")
    fields.refuse("topk_method", method, "greedy or group_limited_greedy");
}
inline void read_deepseek_v3(const JsonFields& fields, MoeConfig& config) {
  read_deepseek(fields, config);
  fields.require("scoring_func", "sigmoid");
  fields.require("topk_method", "noaux_tc");
  set_norm(fields.flag("norm_topk_prob", true), config);
  config.gate.score = Score::Sigmoid;
  config.gate.epsilon = 1e-20;
  config.selection_bias = true;
  read_groups(fields, 2, config);
}
inline void read_ernie(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "moe_num_experts", "moe_k", config);
  config.shared_dim = fields.integer("moe_num_shared_experts", 0) * config.hidden_dim;
  config.gate.floor = fields.number("moe_norm_min", 1e-12);
  config.selection_bias = true;
  if (fields.flag("use_bias", false)) fields.refuse("use_bias", true, "false");
  require_silu(fields);
}
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

/// A model type of a config.json, the family that it is, and who reads the rest.
struct ModelType {
  std::string_view model_type, family;
  void (*read)(const JsonFields&, MoeConfig&);
};
inline constexpr std::array kModelTypes{
    ModelType{"mixtral", "mixtral", read_mixtral},
    ModelType{"olmoe", "olmoe", read_olmoe},
    ModelType{"qwen2_moe", "qwen2_moe", read_qwen2},
    ModelType{"qwen3_moe", "qwen3_moe", read_qwen3},
    ModelType{"deepseek_v2", "deepseek_v2", read_deepseek_v2},
    ModelType{"deepseek_v3", "deepseek_v3", read_deepseek_v3},
    ModelType{"glm4_moe", "glm4_moe", read_deepseek_v3},
    ModelType{"phimoe", "phimoe", read_phimoe},
    ModelType{"gpt_oss", "gpt_oss", read_gpt_oss},
    ModelType{"llama4", "llama4", read_llama4},
    ModelType{"llama4_text", "llama4", read_llama4},
    ModelType{"granitemoe", "granitemoe", read_mixtral},
    ModelType{"granitemoeshared", "granitemoeshared", read_granite_shared},
    ModelType{"jetmoe", "jetmoe", read_jetmoe},
    ModelType{"dbrx", "dbrx", read_dbrx},
    ModelType{"jamba", "jamba", read_jamba},
    ModelType{"switch_transformers", "switch", read_switch},
    ModelType{"nllb-moe", "nllb_moe", read_nllb},
    ModelType{"ernie4_5_moe", "ernie4_5_moe", read_ernie},
    ModelType{"hunyuan_v1_moe", "hunyuan_v1_moe", read_hunyuan},
    ModelType{"aria", "aria", read_aria},
    ModelType{"aria_text", "aria", read_aria},
    ModelType{"longcat_flash", "longcat_flash", read_longcat},
    ModelType{"minimax_m2", "minimax_m2", read_minimax},
};

}  // namespace moe::inline MOE_ABI::detail
