// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// Aria.
namespace moe::inline MOE_ABI::detail {

inline void read_aria(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "moe_num_experts", "moe_topk", config);
  config.shared_dim = fields.integer("moe_num_shared_experts", 2) * config.hidden_dim;
  require_silu(fields);
}

inline void write_aria(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "intermediate_size", "moe_num_experts", "moe_topk", fields);
  fields.set("moe_num_shared_experts", num_shared(config));
  write_silu(fields);
}
constexpr FamilyFormat aria_names(std::string_view prefix) {
  return fused(with_router(with_shared(projections(prefix)), "router.weight"), ExpertLayout::FusedInOut,
               "experts.fc1.weight", "experts.fc2.weight");
}
inline constexpr std::array kAriaFormats{aria_names("language_model.model.layers.{}.mlp."),
                                         aria_names("model.layers.{}.mlp.")};
inline constexpr Family kAria{.name = "aria",
                              .model_types = {"aria", "aria_text"},
                              .read = read_aria,
                              .write = write_aria,
                              .formats = kAriaFormats};

}  // namespace moe::inline MOE_ABI::detail
