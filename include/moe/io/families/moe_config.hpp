// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "moe/expert/stage/epilogue.hpp"
#include "moe/gate/sparse_mixer.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/io/families/quantisation.hpp"
#include "moe/layer/weight_on.hpp"
#include "moe/routing/capacity/capacity.hpp"

namespace moe::inline MOE_ABI {

/// What an expert of a published model computes.
enum class ExpertKind {
  SiluGated,         ///< down(silu(gate x) * (up x)): Glu
  ClampedGated,      ///< the same with the product ClampedSwiGlu (GPT-OSS)
  GeluGated,         ///< the same with GELU by tanh for silu (Switch 1.1)
  ReluPlain,         ///< down(relu(up x)): an MLP (Switch, NLLB)
  SquaredReluPlain,  ///< down(relu(up x)^2), of the shared expert, too (Nemotron-H)
};

constexpr bool is_gated(ExpertKind kind) {
  return kind != ExpertKind::ReluPlain && kind != ExpertKind::SquaredReluPlain;
}

/// Whether a shared expert is scaled by a sigmoid of its own.
enum class SharedGate { Off, Sigmoid };

/// What one MoE block of a published model computes, in terms of this library's parts, and who published it. Comes from
/// a config.json (read_moe_config) or is filled by hand; a plain value.
struct MoeConfig {
  std::string family = {};  ///< as Hugging Face spells the model type: "mixtral", "deepseek_v3", ...
  Index model_dim = 0, hidden_dim = 0;
  Index num_experts = 0;           ///< experts with weights
  Index num_identity_experts = 0;  ///< more experts behind them, which give back their input (LongCat)
  TopKGate gate = {};              ///< numbers only: biases come from the checkpoint
  bool selection_bias = false;     ///< whether it has one
  std::optional<SparseMixerGate> sparse_mixer = {};  ///< instead of `gate` (Phi-3.5-MoE)
  std::optional<CapacityOptions> capacity = {};      ///< around `gate` (Switch, NLLB)
  bool router_bias = false;
  ExpertKind expert = ExpertKind::SiluGated;
  ClampedSwiGlu clamp = {};  ///< numbers of ClampedGated
  bool expert_bias = false;
  WeightOn weight_on = WeightOn::Output;
  Index shared_dim = 0;  ///< width of the shared expert, 0 for none
  SharedGate shared_gate = SharedGate::Off;
  bool output_bias = false;        ///< a vector added once per token (JetMoE)
  Quantisation quantisation = {};  ///< how expert weights are stored, to be compared with the file

  Index num_logits() const { return num_experts + num_identity_experts; }

  /// Throws std::invalid_argument that names the first number out of range. The bounds are far above any model, and low
  /// enough for every product of two of them to fit an Index: sizes may come from a file.
  void validate() const {
    constexpr Index kMostWidth = Index{1} << 24, kMostExperts = Index{1} << 20;
    const auto check = [&](const char* name, Index value, Index least, Index most) {
      if (value < least || value > most)
        fail("moe::MoeConfig: ", name, " of family '", family, "' is ", value, ", expected ", least, " to ", most);
    };
    check("model_dim", model_dim, 1, kMostWidth);
    check("hidden_dim", hidden_dim, 1, kMostWidth);
    check("shared_dim", shared_dim, 0, kMostWidth);
    check("num_experts", num_experts, 1, kMostExperts);
    check("num_identity_experts", num_identity_experts, 0, kMostExperts);
    if (sparse_mixer)
      sparse_mixer->validate(num_logits());
    else
      gate.validate(num_logits());
    if (capacity) capacity->validate();
    clamp.validate();
  }
};

}  // namespace moe::inline MOE_ABI
