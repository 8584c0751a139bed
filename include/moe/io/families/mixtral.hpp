// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/family.hpp"

// Mixtral, and what is published under its names: a softmax over the chosen, w1, w3 and w2.
namespace moe::inline MOE_ABI::detail {

inline constexpr std::array kMixtralFormats{numbered(), resaved(projections())};
inline constexpr Family kMixtral{.name = "mixtral",
                                 .model_types = {"mixtral"},
                                 .read = read_local,
                                 .write = write_local,
                                 .formats = kMixtralFormats};

/// MiniMax-Text-01, as transformers has it (main at 008e5743); a shared expert would be more.
inline void read_minimax_text(const JsonFields& fields, MoeConfig& config) {
  read_local(fields, config);
  if (const Index width = fields.integer("shared_intermediate_size", 0))
    fields.refuse("shared_intermediate_size", width, "0");
}
inline constexpr Family kMinimaxText{.name = "minimax",
                                     .model_types = {"minimax"},
                                     .read = read_minimax_text,
                                     .write = write_local,
                                     .formats = kMixtralFormats};

inline void read_phimoe(const JsonFields& fields, MoeConfig& config) {
  read_local(fields, config);
  if (config.gate.k != SparseMixerGate::kChoices)
    fail_environment(fields.label(), ": num_experts_per_tok is ", config.gate.k, ", expected 2 of this family");
  config.sparse_mixer = SparseMixerGate{.jitter = fields.number("router_jitter_noise", 0.01)};
}
inline void write_phimoe(const MoeConfig& config, ConfigFields& fields) {
  write_local(config, fields);
  fields.set("num_experts_per_tok", SparseMixerGate::kChoices);
  if (config.sparse_mixer) fields.set("router_jitter_noise", config.sparse_mixer->jitter);
}
inline constexpr std::array kPhimoeFormats{numbered(), resaved(with_router(projections(), "router.weight"))};
inline constexpr Family kPhimoe{
    .name = "phimoe", .model_types = {"phimoe"}, .read = read_phimoe, .write = write_phimoe, .formats = kPhimoeFormats};

inline void read_minimax(const JsonFields& fields, MoeConfig& config) {
  read_local(fields, config);
  config.gate.score = Score::Sigmoid;
  config.selection_bias = true;
}
inline constexpr std::string_view kMinimaxBias = "e_score_correction_bias";
inline constexpr std::array kMinimaxFormats{with_bias(numbered(), kMinimaxBias),
                                            resaved(with_bias(projections(), kMinimaxBias))};
inline constexpr Family kMinimax{.name = "minimax_m2",
                                 .model_types = {"minimax_m2"},
                                 .read = read_minimax,
                                 .write = write_local,
                                 .formats = kMinimaxFormats};

}  // namespace moe::inline MOE_ABI::detail
