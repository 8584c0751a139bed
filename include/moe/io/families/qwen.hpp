// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// Qwen2-MoE, with a shared expert behind a gate, and Qwen3-MoE, without. Qwen3-Next and Qwen3.5 have one, Qwen3-VL has
// none; all of these three normalise.
namespace moe::inline MOE_ABI::detail {

inline void read_qwen3(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(fields.flag("norm_topk_prob", false), config);
  require_silu(fields);
}
inline void write_qwen3(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "moe_intermediate_size", "num_experts", "num_experts_per_tok", fields);
  fields.set("norm_topk_prob", has_norm(config));
  write_silu(fields);
}
inline constexpr std::array kQwen3Formats{projections(), resaved(projections())};
inline constexpr Family kQwen3{.name = "qwen3_moe",
                               .model_types = {"qwen3_moe"},
                               .read = read_qwen3,
                               .write = write_qwen3,
                               .formats = kQwen3Formats};

inline void read_qwen2(const JsonFields& fields, MoeConfig& config) {
  read_qwen3(fields, config);
  config.shared_dim = fields.integer("shared_expert_intermediate_size");
  config.shared_gate = SharedGate::Sigmoid;
}
inline void write_qwen2(const MoeConfig& config, ConfigFields& fields) {
  write_qwen3(config, fields);
  fields.set("shared_expert_intermediate_size", config.shared_dim);
}
constexpr FamilyFormat qwen2_names(std::string_view prefix = kMlp) {
  FamilyFormat format = with_shared_expert(projections(prefix));
  format.shared_score = "shared_expert_gate.weight";
  return format;
}
inline constexpr std::array kQwen2Formats{qwen2_names(), resaved(qwen2_names())};
inline constexpr Family kQwen2{.name = "qwen2_moe",
                               .model_types = {"qwen2_moe"},
                               .read = read_qwen2,
                               .write = write_qwen2,
                               .formats = kQwen2Formats};

inline void read_qwen3_next(const JsonFields& fields, MoeConfig& config) {
  read_qwen2(fields, config);
  set_norm(fields.flag("norm_topk_prob", true), config);
}
inline constexpr Family kQwen3Next{.name = "qwen3_next",
                                   .model_types = {"qwen3_next"},
                                   .read = read_qwen3_next,
                                   .write = write_qwen2,
                                   .formats = kQwen2Formats};

/// The class in transformers has no norm_topk_prob and always normalises (main at 0960594c).
inline void read_qwen3_5(const JsonFields& fields, MoeConfig& config) {
  require_flag(fields, "norm_topk_prob", true);
  read_qwen3_next(fields, config);
}
/// Published fused, or per expert in FP8; with and without images.
inline constexpr std::array kQwen35Formats{resaved(qwen2_names(), kTextMlp), qwen2_names(kTextMlp),
                                           resaved(qwen2_names()), qwen2_names()};
inline constexpr Family kQwen35{.name = "qwen3_5_moe",
                                .model_types = {"qwen3_5_moe", "qwen3_5_moe_text"},
                                .read = read_qwen3_5,
                                .write = write_qwen2,
                                .formats = kQwen35Formats};

inline void read_qwen3_vl(const JsonFields& fields, MoeConfig& config) {
  require_flag(fields, "norm_topk_prob", true);
  read_qwen3(fields, config);
  set_norm(true, config);
}
/// As published: in x out, which transformers 5 turns when it loads.
inline constexpr std::array kQwen3VlFormats{
    fused(projections(kTextMlp), ExpertLayout::FusedInOut, kFusedGateUp, kFusedDown)};
inline constexpr Family kQwen3Vl{.name = "qwen3_vl_moe",
                                 .model_types = {"qwen3_vl_moe", "qwen3_vl_moe_text"},
                                 .read = read_qwen3_vl,
                                 .write = write_qwen3,
                                 .formats = kQwen3VlFormats};

}  // namespace moe::inline MOE_ABI::detail
