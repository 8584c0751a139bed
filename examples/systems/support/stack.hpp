// SPDX-License-Identifier: MIT
// Layers of equal width, one after the other.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <moe/core/visit.hpp>
#include <moe/layer/workspace.hpp>
#include <moe/routing/step.hpp>

namespace systems {

/// As far as training goes, a layer. Each may have its own number of experts; none is named in Step::layer, so that
/// gates that draw random numbers draw the same in each.
template <class Layer>
struct Stack {
  using Scalar = float;
  static constexpr bool kPerToken = Layer::kPerToken;
  struct Tape {
    std::vector<typename Layer::Tape> layers;
    std::vector<moe::Matrix<float>> inputs, gradients;
  };

  std::vector<Layer> layers;

  moe::Index input_dim() const { return layers.front().input_dim(); }
  moe::Index output_dim() const { return layers.back().output_dim(); }
  void forward(const moe::MatrixView<float>& tokens, const moe::Step& step, moe::MatrixRef<float> out,
               moe::Workspace& ws) const {
    out = tokens;
    for (const Layer& layer : layers) layer.forward(out, step, out, ws);
  }
  void forward(const moe::MatrixView<float>& tokens, const moe::Step& step, moe::MatrixRef<float> out,
               Tape& tape) const {
    if (tape.layers.size() != layers.size()) tape.layers = std::vector<typename Layer::Tape>(layers.size());
    tape.inputs.resize(layers.size() + 1);
    tape.inputs[0] = tokens;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      tape.inputs[l + 1].resize(tokens.rows(), input_dim());
      layers[l].forward(tape.inputs[l], step, tape.inputs[l + 1], tape.layers[l]);
    }
    out = tape.inputs.back();
  }
  void backward(const moe::MatrixView<float>& tokens, Tape& tape, const moe::MatrixView<float>& dout, Stack& gradient,
                moe::MatrixRef<float> dtokens) const {
    moe::Matrix<float> above = dout, below(tokens.rows(), input_dim());
    for (std::size_t l = layers.size(); l-- > 0; std::swap(above, below))
      layers[l].backward(tape.inputs[l], tape.layers[l], above, gradient.layers[l], below);
    dtokens = above;
  }
  template <class F, class First, class... Rest>
  static void visit(F&& f, First& first, Rest&... rest) {
    for (std::size_t l = 0; l < first.layers.size(); ++l)
      moe::visit_part(f, std::to_string(l), first.layers[l], rest.layers[l]...);
  }
};

}  // namespace systems
