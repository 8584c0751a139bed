// SPDX-License-Identifier: MIT
// The routers of T5X (flaxformer). Groups of tokens compete by themselves. Padding are tokens of zeros.
#pragma once

#include <moe/gate/expert_choice.hpp>
#include <moe/routing/balance/z_loss.hpp>

#include "routers.hpp"

namespace check {

struct Flaxformer {
  explicit Flaxformer(Variant& v)
      : tokens(v.matrix("input")),
        logits(logits_of(linear_router(v.matrix("w_router", tokens.cols()).transpose()), tokens)),
        probability(softmax_of(logits)),
        groups(tokens.rows(), sequence_length(v, "input"), true),
        kind(v.text("cls")) {
    has_padding = v.integer("padding_tokens", 0) > 0;
    for (Index t = 0; t < tokens.rows(); ++t) {
      is_padding.push_back(has_padding && (tokens.row(t).array() == 0).all());
      if (is_padding.back()) probability.row(t).setZero();
    }
    v.same_fact("n_experts", logits.cols());
    v.near("logits", logits);
    moe::RoutingGradient<float> ignored;
    v.near("router_z_loss", moe::z_loss<float>(logits, moe::Step{}, 0, ignored));  // of padding, too
  }

  Index experts() const { return logits.cols(); }
  bool padded(Index t) const { return is_padding[static_cast<std::size_t>(t)]; }

  Matrix<float> tokens, logits, probability;
  Groups groups;
  std::string kind;
  bool has_padding = false;
  std::vector<bool> is_padding;
};

/// Experts that padding leaves places for take padding, whose probabilities are 0, from the first on.
inline void place_padding(const Flaxformer& router, Index capacity, PerExpert& ours) {
  const Index experts = router.experts(), length = router.groups.length;
  for (Index first = 0; first < router.tokens.rows(); first += length)
    for (Index e = 0; e < experts; ++e) {
      const auto at = [&](Index t) { return static_cast<std::size_t>(t * experts + e); };
      Index next = 0;
      for (Index t = first; t < first + length; ++t) next += ours.kept[at(t)];
      for (Index t = first; t < first + length && next < capacity; ++t) {
        if (!router.padded(t)) continue;
        ours.kept[at(t)] = 1;
        ours.slot[at(t)] = next++;
      }
    }
}

inline void check_experts_choose(Variant& v, Flaxformer& router) {
  const moe::ExpertChoiceGate gate{.capacity = v.integer("capacity", 1)};
  gate.validate(router.experts());
  for (Index t = 0; t < router.tokens.rows(); ++t) router.groups.valid.push_back(!router.padded(t));
  router.groups.step.valid = router.groups.valid;
  const Routing routing = routed(gate, router.logits, router.groups.step);
  const moe::CapacityOptions by_weight{.order = moe::ServiceOrder::ByWeight, .scope = moe::CapacityScope::Group};
  PerExpert ours(routing, moe::buffer_slots(by_weight, router.experts(), router.groups.step, routing),
                 router.experts());
  place_padding(router, std::min(gate.capacity, router.groups.length), ours);
  v.near("combine_gte", ours.combine);
  v.same("slot_gte", ours.slot);
  v.same("kept_gte", ours.kept);
  v.near("aux_loss", 0);
}

/// What the scatter router stores of every choice: the expert and the place, which is beyond the capacity if dropped.
inline Integers dispatch_indices(const Routing& routing, const std::vector<Index>& slots) {
  Integers indices;
  for (std::size_t a = 0; a < slots.size(); ++a) {
    indices.push_back(routing.experts()[a]);
    indices.push_back(slots[a]);
  }
  return indices;
}

inline void check_tokens_choose(Variant& v, Flaxformer& router) {
  const Index k = v.integer("num_selected_experts", 1), capacity = v.integer("capacity", 1), experts = router.experts();
  const auto order =
      v.flag("batch_prioritized_routing", false) ? moe::ServiceOrder::ByScore : moe::ServiceOrder::ByPosition;
  moe::CapacityOptions options = moe::conventions::t5x(0, capacity, order);
  const bool scatters = router.kind.find("Scatter") != std::string::npos || v.has("dispatch_indices");
  Groups& groups = router.groups;
  Matrix<float> logits = router.logits;
  for (Index t = 0; t < logits.rows(); ++t) {
    groups.valid.push_back(scatters || !router.padded(t));
    if (router.padded(t)) logits.row(t).setZero();  // all probabilities 0: equal, the scatter router takes the first k
  }
  groups.step.valid = groups.valid;
  Routing routing = routed(moe::TopKGate{.k = k, .normalise = moe::Normalise::Off}, logits, groups.step);
  weigh(routing, [&](Index t, Index e) { return router.probability(t, e); });
  const auto share_of_tokens = [&](const Routing&, const moe::Step& step) {  // both means are over padding, too
    const double share = static_cast<double>(step.num_valid(groups.length)) / static_cast<double>(groups.length);
    return static_cast<double>(k) * share * share;
  };
  v.near("aux_loss", balance_of_groups(router.probability, routing, groups, {}, share_of_tokens).loss);
  const auto places = moe::buffer_slots(options, experts, groups.step, routing);
  moe::apply_capacity(options, experts, groups.step, routing);
  const PerExpert ours(routing, places, experts);
  v.same("slot_gte", ours.slot);
  v.same("kept_gte", ours.kept);
  v.near("combine_gte", ours.combine);
  if (!scatters) return;
  v.same("dispatch_indices", dispatch_indices(routing, places));
  Matrix<float> weights(router.tokens.rows(), k);
  std::copy(routing.weights().begin(), routing.weights().end(), weights.data());
  v.near("combine_weights", weights);
}

inline void check_flaxformer(Variant& v) {
  Flaxformer router(v);
  if (router.kind.starts_with("ExpertsChoose")) return check_experts_choose(v, router);
  if (router.kind.starts_with("TokensChoose")) return check_tokens_choose(v, router);
  moe::fail_environment("cls is '", router.kind, "', expected ExpertsChoose.. or TokensChoose..");
}

}  // namespace check
