// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "moe/expert/concatenated.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/offset.hpp"
#include "moe/expert/pool.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/io/families/moe_config.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/layer/structure.hpp"
#include "moe/router/linear.hpp"

// Long, as one class is all that a block of any published model does.
namespace moe::inline MOE_ABI {

template <class Codec>
using BasicClampedGlu = BasicGlu<Codec, ClampedSwiGlu>;
template <class Codec>
using BasicGeluGlu = BasicGlu<Codec, GatedBy<GeluTanh>>;
template <class Codec>
using BasicReluMlp = BasicMlp<Codec, Relu>;
template <class Codec>
using BasicSquaredReluMlp = BasicMlp<Codec, SquaredRelu>;
/// Experts of LongCat: those with weights, then those without.
template <class Codec>
using BasicGluAndIdentity = Concatenated<ExpertPool<BasicGlu<Codec>>, ExpertPool<ScaledIdentity>>;
using ClampedGlu = BasicClampedGlu<F32>;
using GeluGlu = BasicGeluGlu<F32>;
using ReluMlp = BasicReluMlp<F32>;
using SquaredReluMlp = BasicSquaredReluMlp<F32>;
using GluAndIdentity = BasicGluAndIdentity<F32>;

namespace detail {

template <class G, class E>
using LayerOf = MoeLayer<LinearRouter, G, ExpertPool<E>>;
template <class Codec>
using GluLayer = LayerOf<TopKGate, BasicGlu<Codec>>;

/// What a block is made of, by its codec: what an expert E is in the pool, and how shared ones are stored. See Adapted
/// in adapt_block.hpp for another.
template <class C>
struct BlockParts {
  using Codec = C;
  template <class E>
  using Routed = E;
};

/// The innermost layer of one with branches, and its tape.
template <class L>
auto& innermost(L& layer) {
  if constexpr (requires { layer.layer(); })
    return layer.layer();
  else
    return layer;
}
template <class T>
auto& innermost_tape(T& tape) {
  if constexpr (requires { tape.layer; })
    return tape.layer;
  else
    return tape;
}

}  // namespace detail

/// The MoE block of a published model: one of a closed set of layers, each made of the library's router, gates, experts
/// and branches, behind one interface. A std::variant and not a class with virtual functions: the set is known, and the
/// block stays a value that is copied, visited and trained as the layer in it is (visit, zeros_like, save_parameters
/// and optimisers work); std::visit on layer() reaches the concrete type. Codec says how the weights of the experts are
/// stored, shared ones included, as every token reads those: floats (MoeBlock), or few bits in a format that may differ
/// from matrix to matrix (QuantisedMoeBlock). Routers, gates, biases and the score of a shared expert are floats: they
/// are small, and what they round moves choices. Immutable in forward, share freely.
template <class Codec>
class BasicMoeBlock {
  using Stored = typename detail::BlockParts<Codec>::Codec;
  template <template <class> class E>
  using Routed = typename detail::BlockParts<Codec>::template Routed<E<Stored>>;
  template <class T>
  using Glu = BasicGlu<T>;  // of one parameter
  using Shared = BasicGlu<Stored>;
  using GluLayer = detail::LayerOf<TopKGate, Routed<Glu>>;
  using SquaredReluLayer =
      WithBranches<detail::LayerOf<TopKGate, Routed<BasicSquaredReluMlp>>, BasicSquaredReluMlp<Stored>>;
  using IdentityLayer =
      MoeLayer<LinearRouter, TopKGate, Concatenated<ExpertPool<Routed<Glu>>, ExpertPool<ScaledIdentity>>>;

 public:
  using Scalar = float;
  using Layer = std::variant<GluLayer,                                                        // Mixtral, OLMoE, ...
                             WithBranches<GluLayer, Shared>,                                  // DeepSeek, ...
                             WithBranches<GluLayer, GatedExpert<Shared, F32>>,                // Qwen2-MoE
                             WithBranches<GluLayer, Offset>,                                  // JetMoE
                             SquaredReluLayer,                                                // Nemotron-H
                             detail::LayerOf<TopKGate, Routed<BasicClampedGlu>>,              // GPT-OSS
                             IdentityLayer,                                                   // LongCat
                             detail::LayerOf<SparseMixerGate, Routed<Glu>>,                   // Phi-3.5-MoE
                             detail::LayerOf<WithCapacity<TopKGate>, Routed<BasicReluMlp>>,   // Switch, NLLB
                             detail::LayerOf<WithCapacity<TopKGate>, Routed<BasicGeluGlu>>>;  // Switch 1.1

