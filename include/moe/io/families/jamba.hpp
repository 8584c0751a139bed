// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// Jamba.
namespace moe::inline MOE_ABI::detail {

inline void read_jamba(const JsonFields& fields, MoeConfig& config) {
  read_sizes(fields, "intermediate_size", "num_experts", "num_experts_per_tok", config);
  set_norm(false, config);
  require_silu(fields);
}
inline void write_jamba(const MoeConfig& config, ConfigFields& fields) {
  write_sizes(config, "intermediate_size", "num_experts", "num_experts_per_tok", fields);
  write_silu(fields);
}
inline constexpr std::string_view kJambaPrefix = "model.layers.{}.feed_forward.";
inline constexpr std::array kJambaFormats{with_router(projections(kJambaPrefix), "router.weight"),
                                          resaved(with_router(projections(), "router.weight"), kJambaPrefix)};
inline constexpr Family kJamba{.name = "jamba",
                               .model_types = {"jamba"},
                               .read = read_jamba,
                               .write = write_jamba,
                               .formats = kJambaFormats,
                               .has_dense_width = true};

}  // namespace moe::inline MOE_ABI::detail
