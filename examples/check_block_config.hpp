// SPDX-License-Identifier: MIT
// What the metadata of a file of reference vectors says about its block, as the configuration of a block.
#pragma once

#include <moe/io/checkpoint.hpp>
#include <moe/io/moe_config.hpp>
#include <stdexcept>
#include <string>

namespace check {

/// Reads metadata, which is text, as what it means. Errors name the key.
class Facts {
 public:
  explicit Facts(const moe::Metadata& metadata) : metadata_(metadata) {}

  bool has(const std::string& key) const { return metadata_.contains(key); }
  std::string text(const std::string& key, const std::string& otherwise) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? otherwise : found->second;
  }
  std::string text(const std::string& key) const {
    if (!has(key)) throw std::runtime_error("metadata has no '" + key + "'");
    return metadata_.find(key)->second;
  }
  /// The number that a text starts with: "2 tokens per expert" is 2.
  double number(const std::string& key) const {
    try {
      return std::stod(text(key));
    } catch (const std::logic_error&) {
      throw std::runtime_error("metadata '" + key + "' is '" + text(key) + "', expected a number");
    }
  }
  double number(const std::string& key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  moe::Index integer(const std::string& key) const { return static_cast<moe::Index>(number(key)); }
  moe::Index integer(const std::string& key, moe::Index otherwise) const { return has(key) ? integer(key) : otherwise; }
  bool flag(const std::string& key) const { return text(key, "false").starts_with("true"); }
  [[noreturn]] void refuse(const std::string& key) const {
    throw std::runtime_error("metadata '" + key + "' is '" + text(key) + "', which is not supported");
  }

 private:
  const moe::Metadata& metadata_;
};

inline moe::Normalise norm_of(const Facts& facts, moe::TopKGate& gate) {
  const std::string norm = facts.text("norm_topk_prob", "false");
  if (norm == "false") return moe::Normalise::None;
  if (norm == "true") return moe::Normalise::Sum;
  if (norm != "p_norm") facts.refuse("norm_topk_prob");
  gate.norm_p = facts.number("norm_p");
  return gate.norm_p == 1 ? moe::Normalise::Sum : gate.norm_p == 2 ? moe::Normalise::Euclidean : moe::Normalise::PNorm;
}

inline moe::TopKGate gate_of(const Facts& facts) {
  using moe::Normalise;
  moe::TopKGate gate{.k = facts.integer("top_k"), .scale = facts.number("routed_scaling_factor", 1)};
  const std::string order = facts.text("score_order"), score = facts.text("score_func", "softmax");
  if (score == "sigmoid") gate.score = moe::Score::Sigmoid;
  if (order == "topk_then_softmax")
    gate.normalise = Normalise::Sum;
  else if (order == "topk_then_sigmoid")
    gate.normalise = Normalise::None;
  else if (order == "softmax_then_topk" || order.starts_with("sigmoid_bias_") || order.starts_with("softmax_bias_"))
    gate.normalise = norm_of(facts, gate);
  else if (order != "sparsemixer_eval")
    facts.refuse("score_order");
  const std::string epsilon = facts.text("norm_eps", "0"), clamp = "clamp_min ";
  if (epsilon.starts_with(clamp))
    gate.floor = std::stod(epsilon.substr(clamp.size()));
  else
    gate.epsilon = facts.number("norm_eps", 0);
  if (facts.integer("n_group", 1) > 1 && facts.text("topk_method", "") != "greedy")
    gate.groups = {.count = facts.integer("n_group"),
                   .kept = facts.integer("topk_group"),
                   .best = facts.text("group_score", "max") == "sum_top2" ? 2 : 1};
  return gate;
}

/// Switch: a constant per sequence. NLLB: a constant, or a share of the tokens in evaluation.
inline std::optional<moe::CapacityOptions> capacity_of(const Facts& facts) {
  const std::string capacity = facts.text("capacity", "none");
  if (capacity == "none") return {};
  moe::CapacityOptions options{.factor = 0, .evaluation_factor = 0, .min_capacity = facts.integer("capacity")};
  if (capacity.find("per sequence") != capacity.npos) options.scope = moe::CapacityScope::Group;
  if (!facts.has("norm_before_dropping")) return options;
  if (facts.text("second_expert_policy", "all") != "all") facts.refuse("second_expert_policy");
  const double fraction = facts.number("eval_capacity_fraction", -1);
  if (fraction > 0) {  // ceil(fraction * T) = ceil(factor * 2 T / E)
    options.evaluation_factor = fraction * static_cast<double>(facts.integer("n_experts")) / 2;
    options.evaluation_min_capacity = 0;
  }
  if (facts.flag("batch_prioritized")) options.order = moe::ServiceOrder::ByScore;
  options.weights =
      facts.flag("norm_before_dropping") ? moe::KeptWeights::NormalisedFirst : moe::KeptWeights::Renormalised;
  options.floor = std::numeric_limits<float>::epsilon();
  options.evaluation_scale = 1 - facts.number("moe_token_dropout", 0);
  return options;
}

inline void set_experts(const Facts& facts, moe::MoeConfig& config) {
  const std::string kind = facts.text("expert_kind", "swiglu");
  if (kind == "gptoss_clamped_swiglu") {
    config.expert = moe::ExpertKind::ClampedGated;
    using Product = moe::ClampedSwiGlu;
    if (facts.number("clamp_limit", Product::kLimit) != Product::kLimit) facts.refuse("clamp_limit");
    if (facts.number("act_alpha", Product::kAlpha) != Product::kAlpha) facts.refuse("act_alpha");
    if (facts.number("up_offset", Product::kUpOffset) != Product::kUpOffset) facts.refuse("up_offset");
  } else if (kind == "mlp") {
    config.expert = moe::ExpertKind::ReluPlain;
    if (facts.text("expert_act", "relu") != "relu") facts.refuse("expert_act");
  } else if (kind != "swiglu" || facts.text("expert_act", "silu") != "silu") {
    facts.refuse(kind != "swiglu" ? "expert_kind" : "expert_act");
  }
  config.expert_bias = facts.flag("expert_bias");
  config.weight_on = facts.text("weight_on", "output") == "input" ? moe::WeightOn::Input : moe::WeightOn::Output;
  if (facts.text("shared_expert", "none") != "none") config.shared_dim = facts.integer("shared_d_ff");
  if (facts.text("shared_gate", "none") == "sigmoid") config.shared_gate = moe::SharedGate::Sigmoid;
  config.output_bias = facts.flag("output_bias");
}

/// `num_logits`: rows of the router, which say whether n_experts counts the identity experts.
inline moe::MoeConfig config_of(const Facts& facts, moe::Index num_logits) {
  moe::MoeConfig config;
  config.family = facts.text("family", facts.text("family_router", ""));
  config.model_dim = facts.integer("d_model");
  const bool has_experts = facts.has("family");
  config.hidden_dim = has_experts ? facts.integer("d_ff") : 1;
  config.num_identity_experts = facts.integer("zero_experts", 0);
  config.num_experts = num_logits - config.num_identity_experts;
  if (facts.integer("n_experts") != config.num_experts && facts.integer("n_experts") != num_logits)
    throw std::runtime_error("the router has " + std::to_string(num_logits) +
                             " rows, expected n_experts = " + facts.text("n_experts") + " as the metadata says");
  config.gate = gate_of(facts);
  if (facts.text("score_order") == "sparsemixer_eval") {
    config.sparse_mixer = moe::SparseMixerGate{.jitter = facts.number("router_jitter_eps")};
    if (config.gate.k != 2) facts.refuse("top_k");
  }
  const bool names_bias = facts.text("score_order").find("_bias_") != std::string::npos;
  config.selection_bias = facts.has("selection_bias") ? facts.flag("selection_bias") : names_bias;
  config.router_bias = facts.flag("router_bias");
  config.capacity = capacity_of(facts);
  if (has_experts) set_experts(facts, config);
  return config;
}

}  // namespace check
