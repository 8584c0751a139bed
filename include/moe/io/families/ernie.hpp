// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// ERNIE 4.5.
namespace moe::inline MOE_ABI::detail {

inline void read_ernie(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "moe_intermediate_size", "moe_num_experts", "moe_k", config);
  config.shared_dim = fields.integer("moe_num_shared_experts", 0) * config.hidden_dim;
  config.gate.floor = fields.number("moe_norm_min", 1e-12);
  config.selection_bias = true;
  if (fields.flag("use_bias", false)) fields.refuse("use_bias", true, "false");
  require_silu(fields);
}

inline void write_ernie(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "moe_intermediate_size", "moe_num_experts", "moe_k", fields);
  fields.set("moe_num_shared_experts", num_shared(config));
  fields.set("moe_norm_min", config.gate.floor);
  write_silu(fields);
}
constexpr FamilyFormat ernie_names(std::string_view bias) {
  FamilyFormat format = with_bias(with_shared(projections()), bias);
  format.selection_bias_rank = 2;
  return format;
}
inline constexpr std::array kErnieFormats{ernie_names("moe_statics.e_score_correction_bias"),
                                          resaved(ernie_names("gate.moe_statics.e_score_correction_bias"))};
inline constexpr Family kErnie{.name = "ernie4_5_moe",
                               .model_types = {"ernie4_5_moe"},
                               .read = read_ernie,
                               .write = write_ernie,
                               .formats = kErnieFormats};

}  // namespace moe::inline MOE_ABI::detail
