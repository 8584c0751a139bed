// SPDX-License-Identifier: MIT
// A whole file of reference vectors: what it is about, and the runs over its token counts.
#pragma once

#include <cctype>
#include <set>

#include "check_block_variants.hpp"

namespace check {

/// The numbers in tensor names "t<number>.input".
inline std::set<moe::Index> token_counts(const moe::Checkpoint& file) {
  std::set<moe::Index> counts;
  for (const std::string& name : file.names()) {
    const std::size_t dot = name.find('.');
    if (dot == name.npos || name[0] != 't' || dot < 2 || dot > 9 || name.substr(dot) != ".input") continue;
    const std::string digits = name.substr(1, dot - 1);
    if (std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c); }))
      counts.insert(std::stol(digits));
  }
  if (counts.empty()) throw std::runtime_error("no tensors t<number>.input");
  return counts;
}

/// Name and rows of the weight of the router, in the format of the family that the file is in.
struct RouterWeight {
  const moe::FamilyFormat* format = nullptr;
  std::string prefix;
  moe::Index rows = 0;
};
inline RouterWeight find_router(const moe::Checkpoint& file, const Facts& facts, const std::string& family) {
  for (const moe::FamilyFormat& format : moe::kFamilyFormats) {
    if (format.family != family) continue;
    const std::string prefix = facts.text("ckpt_prefix", moe::numbered_name(format.prefix, facts.integer("layer", 0)));
    const std::string name = prefix + std::string(format.router);
    if (!file.contains(name)) continue;
    const auto shape = file.at(name).shape;
    return {&format, prefix, shape.empty() ? 0 : shape[0]};
  }
  throw std::runtime_error("no router of family '" + family + "'");
}

inline void check_block(const moe::Checkpoint& file, const Facts& facts, Report& report) {
  const RouterWeight router = find_router(file, facts, facts.text("family"));
  const moe::MoeConfig config = config_of(facts, router.rows);
  const moe::LoadOptions options{.layer = facts.integer("layer", 0), .prefix = router.prefix};
  const moe::BlockLocation location = moe::find_block(file, config, options);
  const moe::MoeBlock block = moe::load_moe_block(file, config, options);
  for (const moe::Index tokens : token_counts(file)) Run(file, facts, block, location, tokens).compare(report);
}

/// A gate without experts: the router and the gate of a block, loaded by the same names.
inline void check_router(const moe::Checkpoint& file, const Facts& facts, Report& report) {
  const RouterWeight found = find_router(file, facts, facts.text("family_router"));
  const moe::MoeConfig config = config_of(facts, found.rows);
  const auto [router, gate] = moe::load_router(file, config, *found.format, found.prefix);
  for (const moe::Index tokens : token_counts(file)) {
    const Reference reference(file, tokens);
    const auto input = reference.matrix("input", config.model_dim);
    moe::Matrix<float> logits(input.rows(), router.num_experts());
    moe::Routing<float> routing;
    router.logits(input, moe::Step{}, logits);
    gate.route(logits, moe::Step{}, routing);
    compare_routing(reference, gate, logits, moe::Step{}, routing, config.gate.scale, report);
  }
}

/// Says which tensors of the runs nothing is compared with.
inline void note_others(const moe::Checkpoint& file, Report& report) {
  static const std::set<std::string> known = {"input",
                                              "cotangent",
                                              "output",
                                              "router_logits",
                                              "router_probs",
                                              "topk_indices",
                                              "topk_weights",
                                              "dense_weights",
                                              "dispatch_mask",
                                              "dispatch_mask_1",
                                              "dispatch_mask_2",
                                              "combine_weights",
                                              "aux.load_balancing_loss",
                                              "aux.router_z_loss"};
  std::set<std::string> others;
  for (const moe::Index tokens : token_counts(file)) {
    const std::string prefix = "t" + std::to_string(tokens) + ".";
    for (const std::string& name : file.names())
      if (name.starts_with(prefix) && !name.starts_with(prefix + "grad.") &&
          !known.contains(name.substr(prefix.size())))
        others.insert(name.substr(prefix.size()));
  }
  for (const std::string& name : others) report.note("not compared: t*." + name);
}

/// Everything that a file holds. Throws std::runtime_error for a file that is broken or about something else.
inline Report check_file(const moe::Checkpoint& file) {
  const Facts facts(file.metadata());
  Report report;
  if (facts.has("family"))
    check_block(file, facts, report);
  else if (facts.text("kind", "") == "router_only")
    check_router(file, facts, report);
  else if (facts.has("variants") || facts.has("source"))
    check_variants(file, facts, report);
  else
    throw std::runtime_error("metadata has no 'family', no 'source', and its kind is not 'router_only'");
  if (!facts.has("variants") && !facts.has("source")) note_others(file, report);
  if (report.empty()) throw std::runtime_error("nothing to compare");
  return report;
}

}  // namespace check
