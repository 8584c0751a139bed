// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// Llama 4, whose weights multiply what the experts read.
namespace moe::inline MOE_ABI::detail {

inline void read_llama4(const JsonFields& fields, MoeConfig& config) {
  read_local(fields, config);
  config.gate.score = Score::Sigmoid;
  config.gate.normalise = Normalise::Off;
  config.weight_on = WeightOn::Input;
  config.shared_dim = config.hidden_dim;
}

constexpr FamilyFormat llama4_names(std::string_view prefix) {
  return fused(with_shared_expert(with_router(projections(prefix), "router.weight")), ExpertLayout::FusedInOut,
               kFusedGateUp, kFusedDown);
}
inline constexpr std::array kLlama4Formats{llama4_names("language_model.model.layers.{}.feed_forward."),
                                           llama4_names("model.layers.{}.feed_forward.")};
inline constexpr Family kLlama4{.name = "llama4",
                                .model_types = {"llama4", "llama4_text"},
                                .read = read_llama4,
                                .write = write_local,
                                .formats = kLlama4Formats};

}  // namespace moe::inline MOE_ABI::detail
