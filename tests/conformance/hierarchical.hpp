// SPDX-License-Identifier: MIT
// The two-level mixture of lucidrains: outer experts are mixtures, and read buffers that an outer gate has filled.
#pragma once

#include "lucidrains.hpp"

namespace check {

/// Rules of both levels: the same numbers, other experts and other lengths.
struct HierarchyRule {
  explicit HierarchyRule(Variant& v) {
    const bool training = v.text("mode", "eval") == "train";
    const std::string phase = training ? "train" : "eval";
    options = moe::conventions::tensor2tensor(v.number("capacity_factor_" + phase, training ? 1.25 : 2),
                                              v.integer("min_capacity", 4));
    options.weights = moe::KeptWeights::AsTheyAre;
    policy = v.text("second_policy_" + phase, "random");
    if (policy != "all" && policy != "none")
      moe::fail_environment("second_policy is '", policy, "', expected all or none in two levels");
  }

  Index capacity(Index length, Index experts) const {
    auto share = options;
    share.min_capacity = 0;
    const Index places = moe::expert_capacity(share, moe::Phase::Training, {length, 2 * length}, experts);
    return std::max(std::min(length, places), options.min_capacity);
  }
  void limit(Routing& routing, Index experts, const moe::Step& step) const {
    if (policy == "none")
      moe::drop_by_chance(
          moe::kUnlimited, [](Index, Index) { return 0.0; }, routing);
    moe::apply_capacity(options, experts, step, routing);
  }

  moe::CapacityOptions options;
  std::string policy;
};

/// Place of every choice in its buffer; tokens of a sequence, and places that it has.
struct OuterPlaces {
  std::vector<Index> slots;
  Index length, capacity;
};

/// The buffer of one outer expert, [sequences * capacity, dim], zero where empty; whose token and choice each row is.
struct OuterBuffer {
  Matrix<float> rows;
  std::vector<Index> token, choice;  // -1 where empty

