// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/deepseek.hpp"

// K-EXAONE: DeepSeek-V3 with its bias beside the router (transformers main at 02e8340b).
namespace moe::inline MOE_ABI::detail {

inline void read_exaone(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "num_experts", "num_experts_per_tok", config);
  config.shared_dim = fields.integer("num_shared_experts", 1) * config.hidden_dim;
  config.gate.scale = fields.number("routed_scaling_factor", 2.5);
  read_v3_routing(fields, config);
  require_silu(fields);
}
inline void write_exaone(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "moe_intermediate_size", "num_experts", "num_experts_per_tok", fields);
  fields.set("num_shared_experts", num_shared(config));
  fields.set("routed_scaling_factor", config.gate.scale);
  write_v3_routing(config, fields);
  write_silu(fields);
}
inline constexpr std::array kExaoneFormats{with_bias(with_shared(projections()), "e_score_correction_bias"),
                                           resaved(deepseek_v3_names())};
inline constexpr Family kExaone{.name = "exaone_moe",
                                .model_types = {"exaone_moe"},
                                .read = read_exaone,
                                .write = write_exaone,
                                .formats = kExaoneFormats};

}  // namespace moe::inline MOE_ABI::detail
