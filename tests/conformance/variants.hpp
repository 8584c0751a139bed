// SPDX-License-Identifier: MIT
// A file of variants: which code base it is about, and its variants one by one.
#pragma once

#include "deepspeed.hpp"
#include "fastmoe.hpp"
#include "flaxformer.hpp"
#include "hierarchical.hpp"
#include "hugging_face.hpp"
#include "lucidrains.hpp"
#include "megablocks.hpp"
#include "megatron.hpp"
#include "tutel.hpp"

namespace check {

using VariantCheck = void (*)(Variant&);

inline void check_tensor2tensor_or_hierarchy(Variant& v) {
  if (v.has("w.gate_outer.w_gating")) return check_hierarchy(v);
  check_tensor2tensor(v);
}

/// By the repository that the vectors are from, or where that says nothing by the name of the case.
inline VariantCheck find_variant_check(const Facts& facts) {
  struct Entry {
    const char *source, *name;
    VariantCheck check;
  };
  static constexpr Entry kEntries[] = {{"huggingface/transformers", "aux_hf", check_hugging_face},
                                       {"/DeepSpeed", "ds_gating", check_deepspeed},
                                       {"/Tutel", "tutel", check_tutel},
                                       {"/fastmoe", "fastmoe", check_fastmoe},
                                       {"lucidrains/mixture-of-experts", "t2t", check_tensor2tensor_or_hierarchy},
                                       {"lucidrains/st-moe", "st_moe", check_st_moe},
                                       {"/flaxformer", "flaxformer", check_flaxformer},
                                       {"/megablocks", "megablocks", check_megablocks},
                                       {"/Megatron-LM", "megatron", check_megatron},
                                       {"davidmrau/mixture-of-experts", "noisy_topk", check_rau}};
  const std::string source = facts.text("source", ""), name = facts.text("case", "");
  for (const Entry& entry : kEntries)
    if (source.find(entry.source) != source.npos) return entry.check;
  for (const Entry& entry : kEntries)
    if (name.starts_with(entry.name)) return entry.check;
  moe::fail_environment("no rules for source ", moe::detail::in_quotes(source), ", case ",
                        moe::detail::in_quotes(name));
}

/// Variants that the metadata lists or describes, and those that only tensors name.
inline std::vector<std::string> variants_of(const moe::Checkpoint& file, const Facts& facts) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  std::istringstream listed(facts.text("variants", ""));
  for (std::string name; std::getline(listed, name, ',');) add(name);
  constexpr std::string_view kPrefix = "variant.";
  for (const auto& [key, value] : file.metadata())
    if (key.starts_with(kPrefix)) add(key.substr(kPrefix.size()));
  const auto is_of = [](const std::string& tensor) {
    return [&](const std::string& name) { return tensor.starts_with(name + "."); };
  };
  for (const std::string& tensor : file.names())
    if (std::none_of(names.begin(), names.end(), is_of(tensor))) add(tensor.substr(0, tensor.find('.')));
  return names;
}

/// A line per variant; a variant that cannot be compared fails and says why.
inline void check_variants(const moe::Checkpoint& file, const Facts& facts, Report& report) {
  const VariantCheck check = find_variant_check(facts);
  for (const std::string& name : variants_of(file, facts)) try {
      Variant variant(file, name);
      check(variant);
      variant.finish(report);
    } catch (const std::exception& error) {
      report.add(moe::detail::shown(name + ": " + error.what()), INFINITY, kForward);
    }
}

}  // namespace check