  /// What forward leaves for backward; see MoeLayer::Tape.
  class Tape {
    template <class Variant>
    struct TapesOf;
    template <class... Layers>
    struct TapesOf<std::variant<Layers...>> {
      // One alternative per layer, as different layers may have the same tape.
      using type = std::variant<std::monostate, std::pair<Layers*, typename Layers::Tape>...>;
    };

    template <class L>
    typename L::Tape& of(const L&) {
      using Entry = std::pair<L*, typename L::Tape>;
      if (!std::holds_alternative<Entry>(tape_)) tape_.template emplace<Entry>();
      return std::get<Entry>(tape_).second;
    }
    template <class Result, class Member>
    static Result& read(auto& tapes, const Member& member) {
      const auto visitor = [&]<class Entry>(Entry& entry) -> Result& {
        if constexpr (std::is_same_v<std::remove_const_t<Entry>, std::monostate>)
          fail("moe::MoeBlock::Tape: no forward pass has been recorded");
        else
          return member(detail::innermost_tape(entry.second));
      };
      return std::visit(visitor, tapes);
    }
    friend BasicMoeBlock;
    typename TapesOf<Layer>::type tape_;

   public:
    /// Of the last forward pass, [num_tokens, num_logits]. All throw std::invalid_argument if there was none.
    const Matrix<float>& logits() const {
      return read<const Matrix<float>>(tape_, [](const auto& tape) -> const auto& { return tape.logits; });
    }
    const Routing<float>& routing() const {
      return read<const Routing<float>>(tape_, [](const auto& tape) -> const auto& { return tape.routing; });
    }
    const Step& step() const {
      return read<const Step>(tape_, [](const auto& tape) -> const auto& { return tape.step; });
    }
    /// Where auxiliary losses add up their gradients; see MoeLayer::Tape.
    RoutingGradient<float>& losses() {
      return read<RoutingGradient<float>>(tape_, [](auto& tape) -> auto& { return tape.losses; });
    }
  };

  /// A block of this configuration with all weights zero, which take no memory where they are codes. Throws
  /// std::invalid_argument for numbers out of range or a combination of parts that no published model has.
  explicit BasicMoeBlock(const MoeConfig& config)
    requires std::is_same_v<Stored, Codec>
      : config_(config), layer_(make(config)) {}
  /// A layer made elsewhere, as that of another block with other weights. Throws std::invalid_argument unless it has
  /// the experts and widths of the configuration.
  BasicMoeBlock(MoeConfig config, Layer layer) : config_(std::move(config)), layer_(std::move(layer)) {
    std::visit(
        [&](const auto& made) {
          if (made.num_experts() != num_experts() || made.input_dim() != input_dim() ||
              made.output_dim() != output_dim())
            fail("moe::MoeBlock: a layer of ", made.num_experts(), " experts that maps ", made.input_dim(), " to ",
                 made.output_dim(), ", expected ", num_experts(), " experts, ", input_dim(), " to ", output_dim());
        },
        layer_);
  }

  const MoeConfig& config() const { return config_; }
  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }
  Index model_dim() const { return config_.model_dim; }
  Index input_dim() const { return config_.model_dim; }
  Index output_dim() const { return config_.model_dim; }
  Index num_experts() const { return config_.num_logits(); }
  const LinearRouter& router() const {
    return std::visit([](const auto& layer) -> const LinearRouter& { return detail::innermost(layer).router(); },
                      layer_);
  }

  /// out [num_tokens, model_dim]; with step.group_id of the sequences where the capacity is per sequence (Switch). The
  /// workspace then holds logits and routing. Throws as MoeLayer::forward does.
  void forward(const MatrixView<float>& tokens, const Step& step, MatrixRef<float> out, Workspace& ws) const {
    std::visit([&](const auto& layer) { layer.forward(tokens, step, out, ws); }, layer_);
  }
  void forward(const MatrixView<float>& tokens, const Step& step, MatrixRef<float> out, Tape& tape) const {
    std::visit([&](const auto& layer) { layer.forward(tokens, step, out, tape.of(layer)); }, layer_);
  }

