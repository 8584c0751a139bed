// SPDX-License-Identifier: MIT
// A classifier: scores = head(layer(tokens)), with a linear head. A layer of its own kind, as far as training goes.
#pragma once

#include <cstdint>
#include <utility>

#include <moe/expert/linear.hpp>
#include <moe/layer/concept.hpp>
#include <moe/numeric/schedule.hpp>
#include <moe/train/cross_entropy.hpp>
#include <moe/train/trainer.hpp>

#include "labelled.hpp"

namespace systems {

template <class Layer>
class WithHead {
 public:
  using Scalar = float;
  using Workspace = moe::Workspace;
  static constexpr bool kPerToken = Layer::kPerToken;

  struct Tape {
    typename Layer::Tape layer;
    moe::Linear::Tape head;
    moe::Step step;
    moe::Scratch scratch;
    moe::Matrix<float> hidden, dhidden;
  };

  WithHead(Layer layer, moe::Linear head) : layer_(std::move(layer)), head_(std::move(head)) {}

  moe::Index input_dim() const { return layer_.input_dim(); }
  moe::Index output_dim() const { return head_.output_dim(); }
  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }
  moe::Linear& head() { return head_; }
  const moe::Linear& head() const { return head_; }

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
  moe::Linear head_;
};

/// Scores of the rows, in inference.
template <class Model>
moe::Matrix<float> scores(const Model& model, const moe::Matrix<float>& rows) {
  moe::Workspace ws;
  moe::Matrix<float> out(rows.rows(), model.output_dim());
  model.forward(rows, moe::Step{}, out, ws);
  return out;
}

/// How a classifier is trained: AdamW, with a rate that falls to 0 along a cosine.
struct Training {
  std::uint64_t updates = 1000;
  double rate = 4e-3, weight_decay = 0, max_norm = 1, balance = 0;
};

/// Cross-entropy on batch(update), a Labelled; report(update, loss) is told of every update.
template <class Model, class Batch, class Report>
void train(Model& model, const Training& how, std::uint64_t seed, const Batch& batch, const Report& report) {
  moe::Trainer trainer(model, moe::AdamW{.weight_decay = how.weight_decay},
                       {.max_norm = how.max_norm, .balance = how.balance});
  const moe::CosineSchedule rate{.start = how.rate, .end = 0, .updates = how.updates};
  for (std::uint64_t update = 0; update < how.updates; ++update) {
    const Labelled data = batch(update);
    const moe::Step step = moe::Step::train(update, seed);
    const double loss = trainer.accumulate(data.rows, step, [&](const auto& out, auto& dout) {
      return moe::cross_entropy<float>(out, data.labels, step, dout);
    });
    trainer.update(rate(update));
    report(update, loss);
  }
}

}  // namespace systems
