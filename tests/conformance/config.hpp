// SPDX-License-Identifier: MIT
// What the metadata of a file of reference vectors says about its block, as the configuration of a block.
#pragma once

#include <limits>
#include <moe/io/families/families.hpp>
#include <moe/io/families/moe_config.hpp>

#include "facts.hpp"

namespace check {

/// By what chosen scores are divided. The order of the steps has the last word where its name holds "norm" or does not.
inline moe::Normalise norm_of(const Facts& facts, const std::string& order, moe::TopKGate& gate) {
  const std::string norm = facts.choice("norm_topk_prob", {"false", "true", "p_norm"});
  if (order == "topk_then_softmax" || order.ends_with("_gather_norm")) return moe::Normalise::Sum;
  if (order == "topk_then_sigmoid" || order.ends_with("_gather_scale")) {
    if (norm != "false") facts.refuse("norm_topk_prob", "false with score_order '" + order + "'");
    return moe::Normalise::Off;
  }
  if (norm == "false") return moe::Normalise::Off;
  if (norm == "true") return moe::Normalise::Sum;
  gate.norm_p = facts.number("norm_p");
  return gate.norm_p == 1 ? moe::Normalise::Sum : gate.norm_p == 2 ? moe::Normalise::Euclidean : moe::Normalise::PNorm;
}

inline void set_groups(const Facts& facts, moe::TopKGate& gate) {
  const std::string method = facts.choice("topk_method", {"", "greedy", "group_limited_greedy"});
  const std::string score = facts.choice("group_score", {"max", "sum_top2"});
  const moe::Index count = facts.integer("n_group", 1), kept = facts.integer("topk_group", 1);
  if (kept < 1 || kept > std::max<moe::Index>(count, 1)) facts.refuse("topk_group", "1 to n_group");
  if (method != "greedy" && count > 1)
    gate.groups = {.count = count, .kept = kept, .best = score == "sum_top2" ? 2 : 1};
}

inline moe::TopKGate gate_of(const Facts& facts) {
  facts.text("score_order");  // must be there
  const std::string order =
      facts.choice("score_order", {"softmax_then_topk", "topk_then_softmax", "topk_then_sigmoid", "sparsemixer_eval",
                                   "softmax_bias_topk_gather_norm", "softmax_bias_topk_gather_scale",
                                   "sigmoid_bias_topk_gather_norm", "sigmoid_bias_group_topk_gather_norm_scale"});
  const char* const score = order == "sparsemixer_eval"                  ? "sparsemixer"
                            : order.find("sigmoid") != std::string::npos ? "sigmoid"
                                                                         : "softmax";
  if (facts.text("score_func", score) != score)
    facts.refuse("score_func", "'" + std::string(score) + "' with score_order '" + order + "'");
  moe::TopKGate gate{.k = facts.integer("top_k"), .scale = facts.number("routed_scaling_factor", 1)};
  if (score == std::string("sigmoid")) gate.score = moe::Score::Sigmoid;
  gate.normalise = norm_of(facts, order, gate);
  const std::string epsilon = facts.text("norm_eps", "0"), clamp = "clamp_min ";
  if (epsilon.starts_with(clamp))
    gate.floor = facts.number_of("norm_eps", epsilon.substr(clamp.size()));
  else
    gate.epsilon = facts.number("norm_eps", 0);
  set_groups(facts, gate);
  return gate;
}

/// Of Switch: so many tokens of a sequence.
inline moe::CapacityOptions switch_capacity(const Facts& facts) {
  const std::string capacity = facts.text("capacity"), unit = " tokens per expert per sequence (batch row)";
  moe::CapacityOptions options{.scope = moe::CapacityScope::Group};
  if (capacity == "none") return options.factor = moe::kUnlimited, options;
  if (!capacity.ends_with(unit)) facts.refuse("capacity", "'none' or '<number>" + unit + "'");
  options.factor = options.evaluation_factor = 0;
  options.min_capacity = facts.integer_of("capacity", capacity.substr(0, capacity.size() - unit.size()));
  return options;
}

/// Of NLLB: so many tokens of the batch, or a share of them in evaluation. Without a number 2 ceil(tokens / experts).
inline moe::CapacityOptions nllb_capacity(const Facts& facts, moe::Index num_experts) {
  facts.choice("second_expert_policy", {"all"});
  moe::CapacityOptions options{.factor = 0, .evaluation_factor = 0, .min_capacity = 0};
  if (facts.text("capacity", "none") != "none")
    options.min_capacity = facts.integer("capacity");
  else
    options.factor = options.evaluation_factor = 1, options.multiple = 2;
  if (const double fraction = facts.number("eval_capacity_fraction", -1);
      fraction > 0) {  // ceil(fraction * T) = ceil(factor * 2 T / E)
    options.evaluation_factor = fraction * static_cast<double>(num_experts) / 2;
    options.evaluation_min_capacity = 0;
    options.evaluation_multiple = 1;
  }
  if (facts.flag("batch_prioritized")) options.order = moe::ServiceOrder::ByScore;
  options.weights =
      facts.flag("norm_before_dropping") ? moe::KeptWeights::NormalisedFirst : moe::KeptWeights::Renormalised;
  options.floor = std::numeric_limits<float>::epsilon();
  options.evaluation_scale = 1 - facts.number("moe_token_dropout", 0);
  return options;
}

inline void set_experts(const Facts& facts, moe::MoeConfig& config) {
  const std::string kind = facts.choice("expert_kind", {"swiglu", "gptoss_clamped_swiglu", "mlp"});
  const char* act = "silu";
  if (kind == "gptoss_clamped_swiglu") {
    config.expert = moe::ExpertKind::ClampedGated, act = "x*sigmoid(1.702x)";
    config.clamp = {.limit = facts.number("clamp_limit", config.clamp.limit),
                    .alpha = facts.number("act_alpha", config.clamp.alpha),
                    .up_offset = facts.number("up_offset", config.clamp.up_offset)};
  } else if (kind == "mlp") {
    const bool is_squared = facts.text("expert_act", "relu") == "relu2";
    config.expert = is_squared ? moe::ExpertKind::SquaredReluPlain : moe::ExpertKind::ReluPlain;
    act = is_squared ? "relu2" : "relu";
  }
  if (kind != "gptoss_clamped_swiglu" || !facts.text("expert_act", act).starts_with("x*sigmoid("))
    facts.choice("expert_act", {act});
  config.expert_bias = facts.flag("expert_bias");
  if (facts.choice("weight_on", {"output", "input"}) == "input") config.weight_on = moe::WeightOn::Input;
  config.shared_dim = facts.integer("shared_d_ff", 0);
  const std::string shared = facts.choice("shared_expert", {"none", "swiglu", "swiglu_fused_concat", "mlp"});
  const bool has_shared = shared != "none";
  if (has_shared && (shared == "mlp") != (config.expert == moe::ExpertKind::SquaredReluPlain))
    facts.refuse("shared_expert", "one that computes what the experts do");
  if (has_shared != (config.shared_dim > 0)) facts.refuse("shared_d_ff", "a width where there is a shared expert");
  if (facts.choice("shared_gate", {"none", "sigmoid"}) == "sigmoid") config.shared_gate = moe::SharedGate::Sigmoid;
  config.output_bias = facts.flag("output_bias");
  const bool first_choices = config.family == "nllb_moe";
  if (config.expert != moe::ExpertKind::ReluPlain)
    facts.choice("capacity", {"none"});
  else if (config.gate.scale != 1)
    facts.refuse("routed_scaling_factor", "1 of this family");
  else
    config.capacity = first_choices ? nllb_capacity(facts, config.num_experts) : switch_capacity(facts);
  facts.choice("drop_policy",
               {first_choices ? "first choices before second choices" : "position; dropped token -> zero output"});
}

/// `num_logits`: rows of the router, which say whether n_experts counts the identity experts.
inline moe::MoeConfig config_of(const Facts& facts, moe::Index num_logits) {
  moe::MoeConfig config;
  config.family = facts.text("family", facts.text("family_router", ""));
  config.model_dim = facts.integer("d_model");
  const bool has_experts = facts.has("family");
  config.hidden_dim = has_experts ? facts.integer("d_ff") : 1;
  config.num_identity_experts = facts.integer("zero_experts", 0);
  facts.choice("zero_expert_kind", {"identity"});
  config.num_experts = num_logits - config.num_identity_experts;
  if (facts.integer("n_experts") != config.num_experts && facts.integer("n_experts") != num_logits)
    throw std::runtime_error("the router has " + std::to_string(num_logits) +
                             " rows, expected n_experts = " + facts.text("n_experts") + " as the metadata says");
  config.gate = gate_of(facts);
  config.gate.constant_weights = moe::ConstantWeights::Accept;  // what is compared is the arithmetic, as it is
  const std::string order = facts.text("score_order", "");
  if (order == "sparsemixer_eval") {
    config.sparse_mixer = moe::SparseMixerGate{.jitter = facts.number("router_jitter_eps", 0.01)};
    if (config.gate.k != moe::SparseMixerGate::kChoices) facts.refuse("top_k", "2 of this family");
  }
  config.selection_bias =
      facts.has("selection_bias") ? facts.flag("selection_bias") : order.find("_bias_") != order.npos;
  config.router_bias = facts.flag("router_bias");
  if (has_experts) set_experts(facts, config);
  facts.choice("mode", {"eval", "train"});
  facts.choice("compute_dtype", {"F32"});
  config.validate();
  return config;
}

}  // namespace check
