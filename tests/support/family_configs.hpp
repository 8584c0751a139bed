// SPDX-License-Identifier: MIT
// A small config.json of every family, as its models write them.
#pragma once

#include <map>
#include <string>

#include "moe/io/families/model_config.hpp"

namespace test {

/// model_type and the rest; all of width 12 with 6 experts of width 8.
inline const std::map<std::string, std::string>& family_configs() {
  static const std::string sizes = R"("hidden_size": 12, "intermediate_size": 8, "hidden_act": "silu")";
  static const std::string local = sizes + R"(, "num_local_experts": 6, "num_experts_per_tok": 2)";
  static const std::string wide = R"("hidden_size": 12, "intermediate_size": 99, "moe_intermediate_size": 8)";
  static const std::string deepseek = wide + R"(, "n_routed_experts": 6, "num_experts_per_tok": 2,
    "n_shared_experts": 2, "routed_scaling_factor": 2.5)";
  static const std::string shared =
      wide + R"(, "num_experts": 6, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 10)";
  static const std::map<std::string, std::string> configs = {
      {"mixtral", local},
      {"olmoe", sizes + R"(, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": true)"},
      {"qwen2_moe", wide + R"(, "num_experts": 6, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 10)"},
      {"qwen3_moe", wide + R"(, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": true)"},
      {"deepseek_v2", deepseek + R"(, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2)"},
      {"deepseek_v3", deepseek + R"(, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 3,
        "topk_group": 2, "norm_topk_prob": true)"},
      {"glm4_moe", deepseek + R"(, "n_group": 1, "topk_group": 1)"},
      {"phimoe", local + R"(, "router_jitter_noise": 0.02)"},
      {"gpt_oss", local + R"(, "swiglu_limit": 7.0)"},
      {"llama4", R"("text_config": {"model_type": "llama4_text", "hidden_size": 12, "intermediate_size": 8,
        "num_local_experts": 6, "num_experts_per_tok": 1})"},
      {"granitemoe", local},
      {"granitemoeshared", local + R"(, "shared_intermediate_size": 10)"},
      {"jetmoe", R"("hidden_size": 12, "intermediate_size": 8, "num_local_experts": 6, "num_experts_per_tok": 2,
        "activation_function": "silu")"},
      {"dbrx", R"("d_model": 12, "ffn_config": {"ffn_hidden_size": 8, "moe_num_experts": 6, "moe_top_k": 2,
        "moe_normalize_expert_weights": 1, "ffn_act_fn": {"name": "silu"}})"},
      {"jamba", sizes + R"(, "num_experts": 6, "num_experts_per_tok": 2)"},
      {"switch_transformers", R"("d_model": 12, "d_ff": 8, "num_experts": 6, "expert_capacity": 3,
        "feed_forward_proj": "relu", "router_bias": false)"},
      {"nllb-moe", R"("d_model": 12, "encoder_ffn_dim": 8, "num_experts": 6, "expert_capacity": 5,
        "moe_eval_capacity_token_fraction": 0.5, "moe_token_dropout": 0.2, "second_expert_policy": "all")"},
      {"ernie4_5_moe", wide + R"(, "moe_num_experts": 6, "moe_k": 2, "moe_num_shared_experts": 2)"},
      {"hunyuan_v1_moe", sizes + R"(, "num_experts": 6, "moe_topk": [2, 2, 2])"},
      {"aria", R"("text_config": {"hidden_size": 12, "intermediate_size": 8, "moe_num_experts": 6, "moe_topk": 2,
        "moe_num_shared_experts": 2})"},
      {"longcat_flash", R"("hidden_size": 12, "expert_ffn_hidden_size": 8, "n_routed_experts": 6, "moe_topk": 3,
        "zero_expert_num": 4, "zero_expert_type": "identity", "routed_scaling_factor": 6.0, "router_bias": true)"},
      {"minimax_m2", local},
      {"minimax", local},
      {"flex_olmo", sizes + R"(, "num_experts": 6, "num_experts_per_tok": 2)"},
      {"qwen3_next", shared},
      {"qwen3_5_moe", R"("text_config": {"model_type": "qwen3_5_moe_text", )" + shared + "}"},
      {"qwen3_5_moe_text", shared},
      {"qwen3_vl_moe", R"("text_config": {)" + wide + R"(, "num_experts": 6, "num_experts_per_tok": 2})"},
      {"kimi_k2", deepseek + R"(, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": true)"},
      {"kimi_linear", wide + R"(, "num_experts": 6, "num_experts_per_token": 2, "num_shared_experts": 2,
        "moe_router_activation_func": "sigmoid", "moe_renormalize": true, "use_grouped_topk": true,
        "num_expert_group": 3, "topk_group": 2, "routed_scaling_factor": 2.446)"},
      {"deepseek_v32", deepseek + R"(, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 3,
        "topk_group": 2, "norm_topk_prob": true)"},
      {"dots1", deepseek + R"(, "scoring_func": "noaux_tc", "topk_method": "noaux_tc")"},
      {"mimo_v2_flash", wide + R"(, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": null,
        "routed_scaling_factor": null, "scoring_func": "sigmoid", "topk_method": "noaux_tc")"},
      {"glm4_moe_lite", deepseek},
      {"glm4v_moe", R"("text_config": {)" + deepseek + "}"},
      {"glm_moe_dsa", deepseek},
      {"solar_open", deepseek},
      {"exaone_moe", wide + R"(, "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": 2)"},
      {"hy_v3", wide + R"(, "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": 2, "route_norm": true)"},
      {"lfm2_moe", wide + R"(, "num_experts": 6, "num_experts_per_tok": 2, "use_expert_bias": true)"},
      {"granitemoehybrid", local + R"(, "shared_intermediate_size": 10)"},
      {"nemotron_h", wide + R"(, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 10, "mlp_hidden_act": "relu2", "routed_scaling_factor": 2.5)"},
  };
  return configs;
}

inline std::string config_text(const std::string& model_type) {
  return "{\"model_type\": \"" + model_type + "\", " + family_configs().at(model_type) + "}";
}
inline moe::MoeConfig config_of(const std::string& model_type) {
  return moe::parse_moe_config("test", std::string_view(config_text(model_type)));
}

}  // namespace test
