// SPDX-License-Identifier: MIT
// A whole file of reference vectors: what it is about, and the runs over its token counts.
#pragma once

#include <algorithm>
#include <set>

#include "variants.hpp"

namespace check {

/// The token counts of a file: those that the metadata lists, or else the numbers in names "t<number>.input".
inline std::set<Index> token_counts(const moe::Checkpoint& file, const Facts& facts) {
  const auto listed = facts.integers("token_counts");
  std::set<Index> counts(listed.begin(), listed.end());
  for (const std::string& name : file.names()) {
    const std::size_t dot = name.find('.');
    if (!listed.empty() || dot == name.npos || name[0] != 't' || dot < 2 || dot > 9 || name.substr(dot) != ".input")
      continue;
    const std::string digits = name.substr(1, dot - 1);
    if (std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }))
      counts.insert(std::stol(digits));
  }
  if (counts.empty()) throw std::runtime_error("no tensors t<number>.input");
  if (counts.contains(0)) facts.refuse("token_counts", "numbers of tokens, at least 1");
  return counts;
}

/// Throws for tensors that every file has and that this one has not: those of every run, gradients where they are
/// announced, and whatever another run of the file has.
inline void require_tensors(const moe::Checkpoint& file, const Facts& facts, const std::set<Index>& counts) {
  std::set<std::string> expected{"input", "router_logits", "topk_indices", "topk_weights"};
  if (facts.has("family")) expected.insert("output");
  const std::string family = facts.text("family", "");
  expected.insert(family == "switch" ? "dispatch_mask" : family == "nllb_moe" ? "combine_weights" : "dense_weights");
  for (const Index tokens : counts)
    for (const std::string& name : file.names()) {
      const std::string prefix = "t" + std::to_string(tokens) + ".";
      const std::string rest = name.starts_with(prefix) ? name.substr(prefix.size()) : "cotangent";
      if (rest != "cotangent" && !rest.starts_with("grad.")) expected.insert(rest);
    }
  for (const Index tokens : counts)
    for (const std::string& name : expected) file.at("t" + std::to_string(tokens) + "." + name);
  for (const Index tokens : facts.integers("grad_tokens"))
    for (const char* name : {".cotangent", ".grad.input"}) file.at("t" + std::to_string(tokens) + name);
}

/// Name and rows of the weight of the router, in the format of the family that the file is in.
struct RouterWeight {
  const moe::FamilyFormat* format = nullptr;
  std::string prefix;
  Index rows = 0;
};
inline RouterWeight find_router(const moe::Checkpoint& file, const Facts& facts, const std::string& family) {
  const moe::Family* const known = moe::find_family(family);
  if (!known) throw std::runtime_error("no router of family '" + family + "': such a family is not known");
  std::string expected;
  for (const moe::FamilyFormat& format : known->formats) {
    const std::string prefix = facts.text("ckpt_prefix", moe::numbered_name(format.prefix, facts.integer("layer", 0)));
    const std::string name = prefix + std::string(format.router);
    if (expected.find("'" + name + "'") == expected.npos) expected += (expected.empty() ? "'" : " or '") + name + "'";
    if (!file.contains(name)) continue;
    const auto shape = file.at(name).shape;
    return {&format, prefix, shape.empty() ? 0 : shape[0]};
  }
  throw std::runtime_error("no router of family '" + family + "': tensor " + expected + " is missing");
}

/// Marks the tensors of a block as used, however they are stored, and throws for a number in them that is not finite.
inline void use_weights(const std::vector<moe::BoundTensor>& tensors, Tensors& file) {
  for (const moe::BoundTensor& tensor : tensors) {
    const auto source = moe::WeightSource::find(file.file(), tensor.name);
    for (const std::string& name : source.stored_names()) file.use(name);
    std::vector<float> values(static_cast<std::size_t>(source.size()));
    source.read_values(0, values);
    for (const float value : values)
      if (!std::isfinite(value))
        throw std::runtime_error("weight '" + tensor.name + "' holds " + std::to_string(value) +
                                 ", expected finite numbers");
  }
}

