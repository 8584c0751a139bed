// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moe/io/families/deepseek.hpp"

// GLM from 4.5 on and Solar Open: DeepSeek-V3 under its names, with scales of their own where nothing is said
// (transformers main at 008e5743).
namespace moe::inline MOE_ABI::detail {

inline constexpr Family kGlm4{.name = "glm4_moe",
                              .model_types = {"glm4_moe"},
                              .read = read_deepseek_v3,
                              .write = write_deepseek_v3,
                              .formats = kDeepseekV3Formats};

inline constexpr Family kSolarOpen{.name = "solar_open",
                                   .model_types = {"solar_open"},
                                   .read = read_deepseek_v3,
                                   .write = write_deepseek_v3,
                                   .formats = kDeepseekV3Formats};

inline void read_glm4_lite(const JsonFields& fields, MoeConfig& config) {
  read_deepseek_v3(fields, config);
  config.gate.scale = fields.number("routed_scaling_factor", 1.8);
}
inline constexpr Family kGlm4Lite{.name = "glm4_moe_lite",
                                  .model_types = {"glm4_moe_lite"},
                                  .read = read_glm4_lite,
                                  .write = write_deepseek_v3,
                                  .formats = kDeepseekV3Formats};

inline void read_glm5(const JsonFields& fields, MoeConfig& config) {
  read_deepseek_v3(fields, config);
  config.gate.scale = fields.number("routed_scaling_factor", 2.5);
}
inline constexpr Family kGlm5{.name = "glm_moe_dsa",
                              .model_types = {"glm_moe_dsa"},
                              .read = read_glm5,
                              .write = write_deepseek_v3,
                              .formats = kDeepseekV3Formats};

inline constexpr std::array kGlm4vFormats{deepseek_v3_names(kTextMlp), resaved(deepseek_v3_names(), kTextMlp),
                                          deepseek_v3_names(), resaved(deepseek_v3_names())};
inline constexpr Family kGlm4v{.name = "glm4v_moe",
                               .model_types = {"glm4v_moe", "glm4v_moe_text"},
                               .read = read_deepseek_v3,
                               .write = write_deepseek_v3,
                               .formats = kGlm4vFormats};

}  // namespace moe::inline MOE_ABI::detail
