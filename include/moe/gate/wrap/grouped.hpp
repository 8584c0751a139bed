// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/token_loop.hpp"
#include "moe/routing/token_groups.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The groups of a batch in front of a gate, as if each was a token. Working memory; one per thread.
template <class S>
struct GroupsAsTokens {
  TokenGroups groups;
  std::vector<Index> group_of;    ///< [num_tokens], -1 for padding
  std::vector<std::int64_t> id;   ///< [num_groups], the group's
  std::vector<std::int64_t> key;  ///< [num_groups], that of its first token; empty if tokens have none
  RowBuffer<double> sum;          ///< of the logits of a group
  RowBuffer<S> logits;            ///< [num_groups, num_logits], their means
  Routing<S> routing;
  Matrix<S> probability, dprobability, dlogits;
  std::vector<S> dweight;

  /// Throws std::invalid_argument for a NaN or +infinity in the logits of a valid token.
  void build(const char* function, const ConstMatrixRef<S>& of_tokens, const Context& context) {
    for_each_token<S>(function, of_tokens, context, 0, [](const Token<S>&) {});
    groups.build(of_tokens.rows(), context.step);
    group_of.assign(static_cast<std::size_t>(of_tokens.rows()), -1);
    id.clear();
    key.clear();
    for (Index g = 0; g < groups.count(); ++g) {
      for (const Index t : groups[g]) group_of[static_cast<std::size_t>(t)] = g;
      id.push_back(context.step.group(groups[g][0]));
      if (!context.step.key.empty()) key.push_back(context.step.key[static_cast<std::size_t>(groups[g][0])]);
    }
    sum.resize(groups.count(), of_tokens.cols());
    logits.resize(groups.count(), of_tokens.cols());
    parallel_for(groups.count(), [&](Index g, Index) {
      const Index cols = of_tokens.cols();
      double* const total = sum.row(g);
      std::fill_n(total, cols, 0.0);
      for (const Index t : groups[g])
        for (Index e = 0; e < cols; ++e)
          total[e] += static_cast<double>(of_tokens.data()[t * of_tokens.outerStride() + e]);
      for (Index e = 0; e < cols; ++e)
        logits.row(g)[e] = static_cast<S>(total[e] / static_cast<double>(groups.size(g)));
    });
  }

  /// The step of the groups: each draws by its own id, has the key of its first token, and all are one group.
  Step step(const Step& of_tokens) const {
    Step own = of_tokens;
    own.token_id = id;
    own.group_id = {};
    own.key = key;
    own.valid = {};
    return own;
  }

  /// From the choices of the groups to those of their tokens.
  void give(const Step& step, Routing<S>& to) const {
    const auto num_tokens = static_cast<Index>(group_of.size());
    if (step.valid.empty() && routing.choices_per_token() >= 0)
      to.resize(num_tokens, routing.choices_per_token());
    else
      to.resize_ragged(num_tokens, [&](Index t) {
        const Index g = group_of[static_cast<std::size_t>(t)];
        return g < 0 ? 0 : routing.end(g) - routing.begin(g);
      });
    for (Index t = 0; t < num_tokens; ++t) {
      const Index g = group_of[static_cast<std::size_t>(t)];
      if (g < 0) continue;
      std::ranges::copy(routing.experts(g), to.experts(t).begin());
      std::ranges::copy(routing.weights(g), to.weights(t).begin());
      std::ranges::copy(routing.dropped(g), to.dropped(t).begin());
    }
  }

  /// From the choices of tokens to those of their groups, of which one is dropped if it is so for all tokens. Throws
  /// std::invalid_argument where tokens of a group name other experts.
  void adopt(const char* function, const Routing<S>& from) {
    if (from.num_tokens() != std::ssize(group_of))
      fail(function, ": routing has ", from.num_tokens(), " tokens, expected num_tokens = ", group_of.size());
    routing.resize_ragged(groups.count(), [&](Index g) { return from.end(groups[g][0]) - from.begin(groups[g][0]); });
    for (Index g = 0; g < groups.count(); ++g) {
      const Index first = groups[g][0];
      std::ranges::copy(from.experts(first), routing.experts(g).begin());
      std::ranges::copy(from.dropped(first), routing.dropped(g).begin());
      for (const Index t : groups[g]) {
        if (!std::ranges::equal(from.experts(t), from.experts(first)))
          fail(function, ": token ", t, " names other experts than token ", first,
               " of its group, expected the same for all of them");
        for (std::size_t s = 0; s < from.experts(t).size(); ++s)
          if (!from.dropped(t)[s]) routing.dropped(g)[s] = 0;
      }
    }
  }

