// SPDX-License-Identifier: MIT
// The router of Megatron-LM: scores, losses, balanced plans, drops and the update of the bias.
#pragma once

#include <moe/routing/balance/selection_bias.hpp>
#include <moe/routing/balance/sinkhorn.hpp>

#include "hugging_face.hpp"

namespace check {

inline moe::Score megatron_score(const std::string& name) {
  if (name == "softmax") return moe::Score::Softmax;
  if (name == "sigmoid") return moe::Score::Sigmoid;
  if (name == "sqrtsoftplus") return moe::Score::SqrtSoftplus;
  moe::fail_environment("score_function is '", name, "', expected softmax, sigmoid or sqrtsoftplus");
}

/// The softmax comes after the choice, which is then of logits, or before it; other scores are divided by their sum,
/// unless there is but one. Groups are ranked by the sum of the best k / (number of kept groups).
inline moe::TopKGate megatron_gate(Variant& v, Index experts) {
  moe::TopKGate gate{.k = v.integer("top_k", 2), .scale = v.number("scaling_factor", 1)};
  gate.score = megatron_score(v.text("score_function", "softmax"));
  const bool softmax = gate.score == moe::Score::Softmax, before = v.flag("use_pre_softmax", false);
  if (softmax ? before : gate.k == 1) gate.normalise = moe::Normalise::Off;
  if (!softmax) gate.epsilon = 1e-20;
  if (v.has("expert_bias")) {
    const auto bias = v.numbers("expert_bias", experts);
    gate.selection_bias = Eigen::Map<const moe::RowVector<float>>(bias.data(), experts).cast<double>();
  }
  gate.groups.count = v.integer("num_groups", v.integer("n_group", 1));
  gate.groups.kept = v.integer("group_topk", v.integer("topk_group", gate.groups.count));
  if (gate.groups.count > 1 && gate.groups.kept > 0) gate.groups.best = gate.k / gate.groups.kept;
  if (softmax && !before) gate.groups.rank = moe::GroupRank::Logits;
  return gate;
}

inline void check_megatron_scores(Variant& v) {
  const Matrix<float> logits = v.matrix("logits");
  const moe::TopKGate gate = megatron_gate(v, logits.cols());
  gate.validate(logits.cols());
  const Routing routing = routed(gate, logits);
  const PerExpert ours(routing, std::vector<Index>(routing.experts().size(), 0), logits.cols());
  v.near("probs", ours.combine);
  v.same("routing_map", ours.kept);
  v.same_fact("tokens", logits.rows());
  v.same_fact("n_experts", logits.cols());
}

/// The balance loss of all choices; scores but the softmax are divided by their sum over experts first. The choice is
/// made anew, without the bias.
inline void check_megatron_balance(Variant& v) {
  const Matrix<float> logits = v.matrix("logits");
  const Index experts = logits.cols(), k = v.integer("top_k", 2);
  const std::string described = v.text("score_function", v.text("scores", "softmax"));
  const moe::Score score = megatron_score(described.substr(0, described.find(' ')));
  const moe::TopKGate gate{.k = k, .score = score};
  const Routing routing = routed(gate, logits);
  v.same("tokens_per_expert", counts_of(routing, experts));
  // Weights of a gate that takes all experts: the scores over their sum.
  moe::TopKGate all{.k = experts, .score = score, .epsilon = score == moe::Score::Softmax ? 0 : 1e-20}, ignored;
  const Routing everyone = routed(all, logits);
  const PerExpert scores(everyone, std::vector<Index>(everyone.experts().size(), 0), experts);
  const double coefficient = v.number("coeff", 1);
  moe::RoutingGradient<float> gradient;
  v.near("loss",
         coefficient * moe::load_balancing_loss<float>(scores.combine, routing, moe::Step{}, coefficient, gradient));
  std::vector<float> dweight;
  for (Index t = 0; t < logits.rows(); ++t)
    for (const Index e : everyone.experts(t)) dweight.push_back(gradient.probability(t, e));
  Matrix<float> dlogits;
  all.backward(logits, moe::Step{}, everyone, std::span<const float>(dweight), Matrix<float>(), dlogits, ignored);
  v.near("grad_logits", dlogits, kWeightGradient);
}

inline void check_megatron_sinkhorn(Variant& v) {
  const Matrix<float> logits = v.matrix("logits");
  Matrix<float> plan;
  const Index iterations = std::clamp((Index{1} << 28) / logits.size(), Index{100}, Index{100000});  // a second of work
  moe::sinkhorn(logits, moe::Step{}, {.tolerance = v.number("tol", 1e-4), .max_iterations = iterations}, plan);
  v.near("norm", plan);
  if (!v.has("topk_indices")) return;
  const Index k = v.last_extent("topk_indices");
  if (k > logits.cols()) moe::fail_environment("topk_indices has ", k, " columns for ", logits.cols(), " experts");
  Integers chosen;
  std::vector<Index> best(static_cast<std::size_t>(k));
  for (Index t = 0; t < plan.rows(); ++t) {
    moe::top_k(plan.row(t).data(), plan.cols(), best);
    chosen.insert(chosen.end(), best.begin(), best.end());
  }
  v.same("topk_indices", chosen);
}

/// Every expert keeps the choices of the largest weight. Choices are those of a map, ascending.
inline void check_megatron_drops(Variant& v) {
  const Matrix<float> p = v.matrix("probs");
  const Index tokens = p.rows(), experts = p.cols();
  const Integers map = v.integers("routing_map", p.size());
  const auto chosen = [&](Index t, Index e) { return map[static_cast<std::size_t>(t * experts + e)] != 0; };
  Routing routing;
  routing.resize_ragged(tokens, [&](Index t) {
    Index count = 0;
    for (Index e = 0; e < experts; ++e) count += chosen(t, e) ? 1 : 0;
    return count;
  });
  for (Index t = 0, a = 0; t < tokens; ++t)
    for (Index e = 0; e < experts; ++e)
      if (chosen(t, e)) routing.experts()[static_cast<std::size_t>(a++)] = e;
  weigh(routing, [&](Index t, Index e) { return p(t, e); });
  const std::string policy = v.text("policy", "probs");
  if (policy != "probs") moe::fail_environment("policy is '", policy, "', expected probs: others are arbitrary");
  const auto options = moe::conventions::megatron(v.number("capacity_factor", 1));
  const moe::CapacityDemand demand{tokens, routing.num_assignments()};
  v.same_fact("capacity", moe::expert_capacity(options, moe::Phase::Training, demand, experts));
  moe::apply_capacity(options, experts, moe::Step::train(0), routing);
  const PerExpert ours(routing, std::vector<Index>(routing.experts().size(), 0), experts);
  v.near("final_probs", ours.combine);
  v.same("final_map", ours.kept);
}

inline void check_megatron_bias(Variant& v) {
  const auto before = v.numbers("expert_bias");
  const auto experts = static_cast<Index>(before.size());
  const Integers served = v.integers("tokens_per_expert", experts);
  Eigen::RowVectorXd bias = Eigen::Map<const moe::RowVector<float>>(before.data(), experts).cast<double>();
  moe::update_selection_bias(std::vector<Index>(served.begin(), served.end()), v.number("rate", 1e-3), bias);
  v.near("updated_bias", std::vector<double>(bias.data(), bias.data() + experts));
}

inline void check_megatron(Variant& v) {
  if (v.has("updated_bias")) return check_megatron_bias(v);
  if (v.has("norm")) return check_megatron_sinkhorn(v);
  if (v.has("final_map")) return check_megatron_drops(v);
  if (v.has("probs") && v.has("logits")) return check_megatron_scores(v);
  if (!v.has("loss")) moe::fail_environment("no rule for this variant");
  if (v.knows("top_k")) return check_megatron_balance(v);
  std::vector<std::uint8_t> valid;
  if (v.has("padding_mask")) {
    const Matrix<float> logits = v.matrix("logits");
    for (const std::uint8_t padding : v.mask("padding_mask", logits.rows())) valid.push_back(padding == 0);
  }
  check_z_loss(v, v.number("coeff", 1), valid);
}

}  // namespace check
