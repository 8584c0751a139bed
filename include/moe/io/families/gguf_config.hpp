// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "moe/io/file/gguf.hpp"

// What the metadata of a GGUF file says about its MoE blocks, in the words of the config.json that the model was
// published with, which the families read. Where the file says nothing, the functions in the table at the end say what
// the published models of an architecture do, which need not be what llama.cpp does: without expert_weights_norm,
// sigmoids as those of DeepSeek-V3 are normalised here and not there.
// Long, as each architecture stands here once.
namespace moe::inline MOE_ABI::detail {

/// Metadata of the architecture, checked as they are asked for. Errors are std::runtime_error that name the key.
class GgufFields {
 public:
  GgufFields(std::string label, const GgufReader& file, std::optional<Index> layer)
      : label_(std::move(label)), file_(file), layer_(layer) {
    const std::optional<GgufValue> value = file.value(kArchitecture);
    if (!value) fail_environment(label_, ": ", kArchitecture, " is missing");
    if (!value->text()) fail_environment(label_, ": ", kArchitecture, " is ", value->shown(), ", expected a text");
    architecture_ = *value->text();
  }

  static constexpr const char* kArchitecture = "general.architecture";

  const std::string& architecture() const { return architecture_; }
  std::string key(const char* name) const { return architecture_ + "." + name; }
  bool has(const char* name) const { return file_.value(key(name)).has_value(); }

  /// A number, or that of the layer from a list with one for every layer; where no layer was asked for, a list of equal
  /// numbers.
  Index integer(const char* name) const {
    GgufValue value = at(name);
    if (value.type == GgufType::List) value = element(name, value);
    const std::optional<std::int64_t> found = value.integer();
    constexpr std::int64_t kMost = std::int64_t{1} << 31;  // as in a config.json
    if (!found || *found < 0 || *found > kMost) refuse(name, value, "an integer of 0 to 2^31");
    return *found;
  }
  Index integer(const char* name, Index otherwise) const { return has(name) ? integer(name) : otherwise; }
  bool flag(const char* name, bool otherwise) const {
    if (!has(name)) return otherwise;
    const std::optional<bool> found = at(name).flag();
    if (!found) refuse(name, at(name), "true or false");
    return *found;
  }

  /// Of an expert.
  Index width() const {
    return integer(has("expert_feed_forward_length") ? "expert_feed_forward_length" : "feed_forward_length");
  }
  /// Shared experts, as wide as the others.
  Index num_shared(Index otherwise = 0) const {
    if (!has("expert_shared_feed_forward_length")) return integer("expert_shared_count", otherwise);
    const Index shared = integer("expert_shared_feed_forward_length"), each = width();
    if (each == 0 || shared % each != 0)
      refuse("expert_shared_feed_forward_length", at("expert_shared_feed_forward_length"),
             "a multiple of the width of an expert, " + std::to_string(each));
    return shared / each;
  }
  /// Of the weights; 1 where nothing or 0 is said.
  double scale() const {
    if (!has("expert_weights_scale")) return 1;
    const std::optional<double> found = at("expert_weights_scale").number();
    if (!found || !std::isfinite(*found)) refuse("expert_weights_scale", at("expert_weights_scale"), "a finite number");
    return *found == 0 ? 1 : as_written(*found);
  }

  /// Throws where the file says otherwise.
  void require_norm(bool expected) const {
    if (flag("expert_weights_norm", expected) != expected)
      refuse("expert_weights_norm", at("expert_weights_norm"), expected ? "true" : "false");
  }
  void require_unscaled() const {
    if (scale() != 1) refuse("expert_weights_scale", at("expert_weights_scale"), "1, or no such key");
  }
  /// 1 softmax, 2 sigmoid, 3 softmax of the chosen; 0 says nothing.
  void require_gating(std::initializer_list<Index> allowed) const {
    const Index found = integer("expert_gating_func", 0);
    std::string expected;
    for (const Index number : allowed) {
      if (found == number) return;
      expected += (expected.empty() ? "" : " or ") + std::to_string(number);
    }
    if (found != 0) refuse("expert_gating_func", at("expert_gating_func"), expected);
  }

