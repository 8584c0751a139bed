// SPDX-License-Identifier: MIT
// What the config.json of families of 2025 and 2026 means, and what of it is refused.
#include "support/catch.hpp"
#include "support/family_configs.hpp"
#include "support/text.hpp"

using moe::MoeConfig;
using moe::Normalise;
using moe::Score;
using test::contains;

namespace {

/// The config of a family with one field set; "x.y" is inside of x.
MoeConfig with(const std::string& model_type, const std::string& name, const nlohmann::json& value) {
  nlohmann::json json = nlohmann::json::parse(test::config_text(model_type));
  const std::size_t dot = name.find('.');
  (dot == name.npos ? json[name] : json[name.substr(0, dot)][name.substr(dot + 1)]) = value;
  return moe::parse_moe_config("file", json);
}
std::string complaint(const std::string& model_type, const std::string& name, const nlohmann::json& value) {
  return test::message_of<std::runtime_error>([&] { with(model_type, name, value); });
}
MoeConfig without(const std::string& model_type, const std::string& name) { return with(model_type, name, nullptr); }

}  // namespace

TEST_CASE("parse_moe_config: families that route by sigmoids have their scale, norm and bias", "[io]") {
  struct Row {
    const char* model_type;
    double scale, epsilon;
    moe::Index shared_dim;
  };
  for (const auto& [model_type, scale, epsilon, shared_dim] :
       {Row{"kimi_k2", 2.5, 1e-20, 16}, Row{"glm4_moe_lite", 2.5, 1e-20, 16}, Row{"glm4v_moe", 2.5, 1e-20, 16},
        Row{"glm_moe_dsa", 2.5, 1e-20, 16}, Row{"solar_open", 2.5, 1e-20, 16}, Row{"exaone_moe", 2.5, 1e-20, 16},
        Row{"hy_v3", 2.826, 1e-20, 16}, Row{"mimo_v2_flash", 1, 1e-20, 0}, Row{"lfm2_moe", 1, 1e-6, 0},
        Row{"nemotron_h", 2.5, 1e-20, 10}}) {
    const MoeConfig config = test::config_of(model_type);
    CAPTURE(model_type);
    CHECK((config.gate.score == Score::Sigmoid && config.gate.normalise == Normalise::Sum));
    CHECK((config.gate.scale == scale && config.gate.epsilon == epsilon && config.gate.groups.count == 1));
    CHECK((config.selection_bias && config.shared_dim == shared_dim));
  }
  const MoeConfig linear = test::config_of("kimi_linear");
  CHECK((linear.gate.score == Score::Sigmoid && linear.gate.epsilon == 1e-20 && linear.gate.scale == 2.446));
  CHECK((linear.gate.groups.count == 3 && linear.gate.groups.kept == 2 && linear.gate.groups.best == 2));
  CHECK(with("kimi_linear", "moe_renormalize", false).gate.normalise == Normalise::Off);
  CHECK(test::config_of("deepseek_v32").family == "deepseek_v3");
  CHECK(without("glm4_moe_lite", "routed_scaling_factor").gate.scale == 1.8);
  CHECK(without("glm_moe_dsa", "routed_scaling_factor").gate.scale == 2.5);
  CHECK(without("kimi_k2", "routed_scaling_factor").gate.scale == 1);
  CHECK(contains(complaint("deepseek_v3", "routed_scaling_factor", nullptr), "routed_scaling_factor"));
  CHECK(contains(complaint("deepseek_v32", "routed_scaling_factor", nullptr), "routed_scaling_factor"));
  CHECK(test::config_of("dots1").gate.normalise == Normalise::Off);
  CHECK(test::config_of("dots1").gate.score == moe::Score::Sigmoid);
  CHECK(with("dots1", "scoring_func", "sigmoid").gate.score == moe::Score::Sigmoid);
  CHECK(contains(complaint("dots1", "scoring_func", "softmax"), "expected 'sigmoid'"));
  CHECK(with("dots1", "norm_topk_prob", true).gate.normalise == Normalise::Sum);
  nlohmann::json early_hy3 = nlohmann::json::parse(test::config_text("hy_v3"));
  early_hy3.erase("moe_intermediate_size");
  early_hy3["expert_hidden_dim"] = 7;
  CHECK(moe::parse_moe_config("file", early_hy3).hidden_dim == 7);
  CHECK(with("lfm2_moe", "norm_topk_prob", false).gate.normalise == Normalise::Off);
  CHECK(!with("lfm2_moe", "use_expert_bias", false).selection_bias);
}

