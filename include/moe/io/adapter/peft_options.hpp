// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>

#include "moe/io/adapter/peft_names.hpp"
#include "moe/io/families/families.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The last name of a tensor's, without ".weight": that of a module or parameter.
inline std::string_view last_name(std::string_view tensor) {
  if (tensor.ends_with(".weight")) tensor.remove_suffix(7);
  return tensor.substr(tensor.rfind('.') + 1);
}

/// Whether PEFT has a layout for tensors that lie so.
inline bool has_peft_layout(const FamilyFormat& format, PeftLayout layout) {
  switch (format.layout) {
    case ExpertLayout::PerExpert:
      return layout == PeftLayout::PerExpert && format.down.starts_with("experts.{}.");
    case ExpertLayout::FusedOutIn:
    case ExpertLayout::FusedInOut:
    case ExpertLayout::FusedInterleaved:
    case ExpertLayout::FusedInterleavedOutIn:
      return layout == PeftLayout::Fused && format.down.starts_with("experts.") &&
             (format.down.ends_with(".weight") ? format.down.substr(0, format.down.size() - 7) : format.down)
                     .find('.', 8) == std::string_view::npos;  // one of Aria's modules, not of their parameters
    case ExpertLayout::FusedApart:
    case ExpertLayout::StackedRows:
      return false;
  }
  return false;
}

}  // namespace detail

/// Names of the experts of a published model, and how gates and ups follow each other, as PEFT has them of the model in
/// that layout: PerExpert of files with a tensor per expert, Fused of parameters for all, as transformers 5 has most
/// models and GPT-OSS always (gates and ups in turns). Throws std::invalid_argument for families that are not known, or
/// have no experts in that layout.
///   moe::load_peft_adapters("adapter", moe::peft_options(moe::read_moe_config("model"), moe::PeftLayout::Fused));
inline PeftOptions peft_options(const MoeConfig& config, PeftLayout layout = PeftLayout::PerExpert) {
  constexpr const char* kFunction = "moe::peft_options";
  const Family* family = find_family(config.family);
  if (!family) fail(kFunction, ": family is '", config.family, "', expected one that is known");
  for (const FamilyFormat& format : family->formats) {
    if (!detail::has_peft_layout(format, layout)) continue;
    PeftOptions options{.experts = std::string(format.prefix) + "experts", .layout = layout};
    options.kind = is_gated(config.expert) ? PeftExperts::Gated : PeftExperts::Plain;
    options.down = detail::last_name(format.down);
    const bool is_fused = layout == PeftLayout::Fused;
    if (!is_fused && !format.gate.empty()) options.gate = detail::last_name(format.gate);
    if (!format.up.empty()) options.up = detail::last_name(format.up);
    if (is_fused && !format.gate.empty()) options.gate_up = detail::last_name(format.gate);
    if (format.layout == ExpertLayout::FusedInterleaved || format.layout == ExpertLayout::FusedInterleavedOutIn)
      options.gate_up_order = GateUpOrder::InTurns;
    options.validate();
    return options;
  }
  fail(kFunction, ": family '", config.family, "' has no experts as ",
       layout == PeftLayout::Fused ? "parameters of all experts" : "modules of their own",
       ", expected the other layout, or names of your own in a moe::PeftOptions");
}

}  // namespace moe::inline MOE_ABI
