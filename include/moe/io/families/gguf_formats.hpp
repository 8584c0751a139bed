// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/families/family.hpp"

// The names of llama.cpp, which are the same for all families. (Its converters turn rows of attention alone; gates and
// ups that stand in turns, as those of GPT-OSS, they take apart.)
namespace moe::inline MOE_ABI {

namespace detail {

constexpr FamilyFormat gguf_apart() {
  return {.prefix = "blk.{}.",
          .router = "ffn_gate_inp.weight",
          .router_bias = "ffn_gate_inp.bias",
          .selection_bias = "exp_probs_b.bias",
          .layout = ExpertLayout::FusedApart,
          .gate = "ffn_gate_exps.weight",
          .up = "ffn_up_exps.weight",
          .down = "ffn_down_exps.weight",
          .gate_bias = "ffn_gate_exps.bias",
          .up_bias = "ffn_up_exps.bias",
          .down_bias = "ffn_down_exps.bias",
          .shared_gate = "ffn_gate_shexp.weight",
          .shared_up = "ffn_up_shexp.weight",
          .shared_down = "ffn_down_shexp.weight",
          .shared_score = "ffn_gate_inp_shexp.weight",
          .neighbour = "ffn_norm.",
          .owned = {"ffn_", "exp_probs_b."}};
}
constexpr FamilyFormat gguf_fused() {  // gates before ups
  FamilyFormat format =
      fused(gguf_apart(), ExpertLayout::FusedOutIn, "ffn_gate_up_exps.weight", "ffn_down_exps.weight");
  format.up_bias = "ffn_gate_up_exps.bias";
  return format;
}
constexpr FamilyFormat gguf_per_expert() {  // until spring 2024
  FamilyFormat format = gguf_apart();
  format.layout = ExpertLayout::PerExpert;
  format.gate = "ffn_gate.{}.weight", format.up = "ffn_up.{}.weight", format.down = "ffn_down.{}.weight";
  return format;
}
constexpr FamilyFormat gguf_plain() {  // experts without gates
  FamilyFormat format = gguf_apart();
  format.gate = format.shared_gate = {};
  return format;
}

}  // namespace detail

inline constexpr std::array kGgufFormats{detail::gguf_apart(), detail::gguf_fused(), detail::gguf_per_expert(),
                                         detail::gguf_plain()};

/// The formats in which the tensors of a family come in a checkpoint: those of the family, or of llama.cpp.
inline std::span<const FamilyFormat> formats_of(const Checkpoint& checkpoint, const Family& family) {
  if (checkpoint.format() == CheckpointFormat::Gguf) return kGgufFormats;
  return family.formats;
}

namespace detail {

/// Whether a tensor of a checkpoint has the extents that are expected: in a GGUF file those that are 1 and first here,
/// last there, may be left out.
inline bool has_shape(const Checkpoint& checkpoint, std::span<const Index> found, std::span<const Index> expected) {
  if (checkpoint.format() == CheckpointFormat::Gguf)
    for (std::span<const Index>* shape : {&found, &expected})
      while (!shape->empty() && shape->front() == 1) *shape = shape->subspan(1);
  return std::equal(found.begin(), found.end(), expected.begin(), expected.end());
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
