// SPDX-License-Identifier: MIT
// The shapes that are measured: layers of published models, and a small one.
#pragma once

#include <array>
#include <string>

#include "moe/core/matrix.hpp"

namespace bench {

using moe::Index;

/// One SwiGLU layer without shared experts.
struct Shape {
  std::string name;
  Index model_dim, hidden_dim, num_experts, k;

  /// float weights of one expert: gate, up and down.
  Index expert_bytes() const { return 3 * model_dim * hidden_dim * static_cast<Index>(sizeof(float)); }
  Index router_bytes() const { return model_dim * num_experts * static_cast<Index>(sizeof(float)); }
  Index weight_bytes() const { return num_experts * expert_bytes() + router_bytes(); }
};

/// "model/n" is that model with 1/n of its hidden units, so that weights, their copies for the peers and gradients stay
/// below 13 GB.
inline const std::array<Shape, 9> kShapes = {{
    {"small", 256, 512, 16, 2},
    {"8x3584", 1024, 3584, 8, 2},
    {"OLMoE", 2048, 1024, 64, 8},
    {"Granite-3B", 1536, 512, 40, 8},
    {"Qwen3-30B-A3B", 2048, 768, 128, 8},
    {"DeepSeek-V2-Lite", 2048, 1408, 64, 6},
    {"Mixtral/4", 4096, 3584, 8, 2},
    {"GPT-OSS-20B", 2880, 2880, 32, 4},
    {"GPT-OSS-20B/2", 2880, 1440, 32, 4},
}};

}  // namespace bench