TEST_CASE("parse_moe_config: Qwen3-Next, Qwen3.5 and Qwen3-VL normalise", "[io][error]") {
  for (const char* model_type : {"qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_vl_moe"}) {
    const MoeConfig config = test::config_of(model_type);
    CAPTURE(model_type);
    CHECK((config.gate.score == Score::Softmax && config.gate.normalise == Normalise::Sum));
    const bool shares = config.family != "qwen3_vl_moe";
    CHECK((config.shared_dim == (shares ? 10 : 0) && (config.shared_gate == moe::SharedGate::Sigmoid) == shares));
  }
  CHECK(with("qwen3_next", "norm_topk_prob", false).gate.normalise == Normalise::Off);
  for (const char* name : {"qwen3_5_moe", "qwen3_vl_moe"})
    CHECK(contains(complaint(name, "text_config.norm_topk_prob", false), "norm_topk_prob is false, expected true"));
  CHECK(test::config_of("flex_olmo").gate.normalise == Normalise::Off);
}

TEST_CASE("parse_moe_config: Nemotron-H has experts without gates, and none in a latent space", "[io][error]") {
  const MoeConfig config = test::config_of("nemotron_h");
  CHECK(config.expert == moe::ExpertKind::SquaredReluPlain);
  CHECK(!is_gated(config.expert));
  CHECK(without("nemotron_h", "moe_latent_size").shared_dim == config.shared_dim);
  CHECK(complaint("nemotron_h", "moe_latent_size", 1024) ==
        "file: moe_latent_size is 1024, expected null: no latent space");
  CHECK(contains(complaint("nemotron_h", "n_shared_experts", 2), "n_shared_experts is 2, expected 1"));
  CHECK(contains(complaint("nemotron_h", "mlp_hidden_act", "silu"), "mlp_hidden_act is \"silu\", expected 'relu2'"));
  CHECK(contains(complaint("nemotron_h", "mlp_bias", true), "mlp_bias is true, expected false"));
  CHECK(contains(complaint("nemotron_h", "moe_shared_expert_intermediate_size", nullptr), "is missing"));
}

TEST_CASE("parse_moe_config: what the latest families could ask and nothing computes is refused", "[io][error]") {
  CHECK(contains(complaint("mimo_v2_flash", "n_shared_experts", 1), "n_shared_experts is 1, expected 0 or null"));
  CHECK(with("mimo_v2_flash", "n_shared_experts", 0).shared_dim == 0);
  CHECK(contains(complaint("mimo_v2_flash", "scoring_func", "softmax"), "expected 'sigmoid'"));
  CHECK(contains(complaint("kimi_k2", "topk_method", "greedy"), "expected 'noaux_tc'"));
  CHECK(complaint("kimi_linear", "routed_expert_hidden_size", 3584) ==
        "file: routed_expert_hidden_size is 3584, expected null: no latent space");
  CHECK(contains(complaint("kimi_linear", "hidden_act", "situ"), "hidden_act is \"situ\", expected 'silu'"));
  CHECK(contains(complaint("kimi_linear", "moe_router_activation_func", "softmax"), "expected 'sigmoid'"));
  CHECK(contains(complaint("kimi_linear", "use_grouped_topk", false), "use_grouped_topk is false, expected true"));
  CHECK(contains(complaint("minimax", "shared_intermediate_size", 64), "shared_intermediate_size is 64, expected 0"));
  for (const char* name : {"moe_router_use_sigmoid", "moe_router_enable_expert_bias", "route_norm"})
    CHECK(contains(complaint("hy_v3", name, false), std::string(name) + " is false, expected true"));
  CHECK(contains(complaint("granitemoehybrid", "num_local_experts", 0), "num_experts"));  // a dense model
  CHECK(contains(complaint("lfm2_moe", "hidden_act", "gelu"), "hidden_act is \"gelu\""));
}
