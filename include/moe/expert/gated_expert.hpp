// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <vector>

#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/linear.hpp"

namespace moe::inline MOE_ABI {

/// y = sigmoid(<g, x> + b) * E(x): an expert with a scalar gate of its own, which as a branch is the gated shared
/// expert of Qwen2-MoE. g is a linear map to one output, b is optional. Immutable in forward, share freely. Team Qwen,
/// "Qwen2 Technical Report" (arXiv:2407.10671).
template <class E, class Codec>
class GatedExpert {
  static_assert(Expert<E>,
                "moe::GatedExpert: an Expert needs `Scalar`, `input_dim()`, `output_dim()` and "
                "`void forward(const ConstMatrixRef<S>& rows, MatrixRef<S> out, const Context&) const` "
                "(see moe/expert/concept.hpp)");

 public:
  using Scalar = typename E::Scalar;
  static constexpr bool kPerToken = kIsPerToken<E>;
  static_assert(std::is_same_v<Scalar, typename Codec::Scalar>,
                "moe::GatedExpert: the expert and the gate need the same Scalar");
  struct Tape {
    detail::TapeOf<E> expert;
    typename BasicLinear<Codec>::Tape gate;
    Matrix<Scalar> out;    ///< E(x)
    Matrix<Scalar> score;  ///< sigmoid(<g, x> + b), [num_rows, 1]
    Matrix<Scalar> dout, dscore, drows;
  };

  /// Throws std::invalid_argument unless the gate maps the rows of the expert to one number.
  GatedExpert(E expert, BasicLinear<Codec> gate) : expert_(std::move(expert)), gate_(std::move(gate)) {
    if (gate_.output_dim() != 1 || gate_.input_dim() != expert_.input_dim())
      fail("moe::GatedExpert: the gate maps ", gate_.input_dim(), " to ", gate_.output_dim(), ", expected ",
           expert_.input_dim(), " to 1");
  }

  Index input_dim() const { return expert_.input_dim(); }
  Index output_dim() const { return expert_.output_dim(); }
  E& expert() { return expert_; }
  const E& expert() const { return expert_; }
  BasicLinear<Codec>& gate() { return gate_; }
  const BasicLinear<Codec>& gate() const { return gate_; }

  /// out [num_rows, output_dim]; throws std::invalid_argument on other shapes.
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    RowBuffer<Scalar>& score = context.scratch.get<Scores>().value;
    score.resize(rows.rows(), 1);
    gate_.forward(rows, score, context);  // first: `out` may overlap `rows` where the expert allows it
    expert_.forward(rows, out, context);
    apply(score, out);
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape& tape) const
    requires DifferentiableExpert<E>
  {
    detail::require_apart("moe::GatedExpert::forward", "out", out, "rows", rows);
    tape.score.resize(rows.rows(), 1);
    gate_.forward(rows, tape.score, context, tape.gate);
    expert_.forward(rows, out, context, tape.expert);
    tape.out = out;
    apply(tape.score, out);
  }
  /// Throws std::invalid_argument unless tape and gradient are those of an expert of these sizes.
  void require_backward(Index num_rows, const Tape& tape, const GatedExpert& gradient) const
    requires DifferentiableExpert<E>
  {
    require_pass(num_rows, tape, gradient);
  }
  void require_backward(Index num_rows, const Tape& tape, NoGradient none) const
    requires SkipsGradient<E>
  {
    require_pass(num_rows, tape, none);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                GatedExpert& gradient, const Context& context) const
    requires DifferentiableExpert<E>
  {
    run_backward(rows, tape, dout, drows, gradient, context);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                NoGradient none, const Context& context) const
    requires SkipsGradient<E>
  {
    run_backward(rows, tape, dout, drows, none, context);
  }

  /// The parts of the expert, each behind the same gate; see split_expert().
  std::vector<GatedExpert> split(Index parts) const
    requires requires(const E& expert) { expert.split(parts); }
  {
    std::vector<GatedExpert> gated;
    for (E& part : expert_.split(parts)) gated.emplace_back(std::move(part), gate_);
    return gated;
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "gate", self.gate_...);
    visit_part(f, "expert", self.expert_...);
  }

 private:
  struct Scores {
    RowBuffer<Scalar> value;
  };

  /// Turns scores into their sigmoids and scales the rows by them.
  static void apply(MatrixRef<Scalar> score, MatrixRef<Scalar> out) {
    for (Index r = 0; r < out.rows(); ++r) {
      score(r, 0) = Sigmoid::value(score(r, 0));
      out.row(r) *= score(r, 0);
    }
  }

  template <class Gradient>
  void require_pass(Index num_rows, const Tape& tape, const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::GatedExpert::backward";
    detail::require_shape(kFunction, "tape.out", tape.out, num_rows, output_dim());
    detail::require_backward_of(kFunction, "gradient.expert", expert_, num_rows, tape.expert,
                                detail::part_of(gradient, &GatedExpert::expert_));
    gate_.require_backward(num_rows, tape.gate, detail::part_of(gradient, &GatedExpert::gate_));
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& rows, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    MatrixRef<Scalar> drows, Gradient& gradient, const Context& context) const {
    constexpr const char* kFunction = "moe::GatedExpert::backward";
    detail::require_backward_rows(kFunction, *this, rows, dout, drows);
    require_pass(rows.rows(), tape, gradient);
    tape.dout = dout;
    tape.dscore.resize(dout.rows(), 1);
    for (Index r = 0; r < dout.rows(); ++r) {
      const Scalar score = tape.score(r, 0);
      double along = 0;  // <dout, E(x)>
      for (Index c = 0; c < dout.cols(); ++c)
        along = simd::fma(static_cast<double>(dout(r, c)), static_cast<double>(tape.out(r, c)), along);
      tape.dscore(r, 0) = score * (1 - score) * static_cast<Scalar>(along);
      tape.dout.row(r) *= score;
    }
    tape.drows.resize(rows.rows(), input_dim());
    gate_.backward(rows, tape.gate, tape.dscore, tape.drows, detail::part_of(gradient, &GatedExpert::gate_), context);
    expert_.backward(rows, tape.expert, tape.dout, drows, detail::part_of(gradient, &GatedExpert::expert_), context);
    drows += tape.drows;
  }

  E expert_;
  BasicLinear<Codec> gate_;
};

}  // namespace moe::inline MOE_ABI