/// Throws unless the weights are stored as the metadata say.
inline void require_storage(const moe::Checkpoint& file, const Facts& facts, const moe::BlockLocation& location,
                            Index num_experts) {
  using enum moe::ExpertLayout;
  const moe::ExpertLayout layout = location.format.layout;
  facts.choice("layout",
               {layout == PerExpert    ? "per_expert_separate_out_in"
                : layout == FusedOutIn ? (location.format.gate.empty() ? "fused_out_in" : "fused_out_in_concat_gate_up")
                : layout == FusedInOut ? "fused_in_out_concat_gate_up"
                : layout == StackedRows ? "fused_rows_E*ff_by_d (w1,v1 out_in; w2 in_out)"
                : location.is_quantised ? "mxfp4_blocks_out_in_interleaved_gate_up"
                                        : "fused_in_out_interleaved_gate_up"});
  const std::string down = location.prefix + moe::numbered_name(location.format.down, num_experts - 1);
  const std::string stored = moe::WeightSource::find(file, down).format(), said = facts.text("weight_dtype", stored);
  const auto first_word = [](const std::string& text) { return text.substr(0, text.find(' ')); };
  if (first_word(said) != first_word(stored))
    facts.refuse("weight_dtype", "'" + first_word(stored) + "', as is stored");
}

inline void check_block(Tensors& file, const Facts& facts, Report& report) {
  const RouterWeight router = find_router(file.file(), facts, facts.text("family"));
  const moe::MoeConfig config = config_of(facts, router.rows);
  const moe::LoadOptions options{.layer = facts.integer("layer", 0), .prefix = router.prefix};
  const auto counts = token_counts(file.file(), facts);
  require_tensors(file.file(), facts, counts);
  const moe::BlockLocation location = moe::find_block(file.file(), config, options);
  require_storage(file.file(), facts, location, config.num_experts);
  moe::MoeBlock block = moe::load_moe_block(file.file(), config, options);
  use_weights(moe::bind_weights(block, location), file);
  for (const Index tokens : counts) {
    const Reference reference(file, tokens);
    Run(reference, facts, block, location).compare(report);
  }
}

/// A gate without experts: the router and the gate of a block, loaded by the same names.
inline void check_router(Tensors& file, const Facts& facts, Report& report) {
  const RouterWeight found = find_router(file.file(), facts, facts.text("family_router"));
  const moe::MoeConfig config = config_of(facts, found.rows);
  const auto counts = token_counts(file.file(), facts);
  require_tensors(file.file(), facts, counts);
  const auto [router, gate] = moe::load_router(file.file(), config, {*found.format, found.prefix});
  for (const std::string_view name : {found.format->router, found.format->router_bias, found.format->selection_bias})
    if (!name.empty()) file.use(found.prefix + std::string(name));
  for (const Index tokens : counts) {
    const Reference reference(file, tokens);
    const auto input = reference.matrix("input", config.model_dim);
    Matrix<float> logits(input.rows(), router.num_experts());
    moe::Routing<float> routing;
    router.logits(input, moe::Step{}, logits);
    gate.route(logits, moe::Step{}, routing);
    compare_routing(reference, Decision<moe::TopKGate>{gate, logits, moe::Step{}, routing, config.gate.scale}, report);
  }
}

/// Everything that a file holds: a tensor that nothing was compared with fails. Throws std::runtime_error for a file
/// that is broken or about something else.
inline Report check_file(const moe::Checkpoint& file) {
  const Facts facts(file.metadata());
  Tensors tensors(file);
  Report report;
  const bool has_variants =
      !facts.has("family") && facts.text("kind", "") != "router_only" && (facts.has("variants") || facts.has("source"));
  if (has_variants)
    check_variants(file, facts, report);
  else if (facts.has("family"))
    check_block(tensors, facts, report);
  else if (facts.text("kind", "") == "router_only")
    check_router(tensors, facts, report);
  else
    throw std::runtime_error("metadata has no 'family', no 'source', and its kind is not 'router_only'");
  if (!has_variants)  // they name what they leave
    for (const std::string& name : tensors.unused()) report.add_count("not compared: " + name, 1);
  if (report.empty()) throw std::runtime_error("nothing to compare");
  return report;
}

}  // namespace check
