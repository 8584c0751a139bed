// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// LFM2: sigmoids, and a bias of the selection if the model has one (transformers main at 0c67e26d).
namespace moe::inline MOE_ABI::detail {

inline void read_lfm2(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(fields.flag("norm_topk_prob", true), config);
  config.gate.score = Score::Sigmoid;
  config.gate.epsilon = 1e-6;
  config.gate.scale = fields.number("routed_scaling_factor", 1);
  config.selection_bias = fields.flag("use_expert_bias", true);
  require_silu(fields);
}

inline void write_lfm2(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "moe_intermediate_size", "num_experts", "num_experts_per_tok", fields);
  fields.set("norm_topk_prob", has_norm(config));
  fields.set("routed_scaling_factor", config.gate.scale);
  fields.set("use_expert_bias", config.selection_bias);
  write_silu(fields);
}
inline constexpr std::string_view kLfm2Prefix = "model.layers.{}.feed_forward.";
inline constexpr std::array kLfm2Formats{with_bias(numbered(kLfm2Prefix), "expert_bias"),
                                         resaved(with_bias(projections(), "expert_bias"), kLfm2Prefix)};
inline constexpr Family kLfm2{
    .name = "lfm2_moe", .model_types = {"lfm2_moe"}, .read = read_lfm2, .write = write_lfm2, .formats = kLfm2Formats};

}  // namespace moe::inline MOE_ABI::detail