  [[noreturn]] void refuse(const char* name, const GgufValue& value, const std::string& expected) const {
    fail_environment(label_, ": ", key(name), " is ", value.shown(), ", expected ", expected);
  }

 private:
  /// The number of a config.json that became a float: the shortest in decimals.
  static double as_written(double number) {
    if (static_cast<double>(static_cast<float>(number)) != number) return number;
    std::array<char, 64> digits;
    const auto written = std::to_chars(digits.data(), digits.data() + digits.size(), static_cast<float>(number));
    (void)std::from_chars(digits.data(), written.ptr, number);
    return number;
  }
  GgufValue at(const char* name) const {
    const std::optional<GgufValue> value = file_.value(key(name));
    if (!value) fail_environment(label_, ": ", key(name), " is missing");
    return *value;
  }
  GgufValue element(const char* name, const GgufValue& list) const {
    std::optional<GgufValue> found;
    bool are_equal = true;
    Index place = 0;
    list.for_each([&](const GgufValue& value) {
      if (place++ == layer_.value_or(0)) found = value;
      are_equal = are_equal && found && value.integer() == found->integer();
    });
    if (!found) refuse(name, list, "a number, or one for every layer up to " + std::to_string(layer_.value_or(0)));
    if (!layer_ && !are_equal) refuse(name, list, "the same number for all layers");
    return *found;
  }

