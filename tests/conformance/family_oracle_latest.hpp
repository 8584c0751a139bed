// SPDX-License-Identifier: MIT
// Families of 2025 and 2026 as plain loops, by what their public code computes; see family_oracle.hpp.
#pragma once

#include <sstream>

#include "conformance/family_oracle_softmax.hpp"

namespace oracle {

namespace detail {

/// Where a router by sigmoids has its tensors, and its numbers. An empty bias is none.
struct SigmoidRouter {
  std::string router = "gate.weight", bias = "gate.e_score_correction_bias";
  double epsilon = 1e-20, scale = 1;
  bool normalises = true;
};

/// The best by sigmoid + bias; weights are the sigmoids, divided by their sum + epsilon, times the scale.
inline void choose_by_sigmoid(Family& family, const Sizes& sizes, const SigmoidRouter& rule) {
  family.router = rule.router;
  family.shapes[rule.router] = {sizes.experts, sizes.dim};
  if (!rule.bias.empty()) family.shapes[rule.bias] = {sizes.experts};
  family.logits = linear_router(rule.router, sizes.experts);
  family.select = [=](const Weights& w, const Vector& z) {
    Vector rank(z.size());
    for (Size e = 0; e < z.size(); ++e)
      rank[e] = 1 / (1 + std::exp(-z[e])) + (rule.bias.empty() ? 0 : w.at(rule.bias).values[e]);
    return top(rank, sizes.k);
  };
  family.weigh = [=](const Weights&, const Vector& z, const std::vector<Size>& experts) {
    Vector weights;
    double sum = 0;
    for (const Size e : experts) weights.push_back(1 / (1 + std::exp(-z[e]))), sum += weights.back();
    for (double& weight : weights) weight *= rule.scale / (rule.normalises ? sum + rule.epsilon : 1);
    return weights;
  };
  std::ostringstream epsilon;
  epsilon << rule.epsilon;
  family.facts = {{"score_func", "sigmoid"},
                  {"score_order", "sigmoid_bias_group_topk_gather_norm_scale"},
                  {"norm_topk_prob", rule.normalises ? "true" : "false"},
                  {"norm_eps", epsilon.str()},
                  {"selection_bias", rule.bias.empty() ? "false" : "true"},
                  {"routed_scaling_factor", std::to_string(rule.scale)}};
}

/// Up, the square of what is positive, down.
inline Vector squared_mlp(const Vector& pre, const std::function<Vector(const Vector&)>& down) {
  Vector h(pre.size());
  for (Size i = 0; i < h.size(); ++i) h[i] = pre[i] > 0 ? pre[i] * pre[i] : 0;
  return down(h);
}

/// As transformers 5 saves experts: [E, 2F, D] and [E, D, F].
inline Family resaved(Family family, const Sizes& sizes) {
  for (auto shape = family.shapes.begin(); shape != family.shapes.end();)
    shape = shape->first.starts_with("experts.") ? family.shapes.erase(shape) : std::next(shape);
  fuse_experts(family, sizes, "experts.gate_up_proj", "experts.down_proj", false);
  return family;
}
inline Family renamed(Family family, const std::string& name) {
  family.name = name;
  return family;
}
inline void rename_tensor(Family& family, const std::string& from, const std::string& to) {
  family.shapes[to] = family.shapes.at(from);
  family.shapes.erase(from);
}

}  // namespace detail

/// DeepSeek-V3's rule without groups and its shared expert: GLM, Kimi K2, dots.llm1, K-EXAONE, Hy3.
inline Family sigmoid_shared(const std::string& name, const Sizes& sizes, const detail::SigmoidRouter& rule,
                             const std::string& shared = "shared_experts") {
  Family family{.name = name};
  detail::choose_by_sigmoid(family, sizes, rule);
  detail::add_experts(family, sizes, "gate_proj", "up_proj", "down_proj");
  detail::add_shared(family, sizes, shared, 2 * sizes.hidden);
  return family;
}

/// Kimi Linear: DeepSeek-V3, groups and all, with the names of Mixtral's experts.
inline Family kimi_linear(const Sizes& sizes, Size groups, Size kept, double scale) {
  Family family = deepseek_v3(sizes, groups, kept, scale);
  for (Size e = 0; e < sizes.experts; ++e)
    for (const char* name : {"gate_proj", "up_proj", "down_proj"}) family.shapes.erase(detail::expert_name(e, name));
  for (const char* name : {"gate", "up", "down"})
    family.shapes.erase("shared_experts." + std::string(name) + "_proj.weight");
  detail::add_experts(family, sizes, "w1", "w3", "w2");
  detail::add_shared(family, sizes, "shared_experts", 2 * sizes.hidden);
  return detail::renamed(family, "kimi_linear");
}

/// MiMo-V2-Flash: the same without a shared expert.
inline Family mimo_v2_flash(const Sizes& sizes) {
  Family family{.name = "mimo_v2_flash"};
  detail::choose_by_sigmoid(family, sizes, {});
  detail::add_experts(family, sizes, "gate_proj", "up_proj", "down_proj");
  return family;
}

/// LFM2: sums + 1e-6, a bias or none, the names of Mixtral's experts.
inline Family lfm2_moe(const Sizes& sizes, bool has_bias, bool normalises) {
  Family family{.name = "lfm2_moe"};
  detail::choose_by_sigmoid(family, sizes,
                            {.bias = has_bias ? "expert_bias" : "", .epsilon = 1e-6, .normalises = normalises});
  detail::add_experts(family, sizes, "w1", "w3", "w2");
  return family;
}

/// Nemotron-H: experts and a shared expert of two layers, with a squared ReLU between them.
inline Family nemotron_h(const Sizes& sizes, bool fused) {
  Family family{.name = "nemotron_h"};
  detail::choose_by_sigmoid(family, sizes, {.scale = 2.5});
  const Size dim = sizes.dim, hidden = sizes.hidden, width = hidden + 4;
  if (fused)
    family.shapes.insert(
        {{"experts.up_proj", {sizes.experts, hidden, dim}}, {"experts.down_proj", {sizes.experts, dim, hidden}}});
  for (Size e = 0; e < sizes.experts && !fused; ++e)
    family.shapes.insert(
        {{detail::expert_name(e, "up_proj"), {hidden, dim}}, {detail::expert_name(e, "down_proj"), {dim, hidden}}});
  family.shapes.insert(
      {{"shared_experts.up_proj.weight", {width, dim}}, {"shared_experts.down_proj.weight", {dim, width}}});
  family.expert = [=](const Weights& w, Size e, const Vector& x) {
    const Tensor& up = w.at(fused ? "experts.up_proj" : detail::expert_name(e, "up_proj"));
    const Tensor& down = w.at(fused ? "experts.down_proj" : detail::expert_name(e, "down_proj"));
    const Size first = fused ? e * hidden * dim : 0;
    return detail::squared_mlp(product(up, first, hidden, x),
                               [&](const Vector& h) { return product(down, first, dim, h); });
  };
  family.shared = [=](const Weights& w, const Vector& x) {
    return detail::squared_mlp(product(w.at("shared_experts.up_proj.weight"), 0, width, x), [&](const Vector& h) {
      return product(w.at("shared_experts.down_proj.weight"), 0, dim, h);
    });
  };
  family.facts.insert({{"expert_kind", "mlp"},
                       {"expert_act", "relu2"},
                       {"shared_expert", "mlp"},
                       {"shared_d_ff", std::to_string(width)}});
  if (fused) family.facts["layout"] = "fused_out_in";
  return family;
}

/// Qwen3-VL: Qwen3-MoE whose experts are in x out.
inline Family qwen3_vl_moe(const Sizes& sizes) {
  Family family{.name = "qwen3_vl_moe"};
  detail::choose_by_softmax(family, sizes, "gate.weight", 1);
  detail::fuse_experts(family, sizes, "experts.gate_up_proj", "experts.down_proj", true);
  return family;
}

/// ERNIE 4.5 as it is saved again: the bias has moved below the router.
inline Family resaved_ernie(const Sizes& sizes) {
  Family family = detail::resaved(ernie4_5_moe(sizes), sizes);
  const std::string from = "moe_statics.e_score_correction_bias", to = "gate." + from;
  detail::rename_tensor(family, from, to);
  family.select = [=](const Weights& w, const Vector& z) {
    Vector rank = softmax(z);
    for (Size e = 0; e < rank.size(); ++e) rank[e] += w.at(to).values[e];
    return top(rank, sizes.k);
  };
  return family;
}

/// LongCat as it is saved again: gates and ups have entries of the identity experts, too.
inline Family resaved_longcat(const Sizes& sizes, Size identities, double scale) {
  Family family = longcat_flash(sizes, identities, scale);
  family = detail::resaved(std::move(family), sizes);
  family.shapes.at("experts.gate_up_proj")[0] += identities;
  const auto real = family.expert;
  family.expert = [=](const Weights& w, Size e, const Vector& x) { return e < sizes.experts ? real(w, e, x) : x; };
  return family;
}

}  // namespace oracle
