// SPDX-License-Identifier: MIT
// The gates of DeepSpeed-MoE.
#pragma once

#include "routers.hpp"

namespace check {

struct DeepSpeed {
  explicit DeepSpeed(Variant& v)
      : logits(v.matrix("logits")), probability(softmax_of(logits)), function(v.text("fn", "topkgating")) {
    k = function == "top1gating" ? 1 : function == "top2gating" ? 2 : v.integer("k", 2);
    if (function != "top1gating" && function != "top2gating" && function != "topkgating")
      moe::fail_environment("fn is '", function, "', expected top1gating, top2gating or topkgating");
    drops = v.flag("drop_tokens", true);
    const double factor = v.number("capacity_factor", 1);
    const Index least = v.integer("min_capacity", 4);
    const auto policy = v.text("drop_policy", "probs") == "position" ? moe::conventions::DropPolicy::Position
                                                                     : moe::conventions::DropPolicy::Probability;
    options = function == "top1gating" ? moe::conventions::deepspeed_top_1(factor, least, moe::ServiceOrder::ByPosition)
              : function == "top2gating" ? moe::conventions::deepspeed_top_2(factor, least)
                                         : moe::conventions::deepspeed_top_k(factor, least, policy);
    if (!drops) options.factor = moe::kUnlimited;
  }

  Index tokens() const { return logits.rows(); }
  Index experts() const { return logits.cols(); }

  /// First choices of the clean logits or, at k = 1, of those with Gumbel noise; where noise samples the second choice,
  /// of what the first leaves. Weights are always of the clean logits.
  Routing choose(Variant& v) const {
    const moe::TopKGate gate{.k = k, .normalise = moe::Normalise::Off};
    if (!v.has("gumbel")) return routed(gate, logits);
    Matrix<float> noisy = logits + v.matrix("gumbel", tokens(), experts());
    Routing routing = routed(gate, k == 1 ? noisy : logits);
    if (k == 2) {
      for (Index t = 0; t < tokens(); ++t) noisy(t, routing.experts(t)[0]) = -std::numeric_limits<float>::infinity();
      const Routing second = routed(moe::TopKGate{.k = 1}, noisy);
      for (Index t = 0; t < tokens(); ++t) routing.experts(t)[1] = second.experts(t)[0];
    }
    gate.replay(logits, moe::Step{}, routing);
    return routing;
  }

  /// Random token selection: every expert keeps the tokens with the largest numbers, which are those in the file.
  void keep_random(const Matrix<float>& uniform, Routing& routing) const {
    weigh(routing, [&](Index t, Index e) { return uniform(t, e); });
    auto by_number = options;
    by_number.order = moe::ServiceOrder::ByWeight;
    moe::apply_capacity(by_number, experts(), moe::Step::train(0), routing);
    weigh(routing, [&](Index t, Index e) { return probability(t, e); });
  }

  Matrix<float> logits, probability;
  std::string function;
  Index k = 1;
  bool drops = true;
  moe::CapacityOptions options;
};

inline void check_deepspeed(Variant& v) {
  const DeepSpeed gate(v);
  const Index tokens = gate.tokens(), experts = gate.experts();
  Routing routing = gate.choose(v);
  double used = 1;  // share of the tokens that are used; f is a share of all
  if (v.has("used_token")) {
    const auto mask = v.mask("used_token", tokens);
    used = static_cast<double>(std::count(mask.begin(), mask.end(), 1)) / static_cast<double>(tokens);
    for (Index t = 0; t < tokens; ++t)
      for (Index a = routing.begin(t); a < routing.end(t); ++a)
        if (!mask[static_cast<std::size_t>(t)]) routing.drop(a, moe::kDroppedByGate);
  }
  moe::RoutingGradient<float> ignored;
  const auto counted = gate.function == "topkgating" ? moe::CountedChoices::All : moe::CountedChoices::First;
  v.near("l_aux", used * moe::load_balancing_loss<float>(gate.probability, routing, moe::Step{}, 0, ignored,
                                                         {counted, moe::DroppedChoices::Ignore}));
  const Integers counts = counts_of(routing, experts);
  v.same("exp_counts", counts);
  const Index capacity =
      gate.drops ? moe::expert_capacity(gate.options, moe::Phase::Training, {tokens, tokens * gate.k}, experts)
                 : *std::max_element(counts.begin(), counts.end());
  v.same("capacity", {capacity});
  v.same_fact("capacity", capacity);
  if (v.has("rts_uniform"))
    gate.keep_random(v.matrix("rts_uniform", tokens, experts), routing);
  else
    moe::apply_capacity(gate.options, experts, moe::Step::train(0), routing);
  // Places are counted among what is left, in the order of tokens.
  auto order = gate.options;
  if (order.order == moe::ServiceOrder::ByWeight) order.order = moe::ServiceOrder::ByToken;
  const PerExpert ours(routing, moe::buffer_slots(order, experts, moe::Step{}, routing), experts);
  v.same("location_se", ours.slot);
  v.same("kept_mask", ours.kept);
  v.near("combine_se", ours.combine);
  v.same_fact("kept", count_of(ours.kept));
  v.same_fact("tokens", tokens);
  v.same_fact("n_experts", experts);
}

}  // namespace check
