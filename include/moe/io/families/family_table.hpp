// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// How the weights of the experts lie in a file. E experts, hidden width F, model width D; [rows, columns] of a tensor,
/// rows being outputs where it is "out x in".
enum class ExpertLayout : std::uint8_t {
  PerExpert,              ///< three (or two) tensors per expert, each out x in
  FusedOutIn,             ///< [E, 2F, D], gates before ups, and [E, D, F]
  FusedInOut,             ///< [E, D, 2F], gates before ups, and [E, F, D]
  FusedInterleaved,       ///< [E, D, 2F], gate and up columns in turn, and [E, F, D]; quantised: the next
  FusedInterleavedOutIn,  ///< [E, 2F, D], gate and up rows in turn, and [E, D, F]
  StackedRows,            ///< gate and up [E * F, D] out x in, down [E * F, D] in x out
};

/// Names of the tensors of one MoE block below a prefix. "{}" stands for the number of the layer or of the expert; an
/// empty name for a tensor that the family does not have.
struct FamilyFormat {
  std::string_view family = {};
  std::string_view prefix = {};
  std::string_view router = {}, router_bias = {}, selection_bias = {};
  ExpertLayout layout = ExpertLayout::PerExpert;
  std::string_view gate = {}, up = {}, down = {};  ///< of the experts; fused: `gate` holds both; an MLP has no `gate`
  std::string_view up_bias = {}, down_bias = {};
  std::string_view shared_gate = {}, shared_up = {}, shared_down = {};  ///< fused: `shared_gate` holds both, out x in
  std::string_view shared_score = {};
  std::string_view output_bias = {};
  std::string_view neighbour = {};  ///< below the prefix, but no part of the block
};