  OuterBuffer(const Matrix<float>& tokens, const Routing& routing, Index expert, const OuterPlaces& places) {
    const auto& [slots, length, capacity] = places;
    const Index size = tokens.rows() / length * capacity;
    require_size("buffer", size, tokens.cols());
    rows.setZero(size, tokens.cols());
    token.assign(static_cast<std::size_t>(size), -1);
    choice = token;
    for (Index t = 0; t < tokens.rows(); ++t)
      for (Index a = routing.begin(t); a < routing.end(t); ++a) {
        const auto at = static_cast<std::size_t>(a);
        if (routing.dropped()[at] || routing.experts()[at] != expert) continue;
        const Index row = t / length * capacity + slots[at];
        rows.row(row) = tokens.row(t);
        token[static_cast<std::size_t>(row)] = t;
        choice[static_cast<std::size_t>(row)] = a;
      }
  }
};

/// Who of the buffer goes to which inner expert. A row of weight above one half has two choices; a lighter one only a
/// second choice, which is its best expert; an empty one none.
inline Routing inner_routing(const Matrix<float>& logits, const OuterBuffer& buffer, const Routing& outer) {
  Routing inner = routed(moe::TopKGate{.k = 2, .floor = 1e-9}, logits);
  for (Index r = 0; r < logits.rows(); ++r) {
    const Index a = buffer.choice[static_cast<std::size_t>(r)];
    const float weight = a < 0 ? 0 : outer.weights()[static_cast<std::size_t>(a)];
    if (weight > 0.5F) continue;
    inner.experts(r)[1] = inner.experts(r)[0];
    inner.weights(r)[1] = 1;
    inner.drop(inner.begin(r), moe::kDroppedByGate);
    if (!(weight > 0)) inner.drop(inner.begin(r) + 1, moe::kDroppedByGate);
  }
  return inner;
}

/// Balance loss of one level: that of each group, averaged. Rows that do not count are zeros of the means.
inline double balance_of_level(const Matrix<float>& logits, const Routing& routing, const Groups& groups) {
  const auto counted_share = [](const Routing& part, const moe::Step& step) {
    const Index length = part.num_tokens();
    const double share = static_cast<double>(step.num_valid(length)) / static_cast<double>(length);
    return share * share;
  };
  return balance_of_groups(softmax_of(logits), routing, groups, {moe::CountedChoices::First}, counted_share).loss;
}

/// The same of the mixture in an outer expert: of its rows, those count that are somebody's first choice.
inline double balance_of_buffer(const Matrix<float>& logits, const Routing& inner, Index capacity) {
  Groups groups(logits.rows(), capacity, true);
  for (Index r = 0; r < logits.rows(); ++r) groups.valid.push_back(inner.dropped(r)[0] == 0);
  return balance_of_level(logits, inner, groups);
}

inline void check_hierarchy(Variant& v) {
  const Matrix<float> tokens = v.matrix("input");
  const Index dim = tokens.cols(), length = sequence_length(v, "input");
  const Matrix<float> outer_weight = v.matrix("w.gate_outer.w_gating", dim);
  const Index outer_experts = outer_weight.cols();
  const Matrix<float> inner_weight = v.matrix("w.gate_inner.w_gating", outer_experts * dim);
  const Index inner_experts = inner_weight.cols();
  const Matrix<float> w1 = v.matrix("w.experts.w1", outer_experts * inner_experts * dim);
  const Matrix<float> w2 = v.matrix("w.experts.w2", outer_experts * inner_experts * w1.cols(), dim);
  const HierarchyRule rule(v);

  const Groups sequences(tokens.rows(), length, false);
  const Matrix<float> logits = logits_of(linear_router(outer_weight.transpose()), tokens);
  Routing outer = routed(moe::TopKGate{.k = 2, .floor = 1e-9}, logits, sequences.step);
  const double outer_balance = balance_of_level(logits, outer, sequences);
  double inner_balance = 0;
  moe::Step step = sequences.step;
  step.phase = moe::Phase::Training;  // the rule has the factor of the phase already
  rule.limit(outer, outer_experts, step);
  const OuterPlaces places{moe::buffer_slots(rule.options, outer_experts, step, outer), length,
                           rule.capacity(length, outer_experts)};

  Matrix<float> out = Matrix<float>::Zero(tokens.rows(), dim);
  for (Index e = 0; e < outer_experts; ++e) {
    const OuterBuffer buffer(tokens, outer, e, places);
    const auto router = linear_router(inner_weight.middleRows(e * dim, dim).transpose());
    const Matrix<float> inner_logits = logits_of(router, buffer.rows);
    Routing inner = inner_routing(inner_logits, buffer, outer);
    inner_balance += balance_of_buffer(inner_logits, inner, places.capacity) / static_cast<double>(outer_experts);
    const Groups buffers(buffer.rows.rows(), places.capacity, true);
    rule.limit(inner, inner_experts, buffers.step);
    const Index hidden = w1.cols();
    const auto experts = relu_experts(w1.middleRows(e * inner_experts * dim, inner_experts * dim),
                                      w2.middleRows(e * inner_experts * hidden, inner_experts * hidden), dim);
    const Matrix<float> result = combined(experts, buffer.rows, inner);
    for (Index r = 0; r < result.rows(); ++r) {
      const Index a = buffer.choice[static_cast<std::size_t>(r)];
      if (a >= 0)
        out.row(buffer.token[static_cast<std::size_t>(r)]) +=
            outer.weights()[static_cast<std::size_t>(a)] * result.row(r);
    }
  }
  v.near("output", out);
  v.near("loss_outer", outer_balance);
  v.near("loss_inner", inner_balance);
  v.near("loss", outer_balance + inner_balance);
  v.near("loss_scaled", v.number("loss_coef", 1e-2) * (outer_balance + inner_balance));
}

}  // namespace check
