// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>
#include <utility>
#include <variant>

#include "moe/expert/concept.hpp"
#include "moe/routing/context.hpp"
#include "moe/routing/gradient.hpp"
#include "moe/routing/plan_view.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

/// What an auxiliary loss reads of a forward pass, and where its gradient goes: the router's part of a tape, to which
/// it refers. With moe/routing/balance/importance.hpp:
///   [](const moe::RoutedPass<float>& pass) {
///     return moe::importance_loss<float>(pass.probability, pass.step, /*weight=*/0.01, pass.losses);
///   }
template <class S>
struct RoutedPass {
  const Matrix<S>& logits;       ///< [num_tokens, num_logits]
  const Matrix<S>& probability;  ///< [num_tokens, num_experts], what the gate's probabilities() gives
  const Routing<S>& routing;
  const Step& step;
  RoutingGradient<S>& losses;  ///< added to
};

namespace detail {

/// What a tape says of the routing.
template <class S>
struct RoutingOfTape {
  const Matrix<S>& logits;
  const Routing<S>& routing;
  const Step& step;
  RoutingGradient<S>& losses;
};

/// MoeLayer and the like; layers that speak for a gate of some type, as MoeBlock; layers around one, as WithBranches.
template <class Layer, class Tape>
concept HasGate = requires(const Layer& layer, Tape& tape) {
  layer.gate();
  tape.logits;
  tape.routing;
  tape.losses;
};
template <class Layer, class Tape>
concept SpeaksForGate =
    requires(const Layer& layer, Tape& tape, const Context& context, Matrix<typename Layer::Scalar>& p) {
      layer.probabilities(tape.logits(), context, p);
      tape.routing();
      tape.losses();
      tape.step();
    };
template <class Layer, class Tape>
concept WrapsLayer = requires(const Layer& layer, Tape& tape) {
  layer.layer();
  tape.layer;
};

struct IgnoreLayer {
  template <class Layer, class Tape>
  void operator()(const Layer&, Tape&) const {}
};
template <class Layer, class Tape>
concept NamesLayers = requires(const Layer& layer, Tape& tape) { layer.for_each_layer(tape, IgnoreLayer{}); };

/// Whether a layer shows the gate and tape of its own router, or names layers that have to.
template <class Layer, class Tape>
consteval bool finds_gate() {
  if constexpr (HasGate<Layer, Tape> || SpeaksForGate<Layer, Tape> || NamesLayers<Layer, Tape>)
    return true;
  else if constexpr (WrapsLayer<Layer, Tape>)
    return finds_gate<std::remove_cvref_t<decltype(std::declval<const Layer&>().layer())>, decltype(Tape::layer)>();
  else
    return false;
}

template <class Layer, class Tape, class F>
void visit_gates(const Layer& layer, Tape& tape, const F& f);

/// The gates inside an expert: of a layer as an expert, in one of several types, behind a gate of its own.
template <class E, class Tape, class F>
void visit_gates_of_expert(const E& expert, Tape& tape, const F& f) {
  if constexpr (requires { expert.layer(); })
    visit_gates(expert.layer(), tape, f);
  else if constexpr (requires { std::visit([](const auto&) {}, expert.get()); })
    std::visit(
        [&](const auto& one) {
          using One = std::remove_cvref_t<decltype(one)>;
          visit_gates_of_expert(one, std::get<typename E::template TapeOfExpert<One>>(tape).tape, f);
        },
        expert.get());
  else if constexpr (requires { tape.expert, expert.expert(); })
    visit_gates_of_expert(expert.expert(), tape.expert, f);
}

/// The gates inside the experts of a set that have had rows.
template <class X, class Tape, class F>
void visit_gates_of_set(const X& experts, Tape& tape, const PlanView& plan, const F& f) {
  if constexpr (requires { experts[0], tape.experts[0]; }) {
    for (Index e = 0; e < experts.size(); ++e)
      if (plan.rows_of(e) > 0) visit_gates_of_expert(experts[e], tape.experts[static_cast<std::size_t>(e)], f);
  } else if constexpr (requires { tape.sets; }) {
    Index first = 0;
    experts.for_each_set([&](auto i, const auto& set) {
      visit_gates_of_set(set, std::get<i>(tape.sets), plan.part(first, set.size()), f);
      first += set.size();
    });
  } else if constexpr (requires { experts.experts(), tape.plans, tape.experts; }) {  // latent ones, of the same rows
    visit_gates_of_set(experts.experts(), tape.experts, plan, f);
  }
}

/// The gates inside the experts that a mixture runs: RoutedExperts, or one around it, as CompressedExperts.
template <class X, class Tape, class F>
void visit_gates_of_mixture(const X& experts, Tape& tape, const F& f) {
  if constexpr (requires { tape.plan; })
    visit_gates_of_set(experts, tape.experts, tape.plan, f);
  else if constexpr (requires { tape.experts.plan; })
    visit_gates_of_mixture(experts, tape.experts, f);
}

/// Calls f(gate, RoutingOfTape) with the gate of a layer, or of the layer that it wraps, and then with those of layers
/// among its experts that have had rows, and among its branches.
template <class Layer, class Tape, class F>
void visit_gates(const Layer& layer, Tape& tape, const F& f) {
  using Of = RoutingOfTape<typename Layer::Scalar>;
  if constexpr (HasGate<Layer, Tape>) {
    f(layer.gate(), Of{tape.logits, tape.routing, tape.step, tape.losses});
    if constexpr (requires { layer.experts(), tape.mixture.experts; })
      visit_gates_of_mixture(layer.experts(), tape.mixture, f);
  } else if constexpr (SpeaksForGate<Layer, Tape>) {
    f(layer, Of{tape.logits(), tape.routing(), tape.step(), tape.losses()});
  } else if constexpr (NamesLayers<Layer, Tape>) {
    layer.for_each_layer(tape, [&]<class Inner, class InnerTape>(const Inner& inner, InnerTape& inner_tape) {
      static_assert(finds_gate<Inner, InnerTape>(),
                    "moe::for_each_routed: what for_each_layer() names shows no gate and tape of its router");
      visit_gates(inner, inner_tape, f);
    });
  } else if constexpr (WrapsLayer<Layer, Tape>) {
    visit_gates(layer.layer(), tape.layer, f);
    if constexpr (requires { tape.branches; })
      layer.for_each_branch(
          [&](auto i, const auto& branch) { visit_gates_of_expert(branch, std::get<i>(tape.branches), f); });
  }
}

}  // namespace detail