  /// The sums over the tokens of a group of what reaches the weights and the probabilities.
  void add_up(const Routing<S>& of_tokens, std::span<const S> dweight_of_tokens, const ConstMatrixRef<S>& dp) {
    dweight.assign(static_cast<std::size_t>(routing.num_assignments()), S{0});
    dprobability.setZero(dp.size() == 0 ? 0 : groups.count(), dp.size() == 0 ? 0 : dp.cols());
    for (Index g = 0; g < groups.count(); ++g)
      for (const Index t : groups[g]) {
        const auto to = static_cast<std::size_t>(routing.begin(g)), from = static_cast<std::size_t>(of_tokens.begin(t));
        for (std::size_t s = 0; s < of_tokens.experts(t).size(); ++s)
          if (!of_tokens.dropped(t)[s]) dweight[to + s] += dweight_of_tokens[from + s];
        for (Index e = 0; e < dprobability.cols(); ++e) dprobability(g, e) += dp(t, e);
      }
  }

  /// to[t] = factor(g) * of_groups[g] for the tokens of a group, 0 for padding.
  template <class Factor>
  void spread(const Matrix<S>& of_groups, const Factor& factor, Matrix<S>& to) const {
    to.resize(static_cast<Index>(group_of.size()), of_groups.cols());
    for (Index t = 0; t < to.rows(); ++t) {
      const Index g = group_of[static_cast<std::size_t>(t)];
      for (Index e = 0; e < to.cols(); ++e) to(t, e) = g < 0 ? S{0} : factor(g) * of_groups(g, e);
    }
  }
};

}  // namespace detail

/// Routes groups of tokens, as sentences, or what a batch has of a task or domain: the mean of the logits of a group's
/// valid tokens (step.group_id) goes through the gate once, as if it was a token whose id is that of the group, and all
/// of them get what it gives.
///   moe::GroupedGate<moe::TopKGate> gate{.gate = moe::TopKGate::switch_transformer()};
/// As the logits of a linear router are linear in its inputs, that is to route the mean token. Its key (step.key) is
/// that of the group's first valid token. Probabilities of a token are those of its group. An expert that is masked for
/// one token is so for its group. Trainable if the gate is:
///   dL/dlogits of a token = dL/d(mean logits) / (tokens of its group)
/// Not kPerToken: what a token gets depends on its whole group, later tokens too, and on nothing else if the gate is
/// kPerToken. Limits go around it, WithCapacity<GroupedGate<G>>, as they count tokens. Its parameters and their names
/// are the gate's. Immutable, share freely. O(num_tokens * num_logits) more than the gate for the groups; route()
/// does not allocate when warm, nor does backward where there are as many groups as before. Errors are the gate's,
/// which speaks of groups as tokens; a NaN is named by its own token. Kudugunta et al., "Beyond distillation:
/// task-level mixture-of-experts" (arXiv:2110.03742).
template <class G>
struct GroupedGate {
  static_assert(HasRoute<G, float> || HasRoute<G, double>,
                "moe::GroupedGate: a Gate needs `void route(const Logits<S>&, const Context&, Routing<S>&) const` "
                "(see moe/gate/concept.hpp)");

  G gate = {};

  static constexpr bool kPerToken = false;

  void validate(Index num_experts) const {
    if constexpr (requires { gate.validate(num_experts); }) gate.validate(num_experts);
  }
  /// As many as the gate wants.
  Index num_logits(Index num_experts) const
    requires detail::StatesNumLogits<G>
  {
    return gate.num_logits(num_experts);
  }
  /// Throws std::invalid_argument where the gate does; see TopKGate::constant_weights.
  void require_backward(Index num_experts) const {
    if constexpr (requires { gate.require_backward(num_experts); }) gate.require_backward(num_experts);
  }