namespace detail {

inline constexpr std::string_view kMlp = "model.layers.{}.mlp.", kSparse = "model.layers.{}.block_sparse_moe.",
                                  kExpertGate = "experts.{}.gate_proj.weight", kExpertUp = "experts.{}.up_proj.weight",
                                  kExpertDown = "experts.{}.down_proj.weight", kFusedGateUp = "experts.gate_up_proj",
                                  kFusedDown = "experts.down_proj", kSharedGate = "shared_experts.gate_proj.weight",
                                  kSharedUp = "shared_experts.up_proj.weight",
                                  kSharedDown = "shared_experts.down_proj.weight",
                                  kBias = "gate.e_score_correction_bias";

/// A format with the names that most families share; the rest is set by name.
constexpr FamilyFormat projections(std::string_view family, std::string_view prefix = kMlp) {
  return {.family = family,
          .prefix = prefix,
          .router = "gate.weight",
          .layout = ExpertLayout::PerExpert,
          .gate = kExpertGate,
          .up = kExpertUp,
          .down = kExpertDown};
}
constexpr FamilyFormat numbered(std::string_view family, std::string_view prefix = kSparse) {  // w1, w3, w2
  FamilyFormat format = projections(family, prefix);
  format.gate = "experts.{}.w1.weight", format.up = "experts.{}.w3.weight", format.down = "experts.{}.w2.weight";
  return format;
}
constexpr FamilyFormat with_shared(FamilyFormat format) {
  format.shared_gate = kSharedGate, format.shared_up = kSharedUp, format.shared_down = kSharedDown;
  return format;
}
constexpr FamilyFormat with_bias(FamilyFormat format, std::string_view name = kBias) {
  format.selection_bias = name;
  return format;
}
constexpr FamilyFormat fused(FamilyFormat format, ExpertLayout layout, std::string_view gate_up,
                             std::string_view down) {
  format.layout = layout;
  format.gate = gate_up, format.up = {}, format.down = down;
  return format;
}
/// As transformers 5 saves a block whose published files hold an expert per tensor.
constexpr FamilyFormat resaved(FamilyFormat format, std::string_view prefix = kMlp) {
  format.prefix = prefix;
  return fused(format, ExpertLayout::FusedOutIn, kFusedGateUp, kFusedDown);
}
constexpr FamilyFormat with_router(FamilyFormat format, std::string_view router, std::string_view bias = {}) {
  format.router = router, format.router_bias = bias;
  return format;
}

constexpr FamilyFormat qwen2(FamilyFormat format) {
  format.shared_gate = "shared_expert.gate_proj.weight", format.shared_up = "shared_expert.up_proj.weight";
  format.shared_down = "shared_expert.down_proj.weight", format.shared_score = "shared_expert_gate.weight";
  return format;
}
constexpr FamilyFormat llama4(std::string_view prefix) {
  FamilyFormat format = qwen2(with_router(projections("llama4", prefix), "router.weight"));
  format.shared_score = {};
  return fused(format, ExpertLayout::FusedInOut, kFusedGateUp, kFusedDown);
}
constexpr FamilyFormat gpt_oss() {
  FamilyFormat format = with_router(projections("gpt_oss"), "router.weight", "router.bias");
  format = fused(format, ExpertLayout::FusedInterleaved, kFusedGateUp, kFusedDown);
  format.up_bias = "experts.gate_up_proj_bias", format.down_bias = "experts.down_proj_bias";
  return format;
}
constexpr FamilyFormat gpt_oss_original() {  // as OpenAI publishes it
  FamilyFormat format = with_router(projections("gpt_oss", "block.{}.mlp."), "gate.weight", "gate.bias");
  format = fused(format, ExpertLayout::FusedInterleavedOutIn, "mlp1_weight", "mlp2_weight");
  format.up_bias = "mlp1_bias", format.down_bias = "mlp2_bias", format.neighbour = "norm.scale";
  return format;
}
constexpr FamilyFormat granite(std::string_view family, std::string_view prefix) {
  return fused(with_router(projections(family, prefix), "router.layer.weight"), ExpertLayout::FusedOutIn,
               "input_linear.weight", "output_linear.weight");
}
constexpr FamilyFormat granite_shared() {  // the shared expert is a sibling of the block
  FamilyFormat format =
      fused(with_router(projections("granitemoeshared", "model.layers.{}."), "block_sparse_moe.router.layer.weight"),
            ExpertLayout::FusedOutIn, "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight");
  format.shared_gate = "shared_mlp.input_linear.weight", format.shared_down = "shared_mlp.output_linear.weight";
  return format;
}
constexpr FamilyFormat jetmoe() {
  FamilyFormat format = granite("jetmoe", kMlp);
  format.output_bias = "bias";
  return format;
}
constexpr FamilyFormat dbrx() {
  FamilyFormat format = with_router(projections("dbrx", "transformer.blocks.{}.ffn."), "router.layer.weight");
  format.layout = ExpertLayout::StackedRows;
  format.gate = "experts.mlp.w1", format.up = "experts.mlp.v1", format.down = "experts.mlp.w2";
  return format;
}
constexpr FamilyFormat switch_transformer(std::string_view prefix) {
  FamilyFormat format =
      with_router(projections("switch", prefix), "router.classifier.weight", "router.classifier.bias");
  format.gate = {}, format.up = "experts.expert_{}.wi.weight", format.down = "experts.expert_{}.wo.weight";
  return format;
}
constexpr FamilyFormat gated_switch(std::string_view prefix) {  // version 1.1
  FamilyFormat format = switch_transformer(prefix);
  format.gate = "experts.expert_{}.wi_0.weight", format.up = "experts.expert_{}.wi_1.weight";
  return format;
}
constexpr FamilyFormat nllb(std::string_view prefix) {
  FamilyFormat format =
      with_router(projections("nllb_moe", prefix), "router.classifier.weight", "router.classifier.bias");
  format.gate = {}, format.up = "experts.expert_{}.fc1.weight", format.down = "experts.expert_{}.fc2.weight";
  format.up_bias = "experts.expert_{}.fc1.bias", format.down_bias = "experts.expert_{}.fc2.bias";
  return format;
}
constexpr FamilyFormat hunyuan(FamilyFormat format) {
  format.router = "gate.wg.weight";
  format.shared_gate = "shared_mlp.gate_proj.weight", format.shared_up = "shared_mlp.up_proj.weight";
  format.shared_down = "shared_mlp.down_proj.weight";
  return format;
}
constexpr FamilyFormat aria(std::string_view prefix) {
  return fused(with_router(with_shared(projections("aria", prefix)), "router.weight"), ExpertLayout::FusedInOut,
               "experts.fc1.weight", "experts.fc2.weight");
}
constexpr FamilyFormat longcat() {
  return with_bias(with_router(projections("longcat_flash"), "router.classifier.weight", "router.classifier.bias"),
                   "router.e_score_correction_bias");
}

}  // namespace detail

