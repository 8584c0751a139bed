// SPDX-License-Identifier: MIT
// The gates of lucidrains: tensor2tensor's top 2 (mixture-of-experts) and ST-MoE's top n (st-moe-pytorch).
#pragma once

#include <moe/expert/mlp.hpp>
#include <moe/gate/wrap/with_chance.hpp>
#include <moe/routing/balance/z_loss.hpp>

#include "routers.hpp"

namespace check {

/// What both have in common: sequences that compete by themselves, first choices of all tokens first.
struct Lucidrains {
  Lucidrains(Variant& v, const Matrix<float>& input, const Matrix<float>& weight, Index k_)
      : tokens(input),
        logits(logits_of(linear_router(weight), tokens)),
        training(v.text("mode", "eval") == "train"),
        sequences(tokens.rows(), sequence_length(v, "input"), training),
        k(k_) {
    factor = v.number("capacity_factor_" + phase(), training ? 1.25 : 2);
    options = moe::conventions::tensor2tensor(factor, v.integer("min_capacity", 4));
    options.weights = moe::KeptWeights::AsTheyAre;  // chance decides by normalised weights: the gate normalises
    v.same_fact("n_experts", logits.cols());
  }

  std::string phase() const { return training ? "train" : "eval"; }
  moe::TopKGate gate() const { return {.k = k, .floor = 1e-9}; }

  /// The share, but at most the tokens of the sequence, and at least the minimum.
  Index capacity() const {
    auto share = options;
    share.min_capacity = 0;
    const moe::CapacityDemand demand{sequences.length, sequences.length * k};
    const Index places = moe::expert_capacity(share, moe::Phase::Training, demand, logits.cols());
    return std::max(std::min(sequences.length, places), options.min_capacity);
  }

  /// Limits the choices and compares them.
  void limit(Variant& v, Routing& routing) const {
    v.same("capacity", {capacity()});
    moe::apply_capacity(options, logits.cols(), sequences.step, routing);
    const PerExpert ours(routing, moe::buffer_slots(options, logits.cols(), sequences.step, routing), logits.cols());
    v.same("position_bne", ours.slot);
    v.near("combine_bne", ours.combine);
  }

  Matrix<float> tokens, logits;
  bool training;
  Groups sequences;
  Index k;
  double factor = 1;
  moe::CapacityOptions options;
};

/// Experts without biases: w1 [experts, dim, hidden], w2 [experts, hidden, dim], of y = w2^T relu(w1^T x).
using ReluExperts = moe::ExpertPool<moe::BasicMlp<moe::F32, moe::Relu>>;
inline ReluExperts relu_experts(const Matrix<float>& w1, const Matrix<float>& w2, Index dim) {
  const Index hidden = w1.cols();
  std::vector<moe::BasicMlp<moe::F32, moe::Relu>> pool;
  for (Index e = 0; e < w1.rows() / dim; ++e) {
    auto& expert = pool.emplace_back(dim, hidden, moe::Bias::Off);
    expert.up().write(span_of(Matrix<float>(w1.middleRows(e * dim, dim).transpose())));
    expert.down().write(span_of(Matrix<float>(w2.middleRows(e * hidden, hidden).transpose())));
  }
  return ReluExperts(std::move(pool));
}
inline ReluExperts read_relu_experts(Variant& v, Index experts, Index dim) {
  if (v.text("act", "relu") != "relu") moe::fail_environment("act is '", v.text("act"), "', expected relu");
  const Matrix<float> w1 = v.matrix("w.experts.w1", experts * dim);
  return relu_experts(w1, v.matrix("w.experts.w2", experts * w1.cols(), dim), dim);
}

/// Second choices: all, none, or by chance with the random numbers of the file.
inline void drop_second_choices(Variant& v, const Lucidrains& rule, Routing& routing) {
  const std::string policy = v.text("second_policy_" + rule.phase(), "random");
  if (policy == "all") return;
  const double threshold = v.number("second_threshold_" + rule.phase(), 0.2);
  if (policy == "random") {
    const auto uniform = v.numbers("rand_second", rule.tokens.rows());
    moe::drop_by_chance(
        threshold, [&](Index t, Index) { return static_cast<double>(uniform[static_cast<std::size_t>(t)]); }, routing);
  } else if (policy == "none") {
    moe::drop_by_chance(
        moe::kUnlimited, [](Index, Index) { return 0.0; }, routing);
  } else {
    moe::fail_environment("second_policy is '", policy, "', expected all, none or random");
  }
}

inline void check_tensor2tensor(Variant& v) {
  if (!v.has("w.gate.w_gating")) moe::fail_environment("no rule for this variant");
  const Matrix<float> input = v.matrix("input");
  const Lucidrains rule(v, input, v.matrix("w.gate.w_gating", input.cols()).transpose(), 2);
  Routing routing = routed(rule.gate(), rule.logits, rule.sequences.step);
  const auto balance = balance_of_groups(softmax_of(rule.logits), routing, rule.sequences, {moe::CountedChoices::First},
                                         [](const auto&...) { return 1.0; });
  v.near("loss", balance.loss);
  v.near("loss_scaled", v.number("loss_coef", 1e-2) * balance.loss);
  drop_second_choices(v, rule, routing);
  rule.limit(v, routing);
  if (v.has("output"))
    v.near("output", combined(read_relu_experts(v, rule.logits.cols(), input.cols()), rule.tokens, routing));
}

/// Choice s > 0 stays if its random number is below its weight over threshold s - 1.
inline void check_st_moe(Variant& v) {
  const Matrix<float> input = v.matrix("input");
  const Index tokens = input.rows(), k = v.integer("top_n", 2);
  const Lucidrains rule(v, input, v.matrix("w_gate", kAny, input.cols()), k);
  Routing routing = routed(rule.gate(), rule.logits, rule.sequences.step);
  const std::vector<double> threshold = v.numbers_in("threshold_" + rule.phase(), 0.2);
  const Matrix<float> uniform = v.has("rand") ? v.matrix("rand") : Matrix<float>();
  if (k > 1 && uniform.size() != k * tokens)
    moe::fail_environment("rand has ", uniform.size(), " numbers, expected ", k * tokens);
  const auto scaled = [&](Index t, Index slot) {  // u < weight / threshold, as u threshold < weight
    const auto s = std::min(static_cast<std::size_t>(slot - 1), threshold.size() - 1);
    return static_cast<double>(uniform.data()[slot * tokens + t]) * std::max(threshold[s], 1e-9);
  };
  if (k > 1) moe::drop_by_chance(1, scaled, routing);
  rule.limit(v, routing);

  const moe::LoadBalancingOptions counted{moe::CountedChoices::First, moe::DroppedChoices::Ignore};
  const auto kept_share = [&](const Routing& part, const moe::Step&) {  // f is a share of tokens, after drops
    double kept = 0;
    for (Index t = 0; t < part.num_tokens(); ++t) kept += part.dropped(t)[0] ? 0 : 1;
    return kept / static_cast<double>(part.num_tokens());
  };
  moe::RoutingGradient<float> ignored;
  const double balance = balance_of_groups(softmax_of(rule.logits), routing, rule.sequences, counted, kept_share).loss;
  v.near("balance_loss", rule.training ? balance : 0);
  v.near("router_z_loss", rule.training ? moe::z_loss<float>(rule.logits, moe::Step{}, 0, ignored) : 0);
}

}  // namespace check
