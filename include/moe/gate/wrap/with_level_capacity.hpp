// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/gate/wrap/with_levels.hpp"
#include "moe/routing/padding.hpp"

namespace moe::inline MOE_ABI {

/// WithLevels with a limit on how many choices a level takes in training, so that no level starves while all are
/// learned. Of the N choices of a batch that are kept, level l takes
///   ceil(capacity[l] N)   those that prefer it: with the largest share, ties to the lower
/// by lot; at the others level l is dropped (weight 0, marked kDroppedByCapacity), and other levels keep their shares.
///   moe::WithLevelCapacity<moe::TopKGate> gate{.gate = {.gate = {.k = 2}, .levels = 3}, .capacity = {.3, .4, .3}};
/// A limit per expert goes inside, as WithLevels<WithCapacity<..>>. At inference there is none. Gradients and replay
/// are those of WithLevels with the same drops; mean_bits_loss() takes what is inside, layer.gate().gate. Draws are
/// keyed by token and expert, so that they do not depend on the order of a batch. Parameters, and other errors, are
/// those of the gate. Immutable, share freely. O(assignments) and a sort on top of the gate, serial; no allocation when
/// warm. "D2MoE: dual routing and dynamic scheduling for efficient on-device MoE-based LLM serving" (arXiv:2504.15299).
template <class G, Schedule Temperature = ExponentialSchedule>
struct WithLevelCapacity {
  WithLevels<G, Temperature> gate = {};
  std::vector<double> capacity = {};  ///< [levels], of all choices that are kept: positive, of sum 1

  static constexpr bool kPerToken = false;

  void validate(Index num_experts) const {
    gate.validate(num_experts);
    require_capacity("moe::WithLevelCapacity");
  }
  Index num_logits(Index num_experts) const { return gate.num_logits(num_experts); }
  void require_backward(Index num_experts) const { gate.require_backward(num_experts); }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.gate...);
  }

  template <class S>
    requires HasRoute<G, S>
  void route(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    require_capacity("moe::WithLevelCapacity::route");
    gate.route(logits, context, routing);
    if (context.step.training()) limit(context, routing);
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void probabilities(const Logits<S>& logits, const Context& context, Matrix<S>& out) const {
    gate.probabilities(logits, context, out);
  }

  /// Weights anew for the same choices with the same drops.
  template <class S>
    requires DifferentiableGate<G, S>
  void replay(const Logits<S>& logits, const Context& context, Routing<S>& routing) const {
    gate.replay(logits, context, routing);
  }

  template <class S>
    requires DifferentiableGate<G, S>
  void backward(const Logits<S>& logits, const Context& context, const Routing<S>& routing,
                std::type_identity_t<std::span<const S>> dweight, const MatrixView<S>& dprobability, Matrix<S>& dlogits,
                WithLevelCapacity& gradient) const {
    gate.backward(logits, context, routing, dweight, dprobability, dlogits, gradient.gate);
  }

 private:
  struct Memory {
    std::vector<std::vector<std::pair<double, Index>>> preferring;  ///< [levels], a draw and where the choice begins
  };

  void require_capacity(const char* function) const {
    if (std::ssize(capacity) != gate.levels)
      fail(function, ": capacity of ", capacity.size(), " levels, expected levels = ", gate.levels);
    for (const double share : capacity)
      if (!(share > 0)) fail(function, ": a capacity of ", share, ", expected positive shares of sum 1");
    if (const double sum = std::accumulate(capacity.begin(), capacity.end(), 0.0); !(std::abs(sum - 1) <= 1e-9))
      fail(function, ": capacities have the sum ", sum, ", expected 1");
  }

  template <class S>
  void limit(const Context& context, Routing<S>& routing) const {
    const auto levels = static_cast<std::size_t>(gate.levels);
    auto& preferring = context.scratch.template get<Memory>().preferring;
    preferring.resize(levels);
    for (auto& each : preferring) each.clear(), each.reserve(routing.experts().size() / levels);
    const RandomField random = context.step.random(Purpose::Capacity);
    Index kept = 0;
    for (Index t = 0; t < routing.num_tokens(); ++t)
      for (Index a = routing.begin(t); a < routing.end(t); a += gate.levels) {
        const auto at = static_cast<std::size_t>(a);
        if (routing.dropped()[at] != 0 || !context.step.is_valid(t)) continue;  // by the gate: all levels or none
        const auto weights = routing.weights().subspan(at, levels);
        const Index level = std::ranges::max_element(weights) - weights.begin();
        const double draw = random.uniform(context.step.id(t), 1 + routing.experts()[at] / gate.levels);
        preferring[static_cast<std::size_t>(level)].emplace_back(draw, a);
        ++kept;
      }
    for (std::size_t l = 0; l < levels; ++l) {
      // 1e-9 of a choice is rounding, not another one.
      const auto most = static_cast<std::size_t>(std::ceil(capacity[l] * static_cast<double>(kept) - 1e-9));
      std::ranges::sort(preferring[l]);
      for (std::size_t i = most; i < preferring[l].size(); ++i)
        routing.drop(preferring[l][i].second + static_cast<Index>(l), kDroppedByCapacity);
    }
  }
};

}  // namespace moe::inline MOE_ABI
