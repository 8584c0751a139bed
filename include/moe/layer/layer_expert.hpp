// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "moe/core/same_parameters.hpp"
#include "moe/expert/concept.hpp"
#include "moe/layer/concept.hpp"

namespace moe::inline MOE_ABI {

/// A whole layer as an expert: hierarchical mixtures (Jordan & Jacobs, "Hierarchical mixtures of experts", Neural
/// Computation 1994). Every inner layer draws its own random numbers, and has losses of its own: what they add to the
/// `losses` of its tape goes through backward (see for_each_routed()). Immutable in forward, share freely.
template <class Layer>
class LayerExpert {
  static_assert(InferenceLayer<Layer>,
                "moe::LayerExpert: a layer needs `Scalar`, `kPerToken`, `input_dim()`, `output_dim()` and "
                "`void forward(tokens, const Step&, out, BasicWorkspace<Scalar>&) const` (see moe/layer/concept.hpp)");
  static_assert(!kIsCollective<Layer>,
                "moe::LayerExpert: a layer over ranks cannot be an expert, which runs only where tokens choose it");

 public:
  using Scalar = typename Layer::Scalar;
  using Tape = detail::TapeOf<Layer>;
  static constexpr bool kPerToken = Layer::kPerToken;

  explicit LayerExpert(Layer layer) : layer_(std::move(layer)) {}

  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }
  Index input_dim() const { return layer_.input_dim(); }
  Index output_dim() const { return layer_.output_dim(); }

  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    layer_.forward(rows, context.step, out, context.scratch.get<BasicWorkspace<Scalar>>());
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape& tape) const
    requires TrainableLayer<Layer>
  {
    layer_.forward(rows, context.step, out, tape);
  }
  void require_backward(Index num_rows, const Tape& tape, const LayerExpert& gradient) const
    requires TrainableLayer<Layer>
  {
    detail::require_backward_of("moe::LayerExpert::backward", "gradient", layer_, num_rows, tape, gradient.layer_);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                LayerExpert& gradient, const Context& context) const
    requires TrainableLayer<Layer>
  {
    if constexpr (requires { tape.step = context.step; })
      tape.step = context.step;  // equal to that of forward, whose spans may have moved
    layer_.backward(rows, tape, dout, gradient.layer_, drows);
  }
  /// The same without `drows`; see MoeLayer::backward.
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, LayerExpert& gradient,
                const Context& context) const
    requires SkipsTokenGradient<Layer>
  {
    if constexpr (requires { tape.step = context.step; }) tape.step = context.step;
    layer_.backward(rows, tape, dout, gradient.layer_);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit(f, self.layer_...);
  }

 private:
  Layer layer_;
};

}  // namespace moe::inline MOE_ABI