  /// A forward pass with choices made elsewhere; see MoeLayer::replay.
  void replay(const MatrixView<float>& tokens, const Step& step, const Routing<float>& choices, MatrixRef<float> out,
              Tape& tape) const {
    std::visit([&](const auto& layer) { layer.replay(tokens, step, choices, out, tape.of(layer)); }, layer_);
  }

  /// See MoeLayer::backward; `gradient` is a block of the same configuration. Where k is 1 and weights are normalised,
  /// config.gate.constant_weights must accept that (see TopKGate).
  void backward(const MatrixView<float>& tokens, Tape& tape, const MatrixView<float>& dout, BasicMoeBlock& gradient,
                MatrixRef<float> dtokens) const {
    run_backward(tokens, tape, dout, gradient, dtokens);
  }
  /// The same without dL/dtokens.
  void backward(const MatrixView<float>& tokens, Tape& tape, const MatrixView<float>& dout,
                BasicMoeBlock& gradient) const {
    run_backward(tokens, tape, dout, gradient);
  }

  /// What the gate makes of logits [num_tokens, num_logits]; as in forward.
  void route(const MatrixView<float>& logits, const Context& context, Routing<float>& routing) const {
    with_gate([&](const auto& gate) { gate.route(logits, context, routing); });
  }
  /// Scores of all experts before selection.
  void probabilities(const MatrixView<float>& logits, const Context& context, Matrix<float>& p) const {
    with_gate([&](const auto& gate) { gate.probabilities(logits, context, p); });
  }

  /// Calls f(gate) with the gate that this block has.
  template <class F>
  void with_gate(F&& f) const {
    std::visit([&](const auto& layer) { f(detail::innermost(layer).gate()); }, layer_);
  }

