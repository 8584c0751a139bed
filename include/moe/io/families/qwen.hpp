// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// Qwen2-MoE, with a shared expert behind a gate, and Qwen3-MoE, without.
namespace moe::inline MOE_ABI::detail {

inline void read_qwen3(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(fields.flag("norm_topk_prob", false), config);
  require_silu(fields);
}
inline constexpr std::array kQwen3Formats{projections(), resaved(projections())};
inline constexpr Family kQwen3{
    .name = "qwen3_moe", .model_types = {"qwen3_moe"}, .read = read_qwen3, .formats = kQwen3Formats};

inline void read_qwen2(const JsonFields& fields, MoeConfig& config) {
  read_qwen3(fields, config);
  config.shared_dim = fields.integer("shared_expert_intermediate_size");
  config.shared_gate = SharedGate::Sigmoid;
}
constexpr FamilyFormat qwen2_names() {
  FamilyFormat format = with_shared_expert(projections());
  format.shared_score = "shared_expert_gate.weight";
  return format;
}
inline constexpr std::array kQwen2Formats{qwen2_names(), resaved(qwen2_names())};
inline constexpr Family kQwen2{
    .name = "qwen2_moe", .model_types = {"qwen2_moe"}, .read = read_qwen2, .formats = kQwen2Formats};

}  // namespace moe::inline MOE_ABI::detail
