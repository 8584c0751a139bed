// SPDX-License-Identifier: MIT
// A classifier: scores = head(layer(tokens)), with a linear head. A layer of its own kind, as far as training goes.
#pragma once

#include <utility>

#include <moe/expert/linear.hpp>
#include <moe/layer/concept.hpp>
#include <moe/layer/workspace.hpp>

namespace systems {

/// The head is a Linear, or a frozen one.
template <class Layer, class Head = moe::Linear>
class WithHead {
 public:
  using Scalar = float;
  using Workspace = moe::Workspace;
  static constexpr bool kPerToken = Layer::kPerToken;

  struct Tape {
    typename Layer::Tape layer;
    typename Head::Tape head;
    moe::Step step;
    moe::Scratch scratch;
    moe::Matrix<float> hidden, dhidden;
  };

  WithHead(Layer layer, Head head) : layer_(std::move(layer)), head_(std::move(head)) {}

  moe::Index input_dim() const { return layer_.input_dim(); }
  moe::Index output_dim() const { return head_.output_dim(); }
  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }
  Head& head() { return head_; }
  const Head& head() const { return head_; }

  void forward(const moe::MatrixView<float>& tokens, const moe::Step& step, moe::MatrixRef<float> out,
               moe::Workspace& ws) const {
    moe::Matrix<float> hidden(tokens.rows(), layer_.output_dim());
    layer_.forward(tokens, step, hidden, ws);
    head_.forward(hidden, out, moe::Context(step, ws.scratch));
  }
  void forward(const moe::MatrixView<float>& tokens, const moe::Step& step, moe::MatrixRef<float> out,
               Tape& tape) const {
    tape.step = step;
    tape.hidden.resize(tokens.rows(), layer_.output_dim());
    layer_.forward(tokens, step, tape.hidden, tape.layer);
    head_.forward(tape.hidden, out, moe::Context(tape.step, tape.scratch), tape.head);
  }
  /// With or without dtokens.
  template <class... Out>
  void backward(const moe::MatrixView<float>& tokens, Tape& tape, const moe::MatrixView<float>& dout,
                WithHead& gradient, Out&&... dtokens) const {
    tape.dhidden.resize(tape.hidden.rows(), tape.hidden.cols());
    head_.backward(tape.hidden, tape.head, dout, tape.dhidden, gradient.head_, moe::Context(tape.step, tape.scratch));
    layer_.backward(tokens, tape.layer, tape.dhidden, gradient.layer_, std::forward<Out>(dtokens)...);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "layer", self.layer_...);
    moe::visit_part(f, "head", self.head_...);
  }

 private:
  Layer layer_;
  Head head_;
};

}  // namespace systems