/// All families that the library loads, with the names of their tensors. A family with several formats has several
/// rows; a checkpoint has that of the first row, with gates if the experts have any, whose router and last expert
/// weight it holds.
inline constexpr std::array kFamilyFormats{
    detail::numbered("mixtral"),
    detail::resaved(detail::projections("mixtral")),
    detail::projections("olmoe"),
    detail::resaved(detail::projections("olmoe")),
    detail::qwen2(detail::projections("qwen2_moe")),
    detail::resaved(detail::qwen2(detail::projections("qwen2_moe"))),
    detail::projections("qwen3_moe"),
    detail::resaved(detail::projections("qwen3_moe")),
    detail::with_shared(detail::projections("deepseek_v2")),
    detail::resaved(detail::with_shared(detail::projections("deepseek_v2"))),
    detail::with_bias(detail::with_shared(detail::projections("deepseek_v3"))),
    detail::resaved(detail::with_bias(detail::with_shared(detail::projections("deepseek_v3")))),
    detail::with_bias(detail::with_shared(detail::projections("glm4_moe"))),
    detail::resaved(detail::with_bias(detail::with_shared(detail::projections("glm4_moe")))),
    detail::numbered("phimoe"),
    detail::resaved(detail::with_router(detail::projections("phimoe"), "router.weight")),
    detail::gpt_oss(),
    detail::gpt_oss_original(),
    detail::llama4("language_model.model.layers.{}.feed_forward."),
    detail::llama4("model.layers.{}.feed_forward."),
    detail::granite("granitemoe", detail::kSparse),
    detail::granite_shared(),
    detail::jetmoe(),
    detail::dbrx(),
    detail::with_router(detail::projections("jamba", "model.layers.{}.feed_forward."), "router.weight"),
    detail::switch_transformer("encoder.block.{}.layer.1.mlp."),
    detail::switch_transformer("decoder.block.{}.layer.2.mlp."),
    detail::gated_switch("encoder.block.{}.layer.1.mlp."),
    detail::gated_switch("decoder.block.{}.layer.2.mlp."),
    detail::nllb("model.encoder.layers.{}.ffn."),
    detail::nllb("model.decoder.layers.{}.ffn."),
    detail::with_bias(detail::with_shared(detail::projections("ernie4_5_moe")), "moe_statics.e_score_correction_bias"),
    detail::hunyuan(detail::projections("hunyuan_v1_moe")),
    detail::resaved(detail::hunyuan(detail::projections("hunyuan_v1_moe"))),
    detail::aria("language_model.model.layers.{}.mlp."),
    detail::aria("model.layers.{}.mlp."),
    detail::longcat(),
    detail::with_bias(detail::numbered("minimax_m2"), "e_score_correction_bias"),
    detail::resaved(detail::with_bias(detail::projections("minimax_m2"), "e_score_correction_bias")),
};

/// `name` with its "{}" replaced by a number.
inline std::string numbered_name(std::string_view name, Index number) {
  const std::size_t place = name.find("{}");
  if (place == name.npos) return std::string(name);
  return std::string(name.substr(0, place)) + std::to_string(number) + std::string(name.substr(place + 2));
}

}  // namespace moe::inline MOE_ABI