  /// The gate's.
  GroupedGate take(std::span<const Index> ids, Index num_experts) const
    requires detail::TakesGate<G>
  {
    return {detail::take_gate(gate, ids, num_experts)};
  }
  std::vector<Index> logits_of(std::span<const Index> ids, Index num_experts) const
    requires requires(const G& any) { any.logits_of(ids, num_experts); }
  {
    return gate.logits_of(ids, num_experts);
  }
  GroupedGate concatenate(const GroupedGate& other, Index num_experts, Index other_num_experts) const
    requires detail::ConcatenatesGate<G>
  {
    return {detail::concatenate_gates(gate, other.gate, num_experts, other_num_experts)};
  }
  GroupedGate duplicate(Index times, Index num_experts) const
    requires requires(const G& any) { any.duplicate(times, num_experts); }
  {
    return {gate.duplicate(times, num_experts)};
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    auto& memory = build<S>("moe::GroupedGate::route", logits, context);
    const Step step = memory.step(context.step);
    gate.route(Logits<S>(memory.logits), {step, context.scratch}, memory.routing);
    memory.give(context.step, routing);
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    constexpr const char* kName = "moe::GroupedGate::probabilities";
    detail::require_apart(kName, "p", p, "logits", logits);
    auto& memory = build<S>(kName, logits, context);
    const Step step = memory.step(context.step);
    gate.probabilities(Logits<S>(memory.logits), {step, context.scratch}, memory.probability);
    memory.spread(
        memory.probability, [](Index) { return S{1}; }, p);
  }

  /// Throws std::invalid_argument where tokens of a group name other experts.
  template <class S>
    requires DifferentiableGate<G, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::GroupedGate::replay";
    auto& memory = build<S>(kName, logits, context);
    const Step step = memory.step(context.step);
    memory.adopt(kName, routing);
    gate.replay(Logits<S>(memory.logits), {step, context.scratch}, memory.routing);
    for (Index g = 0; g < memory.groups.count(); ++g)
      for (const Index t : memory.groups[g])
        for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
          routing.weights(t)[s] = routing.dropped(t)[s] ? S{0} : memory.routing.weights(g)[s];
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                GroupedGate& gradient) const {
    constexpr const char* kName = "moe::GroupedGate::backward";
    if (static_cast<Index>(dweight.size()) != routing.num_assignments())
      fail(kName, ": dweight has ", dweight.size(),
           " entries, expected one per assignment = ", routing.num_assignments());
    if (dprobability.size() != 0 && dprobability.rows() != logits.rows())
      fail(kName, ": dprobability has ", dprobability.rows(), " rows, expected num_tokens = ", logits.rows());
    detail::require_apart(kName, "dlogits", dlogits, "logits", logits);
    detail::require_apart(kName, "dlogits", dlogits, "dprobability", dprobability);
    auto& memory = build<S>(kName, logits, context);
    const Step step = memory.step(context.step);
    memory.adopt(kName, routing);
    memory.add_up(routing, dweight, dprobability);
    gate.backward(Logits<S>(memory.logits), {step, context.scratch}, memory.routing, std::span<const S>(memory.dweight),
                  memory.dprobability, memory.dlogits, gradient.gate);
    memory.spread(
        memory.dlogits, [&](Index g) { return S{1} / static_cast<S>(memory.groups.size(g)); }, dlogits);
  }

 private:
  /// Apart for every gate: groups may have groups.
  template <class S>
  struct Memory {
    detail::GroupsAsTokens<S> groups;
  };
  template <class S>
  detail::GroupsAsTokens<S>& build(const char* function, const ConstMatrixRef<S>& logits,
                                   const Context& context) const {
    auto& memory = context.scratch.get<Memory<S>>().groups;
    memory.build(function, logits, context);
    return memory;
  }
};

template <class G>
GroupedGate(G) -> GroupedGate<G>;

}  // namespace moe::inline MOE_ABI
