// SPDX-License-Identifier: MIT
// The families of family_oracle.hpp.
#pragma once

#include "support/family_oracle.hpp"

namespace oracle {

namespace detail {

inline std::function<Vector(const Weights&, const Vector&)> linear_router(const std::string& name, Size experts) {
  return [=](const Weights& w, const Vector& x) { return product(w.at(name), 0, experts, x); };
}
inline std::string expert_name(Size e, const std::string& part) {
  return "experts." + std::to_string(e) + "." + part + ".weight";
}
inline void add_experts(Family& family, const Sizes& sizes, const std::string& gate, const std::string& up,
                        const std::string& down) {
  for (Size e = 0; e < sizes.experts; ++e) {
    family.shapes[expert_name(e, gate)] = family.shapes[expert_name(e, up)] = {sizes.hidden, sizes.dim};
    family.shapes[expert_name(e, down)] = {sizes.dim, sizes.hidden};
  }
  family.expert = [=](const Weights& w, Size e, const Vector& x) {
    return swiglu(w, expert_name(e, gate), expert_name(e, up), expert_name(e, down), x);
  };
}
inline Vector scaled(Vector values, double factor) {
  for (double& value : values) value *= factor;
  return values;
}
inline double sum_of(const Vector& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

}  // namespace detail

/// DeepSeek-V3: sigmoid scores, a bias for the choice, groups ranked by their two best, shared expert.
inline Family deepseek_v3(const Sizes& sizes, Size groups, Size kept, double scale) {
  Family family{.name = "deepseek_v3", .router = "gate.weight"};
  const std::string bias = "gate.e_score_correction_bias";
  family.shapes = {{"gate.weight", {sizes.experts, sizes.dim}}, {bias, {sizes.experts}}};
  detail::add_experts(family, sizes, "gate_proj", "up_proj", "down_proj");
  family.shapes["shared_experts.gate_proj.weight"] = {sizes.hidden + 3, sizes.dim};
  family.shapes["shared_experts.up_proj.weight"] = {sizes.hidden + 3, sizes.dim};
  family.shapes["shared_experts.down_proj.weight"] = {sizes.dim, sizes.hidden + 3};
  family.logits = detail::linear_router("gate.weight", sizes.experts);
  family.select = [=](const Weights& w, const Vector& z) {
    Vector rank(z.size()), group_rank(groups);
    for (Size e = 0; e < z.size(); ++e) rank[e] = sigmoid(z[e]) + w.at(bias).values[e];
    const Size size = z.size() / groups;
    for (Size g = 0; g < groups; ++g) {
      Vector inside(rank.begin() + static_cast<std::ptrdiff_t>(g * size),
                    rank.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
      std::sort(inside.rbegin(), inside.rend());
      group_rank[g] = inside[0] + inside[1];
    }
    const auto best = top(group_rank, kept);
    for (Size e = 0; e < z.size(); ++e)
      if (std::find(best.begin(), best.end(), e / size) == best.end()) rank[e] = -INFINITY;
    return top(rank, sizes.k);
  };
  family.weigh = [=](const Weights&, const Vector& z, const std::vector<Size>& experts) {
    Vector weights;
    for (const Size e : experts) weights.push_back(sigmoid(z[e]));
    return detail::scaled(weights, scale / (detail::sum_of(weights) + 1e-20));
  };
  family.shared = [](const Weights& w, const Vector& x) {
    return swiglu(w, "shared_experts.gate_proj.weight", "shared_experts.up_proj.weight",
                  "shared_experts.down_proj.weight", x);
  };
  family.facts = {{"score_func", "sigmoid"},
                  {"score_order", "sigmoid_bias_group_topk_gather_norm_scale"},
                  {"norm_topk_prob", "true"},
                  {"norm_eps", "1e-20"},
                  {"selection_bias", "true"},
                  {"n_group", std::to_string(groups)},
                  {"topk_group", std::to_string(kept)},
                  {"group_score", "sum_top2"},
                  {"routed_scaling_factor", std::to_string(scale)},
                  {"shared_expert", "swiglu"},
                  {"shared_d_ff", std::to_string(sizes.hidden + 3)}};
  return family;
}

/// MiniMax-M2: sigmoid scores, a bias for the choice, weights divided by their sum.
inline Family minimax_m2(const Sizes& sizes) {
  Family family{.name = "minimax_m2", .router = "gate.weight"};
  const std::string bias = "e_score_correction_bias";
  family.shapes = {{"gate.weight", {sizes.experts, sizes.dim}}, {bias, {sizes.experts}}};
  detail::add_experts(family, sizes, "w1", "w3", "w2");
  family.logits = detail::linear_router("gate.weight", sizes.experts);
  family.select = [=](const Weights& w, const Vector& z) {
    Vector rank(z.size());
    for (Size e = 0; e < z.size(); ++e) rank[e] = sigmoid(z[e]) + w.at(bias).values[e];
    return top(rank, sizes.k);
  };
  family.weigh = [](const Weights&, const Vector& z, const std::vector<Size>& experts) {
    Vector weights;
    for (const Size e : experts) weights.push_back(sigmoid(z[e]));
    return detail::scaled(weights, 1 / detail::sum_of(weights));
  };
  family.facts = {{"score_func", "sigmoid"},
                  {"score_order", "sigmoid_bias_topk_gather_norm"},
                  {"norm_topk_prob", "true"},
                  {"norm_eps", "0"},
                  {"selection_bias", "true"}};
  return family;
}

/// LongCat-Flash: one softmax over real and identity experts, chosen with a bias, weights scaled and not normalised.
inline Family longcat_flash(const Sizes& sizes, Size identities, double scale) {
  Family family{.name = "longcat_flash", .router = "router.classifier.weight"};
  const Size all = sizes.experts + identities;
  const std::string bias = "router.e_score_correction_bias";
  family.shapes = {{family.router, {all, sizes.dim}}, {bias, {all}}};
  detail::add_experts(family, sizes, "gate_proj", "up_proj", "down_proj");
  const auto real = family.expert;
  family.expert = [=](const Weights& w, Size e, const Vector& x) { return e < sizes.experts ? real(w, e, x) : x; };
  family.logits = detail::linear_router(family.router, all);
  family.select = [=](const Weights& w, const Vector& z) {
    Vector rank = softmax(z);
    for (Size e = 0; e < all; ++e) rank[e] += w.at(bias).values[e];
    return top(rank, sizes.k);
  };
  family.weigh = [=](const Weights&, const Vector& z, const std::vector<Size>& experts) {
    const Vector p = softmax(z);
    Vector weights;
    for (const Size e : experts) weights.push_back(scale * p[e]);
    return weights;
  };
  family.facts = {{"score_func", "softmax"},
                  {"score_order", "softmax_bias_topk_gather_scale"},
                  {"norm_topk_prob", "false"},
                  {"selection_bias", "true"},
                  {"zero_experts", std::to_string(identities)},
                  {"zero_expert_kind", "identity"},
                  {"routed_scaling_factor", std::to_string(scale)}};
  return family;
}

/// Phi-3.5-MoE in evaluation: two passes of a softmax over what comes close to the best.
inline Family phimoe(const Sizes& sizes, double jitter) {
  Family family{.name = "phimoe", .router = "gate.weight"};
  family.shapes = {{"gate.weight", {sizes.experts, sizes.dim}}};
  detail::add_experts(family, sizes, "w1", "w3", "w2");
  family.logits = detail::linear_router("gate.weight", sizes.experts);
  family.select = [](const Weights&, const Vector& z) { return top(z, 2); };
  family.weigh = [=](const Weights&, const Vector& z, const std::vector<Size>& experts) {
    Vector weights;
    for (Size pass = 0; pass < 2; ++pass) {
      const double best = z[experts[pass]];
      std::vector<bool> among(z.size());
      for (Size e = 0; e < z.size(); ++e)
        among[e] = !((best - z[e]) / std::max(std::abs(z[e]), best) > 2 * jitter) && !(pass == 1 && e == experts[0]);
      weights.push_back(softmax(z, among)[experts[pass]]);
    }
    return weights;
  };
  family.facts = {{"score_func", "sparsemixer"},
                  {"score_order", "sparsemixer_eval"},
                  {"router_jitter_eps", std::to_string(jitter)}};
  return family;
}

/// GPT-OSS: biases everywhere, gate and up columns in turn, a clamped product.
inline Family gpt_oss(const Sizes& sizes) {
  Family family{.name = "gpt_oss", .router = "router.weight"};
  const Size experts = sizes.experts, dim = sizes.dim, hidden = sizes.hidden;
  family.shapes = {{"router.weight", {experts, dim}},
                   {"router.bias", {experts}},
                   {"experts.gate_up_proj", {experts, dim, 2 * hidden}},
                   {"experts.gate_up_proj_bias", {experts, 2 * hidden}},
                   {"experts.down_proj", {experts, hidden, dim}},
                   {"experts.down_proj_bias", {experts, dim}}};
  family.logits = [=](const Weights& w, const Vector& x) {
    Vector z = product(w.at("router.weight"), 0, experts, x);
    for (Size e = 0; e < experts; ++e) z[e] += w.at("router.bias").values[e];
    return z;
  };
  family.select = [=](const Weights&, const Vector& z) { return top(z, sizes.k); };
  family.weigh = [](const Weights&, const Vector& z, const std::vector<Size>& chosen) {
    Vector weights;
    for (const Size e : chosen) weights.push_back(z[e]);
    return softmax(weights);
  };
  family.expert = [=](const Weights& w, Size e, const Vector& x) {
    Vector u = product_in_out(w.at("experts.gate_up_proj"), e * dim * 2 * hidden, 2 * hidden, x), h(hidden);
    for (Size i = 0; i < 2 * hidden; ++i) u[i] += w.at("experts.gate_up_proj_bias").values[e * 2 * hidden + i];
    for (Size i = 0; i < hidden; ++i) {
      const double gate = std::min(u[2 * i], 7.0), up = std::clamp(u[2 * i + 1], -7.0, 7.0);
      h[i] = (up + 1) * gate * sigmoid(1.702 * gate);
    }
    Vector y = product_in_out(w.at("experts.down_proj"), e * hidden * dim, dim, h);
    for (Size c = 0; c < dim; ++c) y[c] += w.at("experts.down_proj_bias").values[e * dim + c];
    return y;
  };
  family.facts = {{"score_func", "softmax"},
                  {"score_order", "topk_then_softmax"},
                  {"router_bias", "true"},
                  {"expert_bias", "true"},
                  {"clamp_limit", "7.0"},
                  {"act_alpha", "1.702"},
                  {"up_offset", "1.0"},
                  {"expert_kind", "gptoss_clamped_swiglu"},
                  {"expert_act", "x*sigmoid(1.702x)"}};
  return family;
}

}  // namespace oracle