  /// The block whose expert i is expert ids[i] of this one, with a configuration that says so; see take_experts().
  /// Identity experts stay behind those with weights, at least one of each kind. Throws std::invalid_argument where
  /// take_experts() of the layer does.
  BasicMoeBlock take(ExpertIds ids) const {
    const std::span<const Index> experts = ids;
    Layer layer = std::visit([&](const auto& whole) -> Layer { return take_experts(whole, experts); }, layer_);
    MoeConfig config = config_;
    config.num_experts = std::ranges::count_if(experts, [&](Index e) { return e < config_.num_experts; });
    config.num_identity_experts = std::ssize(experts) - config.num_experts;
    if (!config.sparse_mixer) config.gate = config_.gate.take(experts, config_.num_logits());
    return {std::move(config), std::move(layer)};
  }

  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    std::visit(
        [&](auto& layer) { moe::visit(f, layer, std::get<std::remove_cvref_t<decltype(layer)>>(rest.layer_)...); },
        first.layer_);
  }

 private:
  template <class... Tokens>
  void run_backward(const ConstMatrixRef<float>& tokens, Tape& tape, const ConstMatrixRef<float>& dout,
                    BasicMoeBlock& gradient, Tokens&... dtokens) const {
    if (gradient.layer_.index() != layer_.index())
      fail("moe::MoeBlock::backward: gradient is of family '", gradient.config_.family, "', expected '", config_.family,
           "'");
    std::visit(
        [&](const auto& layer) {
          using L = std::remove_cvref_t<decltype(layer)>;
          layer.backward(tokens, tape.of(layer), dout, std::get<L>(gradient.layer_), dtokens...);
        },
        layer_);
  }

  /// One expert per place, all of the same shape. Made in parallel: zeroing them is as much work as loading them.
  template <class E>
  static ExpertPool<E> pool(const MoeConfig& config) {
    const Bias bias = config.expert_bias ? Bias::Zero : Bias::Off;
    std::vector<std::optional<E>> made(static_cast<std::size_t>(config.num_experts));
    parallel_in_order(config.num_experts, [&](Index e, Index) {
      auto& expert = made[static_cast<std::size_t>(e)];
      if constexpr (std::is_same_v<E, BasicClampedGlu<Codec>>)
        expert.emplace(config.model_dim, config.hidden_dim, bias, config.clamp);
      else
        expert.emplace(config.model_dim, config.hidden_dim, bias);
    });
    std::vector<E> experts;
    for (auto& expert : made) experts.emplace_back(std::move(*expert));
    return ExpertPool<E>(std::move(experts));
  }

  static LinearRouter router_of(const MoeConfig& config) {
    return {config.num_logits(), config.model_dim, config.router_bias ? Bias::Zero : Bias::Off};
  }

  template <class E, class G>
  static detail::LayerOf<G, E> layer_of(const MoeConfig& config, G gate) {
    return {router_of(config), std::move(gate), pool<E>(config), config.weight_on};
  }

  static IdentityLayer with_identities(const MoeConfig& config, TopKGate gate) {
    const auto count = static_cast<std::size_t>(config.num_identity_experts);
    ExpertPool identities(std::vector<ScaledIdentity>(count, {config.model_dim}));
    return {router_of(config), std::move(gate),
            BasicGluAndIdentity<Codec>(pool<BasicGlu<Codec>>(config), std::move(identities)), config.weight_on};
  }

  static Layer make(const MoeConfig& config) {
    config.validate();
    TopKGate gate = config.gate;
    if (config.selection_bias) gate.selection_bias = Eigen::RowVectorXd::Zero(config.num_logits());
    const bool branches = config.shared_dim != 0 || config.output_bias, identities = config.num_identity_experts != 0;
    const bool plain = !branches && !identities, top_k = !config.capacity && !config.sparse_mixer;
    if (plain && config.capacity && !config.sparse_mixer) {
      WithCapacity<TopKGate> limited{std::move(gate), *config.capacity};
      if (config.expert == ExpertKind::ReluPlain) return layer_of<BasicReluMlp<Codec>>(config, std::move(limited));
      if (config.expert == ExpertKind::GeluGated) return layer_of<BasicGeluGlu<Codec>>(config, std::move(limited));
    }
    if (config.expert == ExpertKind::ClampedGated && plain && top_k)
      return layer_of<BasicClampedGlu<Codec>>(config, std::move(gate));
    if (config.expert == ExpertKind::SquaredReluPlain && config.shared_dim != 0 && top_k && !identities &&
        !config.output_bias && config.shared_gate == SharedGate::Off)
      return SquaredReluLayer(layer_of<BasicSquaredReluMlp<Codec>>(config, std::move(gate)),
                              BasicSquaredReluMlp<Codec>(config.model_dim, config.shared_dim, Bias::Off));
    if (config.expert == ExpertKind::SiluGated && !config.capacity) {
      if (config.sparse_mixer && plain) return layer_of<BasicGlu<Codec>>(config, *config.sparse_mixer);
      if (top_k && identities && !branches) return with_identities(config, std::move(gate));
      if (top_k && !identities) return with_branches(config, layer_of<BasicGlu<Codec>>(config, std::move(gate)));
    }
    fail("moe::MoeBlock: family '", config.family, "' asks for parts together that no published model has");
  }

  static Layer with_branches(const MoeConfig& config, GluLayer layer) {
    if (config.output_bias && config.shared_dim == 0)
      return WithBranches<GluLayer, Offset>(std::move(layer), Offset(config.model_dim));
    if (config.output_bias) fail("moe::MoeBlock: family '", config.family, "' has a shared expert and an output bias");
    if (config.shared_dim == 0) return layer;
    Shared shared(config.model_dim, config.shared_dim);
    if (config.shared_gate == SharedGate::Off)
      return WithBranches<GluLayer, Shared>(std::move(layer), std::move(shared));
    GatedExpert<Shared, F32> gated(std::move(shared), Linear(1, config.model_dim, Bias::Off));
    return WithBranches<GluLayer, GatedExpert<Shared, F32>>(std::move(layer), std::move(gated));
  }

  MoeConfig config_;
  Layer layer_;
};

using MoeBlock = BasicMoeBlock<F32>;
/// Experts with weights in few bits (needs moe/kernel/quantised_matrix.hpp): see load_quantised_block(), quantise().
using QuantisedMoeBlock = BasicMoeBlock<Quantised>;

/// MoeBlock::take(): the function that other layers have.
template <class Codec>
BasicMoeBlock<Codec> take_experts(const BasicMoeBlock<Codec>& block, ExpertIds ids) {
  return block.take(ids);
}

}  // namespace moe::inline MOE_ABI
