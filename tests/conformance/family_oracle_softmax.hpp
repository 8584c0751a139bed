// SPDX-License-Identifier: MIT
// Families that choose by a softmax, or by the logits themselves, as plain loops; see family_oracle.hpp.
#pragma once

#include "conformance/family_oracle_models.hpp"

namespace oracle {

namespace detail {

/// Weights p of the chosen, divided by their p-norm; 0: as they are.
inline void choose_by_softmax(Family& family, const Sizes& sizes, const std::string& router, double norm) {
  family.router = router;
  family.shapes[router] = {sizes.experts, sizes.dim};
  family.logits = linear_router(router, sizes.experts);
  family.select = [=](const Weights&, const Vector& z) { return top(z, sizes.k); };
  family.weigh = [=](const Weights&, const Vector& z, const std::vector<Size>& experts) {
    const Vector p = softmax(z);
    Vector weights;
    double sum = 0;
    for (const Size e : experts) weights.push_back(p[e]), sum += std::pow(p[e], norm);
    return scaled(weights, norm == 0 ? 1 : 1 / std::pow(sum, 1 / norm));
  };
  family.facts = {{"score_func", "softmax"},
                  {"score_order", "softmax_then_topk"},
                  {"norm_topk_prob", norm == 0 ? "false" : "true"}};
}

inline void add_shared(Family& family, const Sizes& sizes, const std::string& name, Size width) {
  const std::string gate = name + ".gate_proj.weight", up = name + ".up_proj.weight", down = name + ".down_proj.weight";
  family.shapes[gate] = family.shapes[up] = {width, sizes.dim};
  family.shapes[down] = {sizes.dim, width};
  family.shared = [=](const Weights& w, const Vector& x) { return swiglu(w, gate, up, down, x); };
  family.facts["shared_expert"] = "swiglu";
  family.facts["shared_d_ff"] = std::to_string(width);
}

/// silu of the first half of u times the second.
inline Vector gated_halves(const Vector& u) {
  Vector h(u.size() / 2);
  for (Size i = 0; i < h.size(); ++i) h[i] = silu(u[i]) * u[h.size() + i];
  return h;
}

/// [E, 2F, D] and [E, D, F], or the transpose of both.
inline void fuse_experts(Family& family, const Sizes& sizes, const std::string& up, const std::string& down,
                         bool in_out) {
  const Size count = sizes.experts, dim = sizes.dim, hidden = sizes.hidden, block = dim * hidden;
  using Shape = std::vector<Size>;
  family.shapes[up] = in_out ? Shape{count, dim, 2 * hidden} : Shape{count, 2 * hidden, dim};
  family.shapes[down] = in_out ? Shape{count, hidden, dim} : Shape{count, dim, hidden};
  family.expert = [=](const Weights& w, Size e, const Vector& x) {
    const auto multiply = in_out ? product_in_out : product;
    const Vector h = gated_halves(multiply(w.at(up), e * 2 * block, 2 * hidden, x));
    return multiply(w.at(down), e * block, dim, h);
  };
}

}  // namespace detail

/// Mixtral, OLMoE, Qwen3-MoE, Jamba: experts side by side. `experts` are the names of gate, up and down.
inline Family plain(const std::string& name, const Sizes& sizes, const std::string& router, bool normalises) {
  Family family{.name = name};
  detail::choose_by_softmax(family, sizes, router, normalises ? 1 : 0);
  if (name == "mixtral")
    detail::add_experts(family, sizes, "w1", "w3", "w2");
  else
    detail::add_experts(family, sizes, "gate_proj", "up_proj", "down_proj");
  family.has_balance_loss = true;
  return family;
}

/// Qwen2-MoE: the shared expert is scaled by a sigmoid.
inline Family qwen2_moe(const Sizes& sizes, bool normalises) {
  Family family = plain("qwen2_moe", sizes, "gate.weight", normalises);
  detail::add_shared(family, sizes, "shared_expert", sizes.hidden + 5);
  family.shapes["shared_expert_gate.weight"] = {1, sizes.dim};
  const auto inner = family.shared;
  family.shared = [=](const Weights& w, const Vector& x) {
    return detail::scaled(inner(w, x), sigmoid(product(w.at("shared_expert_gate.weight"), 0, 1, x)[0]));
  };
  family.facts["shared_gate"] = "sigmoid";
  return family;
}

/// DeepSeek-V2: groups, if more than one, ranked by their best expert; weights scaled, not normalised.
inline Family deepseek_v2(const Sizes& sizes, Size groups, Size kept, double scale) {
  Family family = plain("deepseek_v2", sizes, "gate.weight", false);
  family.has_balance_loss = false;
  detail::add_shared(family, sizes, "shared_experts", 2 * sizes.hidden);
  family.select = [=](const Weights&, const Vector& z) {
    const Size size = z.size() / groups;
    Vector best(groups, -INFINITY), rank = z;
    for (Size e = 0; e < z.size(); ++e) best[e / size] = std::max(best[e / size], z[e]);
    const auto chosen = top(best, kept);
    for (Size e = 0; e < z.size(); ++e)
      if (std::find(chosen.begin(), chosen.end(), e / size) == chosen.end()) rank[e] = -INFINITY;
    return top(rank, sizes.k);
  };
  const auto inner = family.weigh;
  family.weigh = [=](const Weights& w, const Vector& z, const std::vector<Size>& experts) {
    return detail::scaled(inner(w, z, experts), scale);
  };
  family.facts.insert({{"topk_method", groups > 1 ? "group_limited_greedy" : "greedy"},
                       {"n_group", std::to_string(groups)},
                       {"topk_group", std::to_string(kept)},
                       {"group_score", "max"},
                       {"routed_scaling_factor", std::to_string(scale)}});
  return family;
}

/// GLM-4-MoE: DeepSeek-V3 without groups.
inline Family glm4_moe(const Sizes& sizes, double scale) {
  Family family = deepseek_v3(sizes, 1, 1, scale);
  family.name = "glm4_moe";
  return family;
}

/// HunYuan: Mixtral's rule, other names, a shared expert.
inline Family hunyuan_v1_moe(const Sizes& sizes) {
  Family family = plain("hunyuan_v1_moe", sizes, "gate.wg.weight", true);
  detail::add_shared(family, sizes, "shared_mlp", sizes.hidden);
  return family;
}

/// ERNIE 4.5: chosen with a bias on the probabilities, weights divided by their sum.
inline Family ernie4_5_moe(const Sizes& sizes) {
  Family family = plain("ernie4_5_moe", sizes, "gate.weight", true);
  detail::add_shared(family, sizes, "shared_experts", sizes.hidden + 2);
  const std::string bias = "moe_statics.e_score_correction_bias";
  family.shapes[bias] = {1, sizes.experts};
  family.select = [=](const Weights& w, const Vector& z) {
    Vector rank = softmax(z);
    for (Size e = 0; e < rank.size(); ++e) rank[e] += w.at(bias).values[e];
    return top(rank, sizes.k);
  };
  family.facts["score_order"] = "softmax_bias_topk_gather_norm";
  family.facts.insert({{"selection_bias", "true"}, {"norm_eps", "clamp_min 1e-12"}});
  return family;
}

/// Granite, JetMoE, Aria: a softmax over the chosen logits, fused experts.
inline Family granite(const std::string& name, const Sizes& sizes, const std::string& folder) {
  Family family{.name = name};
  detail::choose_by_softmax(family, sizes, folder + "router.layer.weight", 1);
  detail::fuse_experts(family, sizes, folder + "input_linear.weight", folder + "output_linear.weight", false);
  family.facts["score_order"] = "topk_then_softmax";
  family.facts["norm_topk_prob"] = "false";
  family.has_balance_loss = true;
  return family;
}
inline Family granitemoeshared(const Sizes& sizes) {
  Family family = granite("granitemoeshared", sizes, "block_sparse_moe.");
  const Size width = sizes.hidden + 4;
  const std::string up = "shared_mlp.input_linear.weight", down = "shared_mlp.output_linear.weight";
  family.shapes[up] = {2 * width, sizes.dim};
  family.shapes[down] = {sizes.dim, width};
  family.shared = [=](const Weights& w, const Vector& x) {
    return product(w.at(down), 0, x.size(), detail::gated_halves(product(w.at(up), 0, 2 * width, x)));
  };
  family.facts.insert({{"shared_expert", "swiglu_fused_concat"}, {"shared_d_ff", std::to_string(width)}});
  return family;
}
inline Family jetmoe(const Sizes& sizes) {
  Family family = granite("jetmoe", sizes, "");
  family.shapes["bias"] = {sizes.dim};
  family.shared = [](const Weights& w, const Vector&) { return w.at("bias").values; };
  family.facts["output_bias"] = "true (one [d] vector added once per token, unweighted)";
  return family;
}
inline Family aria(const Sizes& sizes) {
  Family family{.name = "aria"};
  detail::choose_by_softmax(family, sizes, "router.weight", 1);
  detail::fuse_experts(family, sizes, "experts.fc1.weight", "experts.fc2.weight", true);
  detail::add_shared(family, sizes, "shared_experts", 2 * sizes.hidden);
  family.facts["score_order"] = "topk_then_softmax";
  family.facts["norm_topk_prob"] = "false";
  return family;
}

/// Llama 4: a sigmoid of the chosen logits, on the input of the expert.
inline Family llama4(const Sizes& sizes) {
  Family family{.name = "llama4", .weight_on_input = true};
  detail::choose_by_softmax(family, sizes, "router.weight", 0);
  detail::fuse_experts(family, sizes, "experts.gate_up_proj", "experts.down_proj", true);
  detail::add_shared(family, sizes, "shared_expert", sizes.hidden);
  family.weigh = [](const Weights&, const Vector& z, const std::vector<Size>& experts) {
    Vector weights;
    for (const Size e : experts) weights.push_back(sigmoid(z[e]));
    return weights;
  };
  family.facts["score_func"] = "sigmoid";
  family.facts["score_order"] = "topk_then_sigmoid";
  family.facts["weight_on"] = "input";
  return family;
}

/// DBRX: weights divided by their p-norm, experts stacked row by row, down projections [in, out].
inline Family dbrx(const Sizes& sizes, double norm, const std::string& written) {
  Family family{.name = "dbrx"};
  detail::choose_by_softmax(family, sizes, "router.layer.weight", norm);
  const Size dim = sizes.dim, hidden = sizes.hidden;
  for (const char* name : {"w1", "v1", "w2"})
    family.shapes["experts.mlp." + std::string(name)] = {sizes.experts * hidden, dim};
  family.expert = [=](const Weights& w, Size e, const Vector& x) {
    const Size first = e * hidden * dim;
    Vector h = product(w.at("experts.mlp.w1"), first, hidden, x);
    const Vector up = product(w.at("experts.mlp.v1"), first, hidden, x);
    for (Size i = 0; i < hidden; ++i) h[i] = silu(h[i]) * up[i];
    return product_in_out(w.at("experts.mlp.w2"), first, dim, h);
  };
  family.facts["norm_topk_prob"] = norm == 0 ? "false" : "p_norm";
  if (norm != 0) family.facts["norm_p"] = written;
  family.has_balance_loss = family.has_probabilities = true;
  return family;
}

}  // namespace oracle
