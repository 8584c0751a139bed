// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/gate/concept.hpp"
#include "moe/router/concept.hpp"
#include "moe/serve/prefetch_predictor.hpp"

namespace moe::inline MOE_ABI {

/// Routes all layers of a model from one early state, before any of them runs: batches can be made by expert, loads are
/// known exactly, and what leaves a cache can be what is used last. Each layer then runs the routing that it is given,
/// as any Mixture does:
///   pre_gate.route(tokens, context, routings);
///   for (std::size_t l = 0; l < routings.size(); ++l)
///     layers[l].mixture().forward(hidden, routings[l], context, out);
/// One router for all layers, as in Read-ME, whose layers have the same choices, or one for each. Learned like any
/// router, by whoever has the routings or the loss that it should meet. Immutable in route(), share freely.
/// Cai et al., "Read-ME: refactorizing LLMs as router-decoupled mixture of experts with system co-design"
/// (arXiv:2410.19123).
template <class R, class G>
class PreGate {
 public:
  using Scalar = typename R::Scalar;

  /// Throws std::invalid_argument unless there is one router, or one for each layer, with as many logits and inputs,
  /// and as the gate if they are not for it; what a gate with num_logits wants is seen in route().
  PreGate(std::vector<R> routers, G gate, Index num_layers)
      : routers_(std::move(routers)), gate_(std::move(gate)), num_layers_(num_layers) {
    constexpr const char* kFunction = "moe::PreGate";
    if (num_layers < 1 || (routers_.size() != 1 && std::ssize(routers_) != num_layers))
      fail(kFunction, ": ", routers_.size(), " routers of ", num_layers, " layers, expected 1 or one for each");
    for (const R& router : routers_)
      if (router.num_experts() != routers_.front().num_experts() || router.model_dim() != routers_.front().model_dim())
        fail(kFunction, ": a router of ", router.model_dim(), " inputs and ", router.num_experts(),
             " logits, expected ", routers_.front().model_dim(), " and ", routers_.front().num_experts());
    const Index experts = routers_.front().num_experts();
    if constexpr (
        requires { gate_.validate(experts); } && !requires { gate_.num_logits(experts); })
      gate_.validate(experts);
  }

  Index num_layers() const { return num_layers_; }
  Index model_dim() const { return routers_.front().model_dim(); }
  const std::vector<R>& routers() const { return routers_; }
  std::vector<R>& routers() { return routers_; }
  const G& gate() const { return gate_; }

  /// The routings of all layers, with noise of its own for each router: layer l is step.layer + l. Throws
  /// std::invalid_argument for tokens of another width, and as router and gate do.
  void route(const MatrixView<Scalar>& tokens, const Context& context, std::vector<Routing<Scalar>>& routings) const {
    if (tokens.cols() != model_dim())
      fail("moe::PreGate::route: tokens have ", tokens.cols(), " columns, expected model_dim = ", model_dim());
    struct Memory {
      Matrix<Scalar> logits;
    };
    Matrix<Scalar>& logits = context.scratch.template get<Memory>().logits;
    routings.resize(static_cast<std::size_t>(num_layers_));
    for (std::size_t l = 0; l < routings.size(); ++l) {
      if (l >= routers_.size()) {
        routings[l] = routings.front();
        continue;
      }
      logits.resize(tokens.rows(), routers_[l].num_experts());
      Step step = context.step;
      step.layer += static_cast<decltype(step.layer)>(l);
      const Context of(step, context.scratch);
      routers_[l].logits(tokens, of, logits);
      gate_.route(Logits<Scalar>(logits), of, routings[l]);
    }
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_each(f, self...);
  }

 private:
  template <class F, class First, class... Rest>
  static void visit_each(F& f, First& first, Rest&... rest) {
    for (std::size_t l = 0; l < first.routers_.size(); ++l)
      moe::visit_part(f, "routers." + std::to_string(l), first.routers_[l], rest.routers_[l]...);
    moe::visit_part(f, "gate", first.gate_, rest.gate_...);
  }

  std::vector<R> routers_;
  G gate_;
  Index num_layers_;
};

/// The predictor that is always right: the experts of routings that are known, as of a PreGate.
template <class S>
class KnownRoutings {
 public:
  /// Refers to the routings of the step that runs, which may be overwritten between steps.
  explicit KnownRoutings(const std::vector<Routing<S>>& routings) : routings_(&routings) {}
  void observe(Index, std::span<const Index>) {}
  void predict(Index layer, std::vector<Index>& experts) {
    detail::require_layer("moe::KnownRoutings::predict", layer, std::ssize(*routings_));
    used_experts((*routings_)[static_cast<std::size_t>(layer)], experts);
  }

 private:
  const std::vector<Routing<S>>* routings_;
};

}  // namespace moe::inline MOE_ABI
