// SPDX-License-Identifier: MIT
// Experts for tests: references with error bounds, random parameters, and experts as a user would write them.
#pragma once

#include <string>

#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"
#include "support/matrices.hpp"
#include "support/parameters.hpp"
#include "support/tolerance.hpp"

namespace test {

/// An expert with all its parameters random.
template <class E, class... Options>
E random_expert(Index dim, Index other_dim, std::uint64_t seed, Options... options) {
  E expert(dim, other_dim, options...);
  randomise(expert, seed);
  return expert;
}

template <class Codec>
Mat in_double(const moe::PanelMatrix<Codec>& matrix) {
  return matrix.matrix().template cast<double>();
}

/// What an expert has to compute.
template <class Codec>
auto reference_of(const moe::BasicLinear<Codec>& expert, const Mat& rows) {
  return Bounded<typename Codec::Scalar>(rows).linear(in_double(expert.weight()), in_double(expert.bias()));
}
template <class Codec, class Act>
auto reference_of(const moe::BasicMlp<Codec, Act>& expert, const Mat& rows) {
  return Bounded<typename Codec::Scalar>(rows)
      .linear(in_double(expert.up()), in_double(expert.up_bias()))
      .map([](double x) { return Act::value(x); })
      .linear(in_double(expert.down()), in_double(expert.down_bias()));
}
template <class Codec, class Act>
auto reference_of(const moe::BasicGlu<Codec, moe::GatedBy<Act>>& expert, const Mat& rows) {
  return Bounded<typename Codec::Scalar>(rows)
      .linear(in_double(expert.gate_up()), in_double(expert.gate_up_bias()))
      .gated([](double x) { return Act::value(x); })
      .linear(in_double(expert.down()), in_double(expert.down_bias()));
}

/// One call of an expert outside a pool.
template <class E>
moe::Matrix<typename E::Scalar> run(const E& expert, const moe::Matrix<typename E::Scalar>& rows) {
  moe::Scratch scratch;
  const moe::Step step;
  const moe::Context context(step, scratch);
  auto out = nan_matrix<typename E::Scalar>(rows.rows(), expert.output_dim());
  expert.forward(rows, out, context);
  return out;
}

/// y = x + id of the token: forward only, and it looks at its step.
struct AddTokenId {
  using Scalar = double;
  Index dim = 0;

  Index input_dim() const { return dim; }
  Index output_dim() const { return dim; }
  void forward(const moe::ConstMatrixRef<double>& rows, moe::MatrixRef<double> out, const moe::Context& context) const {
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < dim; ++c) out(r, c) = rows(r, c) + static_cast<double>(context.step.id(r));
  }
};

/// y = factor * x elementwise, with backward.
struct Diagonal {
  using Scalar = double;
  struct Tape {};
  moe::RowVector<double> factor;

  Index input_dim() const { return factor.size(); }
  Index output_dim() const { return factor.size(); }
  void forward(const moe::ConstMatrixRef<double>& rows, moe::MatrixRef<double> out, const moe::Context&) const {
    for (Index r = 0; r < rows.rows(); ++r) out.row(r) = rows.row(r).cwiseProduct(factor);
  }
  void forward(const moe::ConstMatrixRef<double>& rows, moe::MatrixRef<double> out, const moe::Context& context,
               Tape&) const {
    forward(rows, out, context);
  }
  void backward(const moe::ConstMatrixRef<double>& rows, Tape&, const moe::ConstMatrixRef<double>& dout,
                moe::MatrixRef<double> drows, Diagonal& gradient, const moe::Context& context) const {
    forward(dout, drows, context);
    for (Index r = 0; r < rows.rows(); ++r) gradient.factor += rows.row(r).cwiseProduct(dout.row(r));
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("factor", self.factor...);
  }
};

}  // namespace test