  std::string label_;
  const GgufReader& file_;
  std::optional<Index> layer_;
  std::string architecture_;
};

/// An architecture of llama.cpp: the model type that its blocks are read as, the fields of a config.json for the width
/// of experts, their number, and how many a token has, and what else there is to say.
struct GgufArchitecture {
  std::string_view name, model_type;
  const char *width, *experts, *choices;
  void (*complete)(const GgufFields& fields, nlohmann::json& config);
};

/// A softmax whose chosen weights are normalised, as a softmax of the chosen.
inline void complete_softmax(const GgufFields& fields, nlohmann::json&) {
  fields.require_gating({1, 3});
  fields.require_norm(true);
  fields.require_unscaled();
}
inline void complete_gpt_oss(const GgufFields& fields, nlohmann::json&) {
  fields.require_gating({3});
  fields.require_unscaled();
}
template <bool kNormalises>
void complete_stated(const GgufFields& fields, nlohmann::json& config) {
  fields.require_gating({1});
  fields.require_unscaled();
  config["norm_topk_prob"] = fields.flag("expert_weights_norm", kNormalises);
}
inline void complete_jamba(const GgufFields& fields, nlohmann::json&) {
  fields.require_gating({1});
  fields.require_norm(false);
  fields.require_unscaled();
}
template <bool kNormalises>
void complete_qwen_shared(const GgufFields& fields, nlohmann::json& config) {
  complete_stated<kNormalises>(fields, config);
  config["shared_expert_intermediate_size"] = fields.integer("expert_shared_feed_forward_length");
}
inline void complete_granite(const GgufFields& fields, nlohmann::json& config) {
  complete_softmax(fields, config);
  const Index shared = fields.integer("expert_shared_feed_forward_length", 0);
  if (shared == 0) return;
  config["shared_intermediate_size"] = shared;
  if (config["model_type"] == "granitemoe") config["model_type"] = "granitemoeshared";
}
inline void complete_dbrx(const GgufFields& fields, nlohmann::json& config) {
  complete_softmax(fields, config);
  config["d_model"] = config["hidden_size"];
  config["ffn_config"] = {{"ffn_hidden_size", config["ffn_hidden_size"]},
                          {"moe_num_experts", config["moe_num_experts"]},
                          {"moe_top_k", config["moe_top_k"]},
                          {"moe_normalize_expert_weights", 1}};
}
inline void complete_ernie(const GgufFields& fields, nlohmann::json& config) {
  complete_softmax(fields, config);
  config["moe_num_shared_experts"] = fields.num_shared();
}
inline void complete_hunyuan(const GgufFields& fields, nlohmann::json& config) {
  complete_softmax(fields, config);
  config["num_shared_expert"] = fields.num_shared(1);
}
inline void complete_llama4(const GgufFields& fields, nlohmann::json&) {
  fields.require_gating({2});
  fields.require_norm(false);
  fields.require_unscaled();
}

inline void put_groups(const GgufFields& fields, nlohmann::json& config, const char* count) {
  const Index groups = fields.integer("expert_group_count", 1);
  if (groups <= 1) return;
  config[count] = groups;
  config["topk_group"] = fields.integer("expert_group_used_count");
}
/// Sigmoids, a bias of the selection, groups and a scale, as DeepSeek-V3; norm by default.
inline void complete_v3_choice(const GgufFields& fields, nlohmann::json& config) {
  fields.require_gating({2});
  config["scoring_func"] = "sigmoid";
  config["topk_method"] = "noaux_tc";
  config["norm_topk_prob"] = fields.flag("expert_weights_norm", true);
  config["routed_scaling_factor"] = fields.scale();
  put_groups(fields, config, "n_group");
}
inline void complete_v3(const GgufFields& fields, nlohmann::json& config) {
  complete_v3_choice(fields, config);
  config["n_shared_experts"] = fields.num_shared();
}
/// Whether a file of deepseek2 that does not say what its gate is holds GLM 4.7 Lite, as llama.cpp knows it.
inline bool is_glm_lite(const GgufFields& fields) {
  const Index layers = fields.integer("block_count", 0);
  return fields.integer("expert_gating_func", 0) == 0 && (layers == 47 || layers == 48) &&
         fields.integer("vocab_size", 154880) == 154880;
}
/// DeepSeek from V2 on, Kimi K2 and GLM 4.7 Lite: with sigmoids it is V3.
inline void complete_deepseek2(const GgufFields& fields, nlohmann::json& config) {
  if (fields.integer("expert_gating_func", 0) == 2 || is_glm_lite(fields)) {
    config["model_type"] = "deepseek_v3";
    return complete_v3(fields, config);
  }
  fields.require_gating({1});
  config["n_shared_experts"] = fields.num_shared();
  config["norm_topk_prob"] = fields.flag("expert_weights_norm", false);
  config["routed_scaling_factor"] = fields.scale();
  put_groups(fields, config, "n_group");
  config["topk_method"] = config.contains("n_group") ? "group_limited_greedy" : "greedy";
}
inline void complete_exaone(const GgufFields& fields, nlohmann::json& config) {
  complete_v3_choice(fields, config);
  config["num_shared_experts"] = fields.num_shared(1);
}
inline void complete_nemotron(const GgufFields& fields, nlohmann::json& config) {
  complete_v3_choice(fields, config);
  config["n_shared_experts"] = fields.integer("expert_shared_count", 1);
  config["moe_shared_expert_intermediate_size"] = fields.integer("expert_shared_feed_forward_length");
}
inline void complete_kimi_linear(const GgufFields& fields, nlohmann::json& config) {
  fields.require_gating({2});
  config["num_shared_experts"] = fields.num_shared();
  config["moe_renormalize"] = fields.flag("expert_weights_norm", true);
  config["routed_scaling_factor"] = fields.scale();
  put_groups(fields, config, "num_expert_group");
}
inline void complete_lfm2(const GgufFields& fields, nlohmann::json& config) {
  fields.require_gating({2});
  config["norm_topk_prob"] = fields.flag("expert_weights_norm", true);
  config["routed_scaling_factor"] = fields.scale();
}
inline void complete_minimax(const GgufFields& fields, nlohmann::json&) {
  fields.require_gating({2});
  fields.require_norm(true);
  fields.require_unscaled();
}

inline constexpr std::array kGgufArchitectures{
    GgufArchitecture{"llama", "mixtral", "intermediate_size", "num_local_experts", "num_experts_per_tok",
                     &complete_softmax},
    GgufArchitecture{"phimoe", "phimoe", "intermediate_size", "num_local_experts", "num_experts_per_tok",
                     &complete_softmax},
    GgufArchitecture{"gpt-oss", "gpt_oss", "intermediate_size", "num_local_experts", "num_experts_per_tok",
                     &complete_gpt_oss},
    GgufArchitecture{"llama4", "llama4", "intermediate_size", "num_local_experts", "num_experts_per_tok",
                     &complete_llama4},
    GgufArchitecture{"granitemoe", "granitemoe", "intermediate_size", "num_local_experts", "num_experts_per_tok",
                     &complete_granite},
    GgufArchitecture{"granitehybrid", "granitemoehybrid", "intermediate_size", "num_local_experts",
                     "num_experts_per_tok", &complete_granite},
    GgufArchitecture{"minimax-m2", "minimax_m2", "intermediate_size", "num_local_experts", "num_experts_per_tok",
                     &complete_minimax},
    GgufArchitecture{"olmoe", "olmoe", "intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_stated<false>},
    GgufArchitecture{"jamba", "jamba", "intermediate_size", "num_experts", "num_experts_per_tok", &complete_jamba},
    GgufArchitecture{"qwen2moe", "qwen2_moe", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_qwen_shared<false>},
    GgufArchitecture{"qwen3moe", "qwen3_moe", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_stated<true>},
    GgufArchitecture{"qwen3vlmoe", "qwen3_vl_moe", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_stated<true>},
    GgufArchitecture{"qwen3next", "qwen3_next", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_qwen_shared<true>},
    GgufArchitecture{"qwen35moe", "qwen3_5_moe", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_qwen_shared<true>},
    GgufArchitecture{"deepseek", "deepseek_v2", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_deepseek2},
    GgufArchitecture{"deepseek2", "deepseek_v2", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_deepseek2},
    GgufArchitecture{"deepseek32", "deepseek_v32", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_v3},
    GgufArchitecture{"glm4moe", "glm4_moe", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_v3},
    GgufArchitecture{"glm-dsa", "glm_moe_dsa", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_v3},
    GgufArchitecture{"dots1", "dots1", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_v3},
    GgufArchitecture{"mimo2", "mimo_v2_flash", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_v3},
    GgufArchitecture{"exaone-moe", "exaone_moe", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_exaone},
    GgufArchitecture{"nemotron_h_moe", "nemotron_h", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
                     &complete_nemotron},
    GgufArchitecture{"kimi-linear", "kimi_linear", "moe_intermediate_size", "num_experts", "num_experts_per_token",
                     &complete_kimi_linear},
    GgufArchitecture{"lfm2moe", "lfm2_moe", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
                     &complete_lfm2},
    GgufArchitecture{"ernie4_5-moe", "ernie4_5_moe", "moe_intermediate_size", "moe_num_experts", "moe_k",
                     &complete_ernie},
    GgufArchitecture{"hunyuan-moe", "hunyuan_v1_moe", "moe_intermediate_size", "num_experts", "moe_topk",
                     &complete_hunyuan},
    GgufArchitecture{"dbrx", "dbrx", "ffn_hidden_size", "moe_num_experts", "moe_top_k", &complete_dbrx},
};

/// The config.json that the metadata of a file stand for. Throws std::runtime_error that opens with the label and names
/// the key for what is missing, out of range, or not what the family does, and for an architecture that is not in the
/// table.
inline nlohmann::json gguf_config(const std::string& label, const GgufReader& file, std::optional<Index> layer = {}) {
  const GgufFields fields(label, file, layer);
  std::string known;
  for (const GgufArchitecture& architecture : kGgufArchitectures) {
    if (architecture.name != fields.architecture()) {
      known += " " + std::string(architecture.name);
      continue;
    }
    nlohmann::json config = {{"model_type", architecture.model_type},
                             {"hidden_size", fields.integer("embedding_length")},
                             {architecture.width, fields.width()},
                             {architecture.experts, fields.integer("expert_count")},
                             {architecture.choices, fields.integer("expert_used_count")}};
    architecture.complete(fields, config);
    return config;
  }
  fail_environment(label, ": ", GgufFields::kArchitecture, " is ", in_quotes(fields.architecture()),
                   ", expected one of", known);
}

}  // namespace moe::inline MOE_ABI::detail
