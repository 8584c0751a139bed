// SPDX-License-Identifier: MIT
// A layer that reads, beside every row, its products with the learned context of the environment that the row is from,
// Step::key of it, and that context: linear experts are then maps A + sum_j context_j B_j, modulated by the context.
#pragma once

#include <iterator>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/core/visit.hpp>
#include <moe/layer/concept.hpp>
#include <moe/layer/workspace.hpp>

namespace systems {

template <class Layer>
class WithContexts {
 public:
  using Scalar = float;
  using Workspace = moe::Workspace;
  static constexpr bool kPerToken = Layer::kPerToken;

  struct Tape {
    typename Layer::Tape layer;
    moe::Step step;
    moe::Matrix<float> tokens, dtokens;
  };

  /// The layer reads rows of `row_dim` numbers, then row_dim * context_dim products, then contexts, which are zero at
  /// first.
  WithContexts(Layer layer, moe::Index row_dim, moe::Index environments, moe::Index context_dim)
      : layer_(std::move(layer)), row_dim_(row_dim), contexts_(moe::Matrix<float>::Zero(environments, context_dim)) {}

  moe::Index input_dim() const { return row_dim_; }
  moe::Index output_dim() const { return layer_.output_dim(); }
  Layer& layer() { return layer_; }
  const Layer& layer() const { return layer_; }
  moe::Matrix<float>& contexts() { return contexts_; }
  const moe::Matrix<float>& contexts() const { return contexts_; }

  /// What the layer reads. Throws std::invalid_argument unless every row has a key that is one of the environments.
  moe::Matrix<float> tokens(const moe::MatrixView<float>& rows, const moe::Step& step) const {
    if (std::ssize(step.key) != rows.rows())
      moe::fail("systems::WithContexts: step has ", step.key.size(), " keys, expected ", rows.rows());
    for (const auto key : step.key)
      if (key < 0 || key >= contexts_.rows())
        moe::fail("systems::WithContexts: key is ", key, ", expected an environment in [0, ", contexts_.rows(), ")");
    moe::Matrix<float> all(rows.rows(), layer_.input_dim());
    const moe::Index dim = contexts_.cols();
    for (moe::Index t = 0; t < rows.rows(); ++t) {
      const auto context = contexts_.row(environment(step, t));
      all.row(t).head(row_dim_) = rows.row(t);
      for (moe::Index i = 0; i < row_dim_; ++i) all.row(t).segment(row_dim_ + i * dim, dim) = rows(t, i) * context;
      all.row(t).tail(dim) = context;
    }
    return all;
  }

  void forward(const moe::MatrixView<float>& rows, const moe::Step& step, moe::MatrixRef<float> out,
               moe::Workspace& ws) const {
    layer_.forward(tokens(rows, step), step, out, ws);
  }
  void forward(const moe::MatrixView<float>& rows, const moe::Step& step, moe::MatrixRef<float> out, Tape& tape) const {
    tape.step = step;
    tape.tokens = tokens(rows, step);
    layer_.forward(tape.tokens, step, out, tape.layer);
  }
  void backward(const moe::MatrixView<float>& rows, Tape& tape, const moe::MatrixView<float>& dout,
                WithContexts& gradient) const {
    tape.dtokens.resize(tape.tokens.rows(), tape.tokens.cols());
    layer_.backward(tape.tokens, tape.layer, dout, gradient.layer_, tape.dtokens);
    const moe::Index dim = contexts_.cols();
    for (moe::Index t = 0; t < rows.rows(); ++t) {
      auto dcontext = gradient.contexts_.row(environment(tape.step, t));
      dcontext += tape.dtokens.row(t).tail(dim);
      for (moe::Index i = 0; i < row_dim_; ++i)
        dcontext += rows(t, i) * tape.dtokens.row(t).segment(row_dim_ + i * dim, dim);
    }
  }
  void backward(const moe::MatrixView<float>& rows, Tape& tape, const moe::MatrixView<float>& dout,
                WithContexts& gradient, moe::MatrixRef<float> drows) const {
    backward(rows, tape, dout, gradient);
    drows = tape.dtokens.leftCols(row_dim_);
    const moe::Index dim = contexts_.cols();
    for (moe::Index t = 0; t < rows.rows(); ++t)
      for (moe::Index i = 0; i < row_dim_; ++i)
        drows(t, i) +=
            tape.dtokens.row(t).segment(row_dim_ + i * dim, dim).dot(contexts_.row(environment(tape.step, t)));
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "layer", self.layer_...);
    f("contexts", self.contexts_...);
  }

 private:
  static moe::Index environment(const moe::Step& step, moe::Index t) {
    return static_cast<moe::Index>(step.key[static_cast<std::size_t>(t)]);
  }

  Layer layer_;
  moe::Index row_dim_;
  moe::Matrix<float> contexts_;
};

}  // namespace systems
