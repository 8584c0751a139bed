// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <string>

#include "moe/io/families/family.hpp"

// DeepSeek-V2 and V3, with shared experts, groups, and in V3 a bias of the selection; and what routes as V3: dots.llm1,
// MiMo-V2-Flash. GLM and Kimi do, too, and have files of their own. V3.2 has the blocks of V3.
namespace moe::inline MOE_ABI::detail {

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
inline void write_deepseek(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", fields);
  fields.set("n_shared_experts", num_shared(config));
  write_silu(fields);
}
inline void write_groups(const MoeConfig& config, ConfigFields& fields) {
  const ExpertGroups& groups = config.gate.groups;
  fields.set("n_group", groups.count);
  fields.set("topk_group", groups.kept);
}

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
inline void write_deepseek_v2(const MoeConfig& config, ConfigFields& fields) {
  write_deepseek(config, fields);
  fields.set("norm_topk_prob", has_norm(config));
  if (!has_norm(config)) fields.set("routed_scaling_factor", config.gate.scale);  // else nobody reads it
  fields.set_missing("scoring_func", "softmax");
  fields.set("topk_method", config.gate.groups.count > 1 ? "group_limited_greedy" : "greedy");
  write_groups(config, fields);
}
inline constexpr std::array kDeepseekV2Formats{with_shared(projections()), resaved(with_shared(projections()))};
inline constexpr Family kDeepseekV2{.name = "deepseek_v2",
                                    .model_types = {"deepseek_v2"},
                                    .read = read_deepseek_v2,
                                    .write = write_deepseek_v2,
                                    .formats = kDeepseekV2Formats};

/// How V3 routes, but for the scale and what it says of its scores.
inline void read_v3_choice(const JsonFields& fields, MoeConfig& config) {
  fields.require("topk_method", "noaux_tc");
  set_norm(fields.flag("norm_topk_prob", true), config);
  config.gate.score = Score::Sigmoid;
  config.gate.epsilon = 1e-20;
  config.selection_bias = true;
  read_groups(fields, 2, config);
}
inline void read_v3_routing(const JsonFields& fields, MoeConfig& config) {
  fields.require("scoring_func", "sigmoid");
  read_v3_choice(fields, config);
}
inline void write_v3_routing(const MoeConfig& config, ConfigFields& fields) {
  fields.set_missing("scoring_func", "sigmoid");
  fields.set_missing("topk_method", "noaux_tc");
  fields.set("norm_topk_prob", has_norm(config));
  write_groups(config, fields);
}
inline void read_deepseek_v3(const JsonFields& fields, MoeConfig& config) {
  read_deepseek(fields, config);
  read_v3_routing(fields, config);
}
/// The scale has to be said: the code published with the model takes 1 where it is not, that of transformers 2.5.
inline void write_deepseek_v3(const MoeConfig& config, ConfigFields& fields) {
  write_deepseek(config, fields);
  fields.set("routed_scaling_factor", config.gate.scale);
  write_v3_routing(config, fields);
}
inline void read_scaled_deepseek_v3(const JsonFields& fields, MoeConfig& config) {
  read_deepseek_v3(fields, config);
  config.gate.scale = fields.number("routed_scaling_factor");
}
constexpr FamilyFormat deepseek_v3_names(std::string_view prefix = kMlp) {
  return with_bias(with_shared(projections(prefix)));
}
inline constexpr std::array kDeepseekV3Formats{deepseek_v3_names(), resaved(deepseek_v3_names())};
inline constexpr Family kDeepseekV3{.name = "deepseek_v3",
                                    .model_types = {"deepseek_v3", "deepseek_v32"},
                                    .read = read_scaled_deepseek_v3,
                                    .write = write_deepseek_v3,
                                    .formats = kDeepseekV3Formats};

/// Where nothing is said, weights are not normalised (transformers main at 008e5743). Published files name the method
/// of choice for the scores, too, which are sigmoids all the same.
inline void read_dots1(const JsonFields& fields, MoeConfig& config) {
  read_deepseek(fields, config);
  if (fields.text("scoring_func", "sigmoid") != "noaux_tc") fields.require("scoring_func", "sigmoid");
  read_v3_choice(fields, config);
  set_norm(fields.flag("norm_topk_prob", false), config);
}
inline constexpr Family kDots1{.name = "dots1",
                               .model_types = {"dots1"},
                               .read = read_dots1,
                               .write = write_deepseek_v3,
                               .formats = kDeepseekV3Formats};

/// No shared expert, whatever one asks for: the class in transformers takes it out (main at 019770dd).
inline void read_mimo(const JsonFields& fields, MoeConfig& config) {
  read_deepseek_v3(fields, config);
  if (config.shared_dim != 0) fields.refuse("n_shared_experts", fields.integer("n_shared_experts"), "0 or null");
}
inline constexpr std::array kMimoFormats{with_bias(projections()), resaved(with_bias(projections()))};
inline constexpr Family kMimo{.name = "mimo_v2_flash",
                              .model_types = {"mimo_v2_flash"},
                              .read = read_mimo,
                              .write = write_deepseek_v3,
                              .formats = kMimoFormats};

}  // namespace moe::inline MOE_ABI::detail
