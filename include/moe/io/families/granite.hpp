// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// Granite, with and without a shared expert, also between Mamba layers, and JetMoE, which has its names and a bias of
// the output.
namespace moe::inline MOE_ABI::detail {

constexpr FamilyFormat granite_names(std::string_view prefix) {
  return fused(with_router(projections(prefix), "router.layer.weight"), ExpertLayout::FusedOutIn, "input_linear.weight",
               "output_linear.weight");
}
inline constexpr std::array kGraniteFormats{granite_names(kSparse)};
inline constexpr Family kGranite{.name = "granitemoe",
                                 .model_types = {"granitemoe"},
                                 .read = read_local,
                                 .write = write_local,
                                 .formats = kGraniteFormats};

inline void read_granite_shared(const JsonFields& fields, MoeConfig& config) {
  read_local(fields, config);
  config.shared_dim = fields.integer("shared_intermediate_size");
}
inline void write_granite_shared(const MoeConfig& config, ConfigFields& fields) {
  write_local(config, fields);
  fields.set("shared_intermediate_size", config.shared_dim);
}
constexpr FamilyFormat granite_shared_names() {  // the shared expert is a sibling of the block
  FamilyFormat format =
      fused(with_router(projections("model.layers.{}."), "block_sparse_moe.router.layer.weight"),
            ExpertLayout::FusedOutIn, "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight");
  format.shared_gate = "shared_mlp.input_linear.weight", format.shared_down = "shared_mlp.output_linear.weight";
  return format;
}
inline constexpr std::array kGraniteSharedFormats{granite_shared_names()};
inline constexpr Family kGraniteShared{.name = "granitemoeshared",
                                       .model_types = {"granitemoeshared"},
                                       .read = read_granite_shared,
                                       .write = write_granite_shared,
                                       .formats = kGraniteSharedFormats};
inline constexpr Family kGraniteHybrid{.name = "granitemoehybrid",
                                       .model_types = {"granitemoehybrid"},
                                       .read = read_granite_shared,
                                       .write = write_granite_shared,
                                       .formats = kGraniteSharedFormats};

inline void read_jetmoe(const JsonFields& fields, MoeConfig& config) {
  read_local(fields, config);
  fields.require("activation_function", "silu");
  config.output_bias = true;
}
inline void write_jetmoe(const MoeConfig& config, ConfigFields& fields) {
  write_local(config, fields);
  fields.set_missing("activation_function", "silu");
}
constexpr FamilyFormat jetmoe_names() {
  FamilyFormat format = granite_names(kMlp);
  format.output_bias = "bias";
  return format;
}
inline constexpr std::array kJetmoeFormats{jetmoe_names()};
inline constexpr Family kJetmoe{
    .name = "jetmoe", .model_types = {"jetmoe"}, .read = read_jetmoe, .write = write_jetmoe, .formats = kJetmoeFormats};

}  // namespace moe::inline MOE_ABI::detail
