// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/gate/rule/token_rule.hpp"
#include "moe/gate/rule/weights.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/balanced_assignment.hpp"
#include "moe/routing/token_groups.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The best expert, weighed by the sigmoid of its logit.
struct SigmoidOfBestRule {
  Index choices(Index) const { return 1; }
  template <class S>
  Index select(const Token<S>& token, std::span<Index> chosen) const {
    top_k(token.logits.data(), std::ssize(token.logits), chosen);
    const S best = token.logits[static_cast<std::size_t>(chosen[0])];
    return best > -std::numeric_limits<S>::infinity() ? 1 : -1;
  }
  template <class S>
  void probabilities(const Token<S>& token, std::span<S> p) const {
    for (std::size_t e = 0; e < p.size(); ++e) p[e] = Sigmoid::value(token.logits[e]);
  }
  template <class S>
  void weigh(const Token<S>& token, std::span<const Index> experts, std::span<S> weights) const {
    for (std::size_t s = 0; s < experts.size(); ++s)
      weights[s] = Sigmoid::value(token.logits[static_cast<std::size_t>(experts[s])]);
  }
  template <class S>
  void backward(const Token<S>& token, const Choices<S>& choices, std::span<S> d) const {
    for (std::size_t s = 0; s < choices.size(); ++s)
      d[static_cast<std::size_t>(choices.expert(s))] += choices.dweight(s);
    for (std::size_t e = 0; e < d.size(); ++e) d[e] *= Sigmoid::derivative(token.logits[e]);
  }
};

/// Working memory of BalancedGate: one of each per worker.
template <class S>
struct BalancedChoices {
  struct Worker {
    AssignmentWorkspace workspace;
    RowBuffer<S> logits;
    std::vector<Index> expert_of;
  };
  TokenGroups groups;
  std::vector<Worker> workers;

  /// Room for every group, whichever worker will get it: warm calls do not allocate.
  void build(Index num_tokens, Index num_experts, const Step& step) {
    groups.build(num_tokens, step);
    workers.resize(std::max(workers.size(), static_cast<std::size_t>(num_workers())));
    for (Worker& worker : workers) {
      worker.workspace.reserve(groups.largest(), num_experts);
      worker.logits.resize(groups.largest(), num_experts);
      worker.expert_of.reserve(static_cast<std::size_t>(groups.largest()));
    }
  }
};

}  // namespace detail

/// BASE layers: in training every expert gets equally many tokens, so that the sum of the logits of all choices is as
/// large as can be; at inference every token goes to its best expert.
///   weight = sigmoid(logit of the choice)     probabilities_e = sigmoid(logit_e)
///   dL/dlogit of the choice = dL/dweight g (1 - g), of the others nothing through the weight
/// Tokens are shared out within their step.group_id: of the T valid ones of a group, an expert gets floor or
/// ceil(T / num_experts). What a token gets in training depends on the others, later ones too, which inference does
/// without; hence no balance loss is needed. Which of several best assignments is found does not depend on threads.
/// A logit of -infinity masks an expert. Throws std::invalid_argument for a NaN or +infinity in the logits of a valid
/// token, and where masks leave no even shares: for a token that would have to go to a masked expert.
/// Immutable, share freely. In training as balanced_assignment(), groups in parallel; a warm call does not allocate.
/// Lewis et al., "BASE layers: simplifying training of large, sparse models" (arXiv:2103.16716).
struct BalancedGate {
  BalancedAssignmentOptions assignment = {};
  ConstantWeights constant_weights = ConstantWeights::Refuse;  ///< in backward, where a capacity normalises weights

  static constexpr bool kPerToken = false;

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

  BalancedGate take(std::span<const Index>, Index) const { return *this; }  // nothing is an expert's own
  /// At inference the first copy of the best expert gets the token, with all of its weight.
  BalancedGate duplicate(Index, Index) const { return *this; }
  friend bool operator==(const BalancedGate&, const BalancedGate&) = default;

  /// Throws std::invalid_argument unless there is an expert and the options are in their range.
  void validate(Index num_experts) const {
    if (num_experts < 1) fail("moe::BalancedGate: num_experts is ", num_experts, ", expected at least 1");
    assignment.validate("moe::BalancedGate");
  }

  bool makes_one_choice() const { return true; }

  template <class S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    constexpr const char* kName = "moe::BalancedGate::route";
    validate(logits.cols());
    if (!context.step.training()) return route_tokens<S>(kName, detail::SigmoidOfBestRule{}, logits, context, routing);
    detail::for_each_token<S>(kName, logits, context, 1, [](const Token<S>& token) {
      return count_finite(token.logits.data(), std::ssize(token.logits)) > 0;
    });
    detail::resize_top_k<S>(kName, 1, logits.rows(), context.step, routing);
    auto& choices = context.scratch.get<detail::BalancedChoices<S>>();
    choices.build(logits.rows(), logits.cols(), context.step);
    share_out<S>(logits, choices, routing);
    require_unmasked<S>(kName, logits, choices.groups, routing);
    detail::for_each_token<S>(kName, logits, context, 1, [&](const Token<S>& token) {
      detail::SigmoidOfBestRule{}.weigh(token, std::as_const(routing).experts(token.index),
                                        routing.weights(token.index));
    });
  }

  template <class S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& p) const {
    token_probabilities<S>("moe::BalancedGate::probabilities", detail::SigmoidOfBestRule{}, logits, context, p);
  }

  template <class S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    replay_tokens<S>("moe::BalancedGate::replay", detail::SigmoidOfBestRule{}, logits, context, routing);
  }

  template <class S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                BalancedGate& /*gradient*/) const {
    backward_tokens<S>("moe::BalancedGate::backward", detail::SigmoidOfBestRule{}, logits, context, routing, dweight,
                       dprobability, dlogits);
  }

 private:
  /// The experts of all tokens, group by group.
  template <class S>
  void share_out(const ConstMatrixRef<S>& logits, detail::BalancedChoices<S>& choices, Routing<S>& routing) const {
    parallel_for(choices.groups.count(), [&](Index g, Index worker) {
      auto& [workspace, of_group, expert_of] = choices.workers[static_cast<std::size_t>(worker)];
      const std::span<const Index> tokens = choices.groups[g];
      of_group.resize(std::ssize(tokens), logits.cols());
      expert_of.resize(tokens.size());
      for (std::size_t i = 0; i < tokens.size(); ++i)
        std::copy_n(logits.data() + tokens[i] * logits.outerStride(), logits.cols(),
                    of_group.row(static_cast<Index>(i)));
      balanced_assignment<S>(of_group, assignment, workspace, expert_of);
      for (std::size_t i = 0; i < tokens.size(); ++i) routing.experts(tokens[i])[0] = expert_of[i];
    });
  }

  template <class S>
  static void require_unmasked(const char* function, const ConstMatrixRef<S>& logits, const detail::TokenGroups& groups,
                               const Routing<S>& routing) {
    for (Index g = 0; g < groups.count(); ++g)
      for (const Index t : groups[g])
        if (const Index e = routing.experts(t)[0]; logits(t, e) == -std::numeric_limits<S>::infinity())
          fail(function, ": token ", t, " would have to go to expert ", e, ", which is masked: the ", groups.size(g),
               " tokens of its group have no even shares of ", logits.cols(), " experts that they may go to");
  }
};

static_assert(DifferentiableGate<BalancedGate, float> && DifferentiableGate<BalancedGate, double>);

}  // namespace moe::inline MOE_ABI
