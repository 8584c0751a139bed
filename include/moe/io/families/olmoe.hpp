// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// OLMoE, and FlexOlmo, whose blocks are the same.
namespace moe::inline MOE_ABI::detail {

inline void read_olmoe(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(fields.flag("norm_topk_prob", false), config);
  require_silu(fields);
}
inline void write_olmoe(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "intermediate_size", "num_experts", "num_experts_per_tok", fields);
  fields.set("norm_topk_prob", has_norm(config));
  write_silu(fields);
}
inline constexpr std::array kOlmoeFormats{projections(), resaved(projections())};
inline constexpr Family kOlmoe{
    .name = "olmoe", .model_types = {"olmoe"}, .read = read_olmoe, .write = write_olmoe, .formats = kOlmoeFormats};
inline constexpr Family kFlexOlmo{.name = "flex_olmo",
                                  .model_types = {"flex_olmo"},
                                  .read = read_olmoe,
                                  .write = write_olmoe,
                                  .formats = kOlmoeFormats};

}  // namespace moe::inline MOE_ABI::detail