/// Calls f(pass) for every routing that a forward pass into `tape` has made, that of the layer's own router first, then
/// those of the layers among its experts and branches: where losses of a hierarchy add up their gradients, which
/// backward reads.
///   moe::for_each_routed(layer, tape, [](const moe::RoutedPass<float>& pass) {
///     moe::load_balancing_loss<float>(pass.probability, pass.routing, pass.step, 0.01, pass.losses);
///   });
/// Layers inside parts of one's own are not found, but for those that a layer of one's own, as a stack, names together
/// with their tapes; all of them show routers:
///   template <class F>
///   void for_each_layer(Tape& tape, F&& f) const {
///     for (std::size_t l = 0; l < layers.size(); ++l) f(layers[l], tape.layers[l]);
///   }
/// `tape` is that which forward has filled, not a copy, whose inner
/// steps refer to the original. Allocates the probabilities.
template <class Layer, class F>
void for_each_routed(const Layer& layer, typename Layer::Tape& tape, const F& f) {
  using S = typename Layer::Scalar;
  static_assert(detail::finds_gate<Layer, typename Layer::Tape>(),
                "moe::for_each_routed: the layer shows no gate and tape of its router");
  Scratch scratch;
  Matrix<S> probability;
  detail::visit_gates(layer, tape, [&](const auto& gate, const detail::RoutingOfTape<S>& routed) {
    gate.probabilities(routed.logits, Context{routed.step, scratch}, probability);
    f(RoutedPass<S>{routed.logits, probability, routed.routing, routed.step, routed.losses});
  });
}

}  // namespace moe::inline MOE_ABI
