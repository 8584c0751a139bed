// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/overlap.hpp"
#include "moe/expert/concept.hpp"
#include "moe/kernel/panel_matrix.hpp"

namespace moe::inline MOE_ABI {

/// y = scale * x, without parameters: scale 1 is an identity expert or, as a branch, a residual connection; scale 0 a
/// zero (null) expert, which lets a gate choose to compute less. Immutable, share freely.
/// Jin et al., "MoE++", arXiv:2410.07348.
template <class Codec>
struct BasicScaledIdentity {
  using Scalar = typename Codec::Scalar;
  struct Tape {};

  Index dim = 0;
  Scalar scale = 1;

  Index input_dim() const { return dim; }
  Index output_dim() const { return dim; }

  /// Both [num_rows, dim]; `out` may be `rows` itself. Throws std::invalid_argument on other shapes and overlaps.
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context&) const {
    multiply("moe::ScaledIdentity::forward", "out", out, "rows", rows);
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape&) const {
    forward(rows, out, context);
  }
  void backward(const MatrixView<Scalar>&, Tape&, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                BasicScaledIdentity&, const Context&) const {
    multiply("moe::ScaledIdentity::backward", "drows", drows, "dout", dout);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                NoGradient, const Context& context) const {
    BasicScaledIdentity none;
    backward(rows, tape, dout, drows, none, context);
  }
  /// The same without `drows`: nothing to do.
  void backward(const MatrixView<Scalar>&, Tape&, const MatrixView<Scalar>&, BasicScaledIdentity&,
                const Context&) const {}

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}  // nothing to learn

 private:
  void multiply(const char* function, const char* to_name, MatrixRef<Scalar> to, const char* from_name,
                const ConstMatrixRef<Scalar>& from) const {
    detail::require_shape(function, from_name, from, from.rows(), dim);
    detail::require_shape(function, to_name, to, from.rows(), dim);
    detail::require_same_or_apart(function, to_name, to, from_name, from);
    to = scale * from;
  }
};

using ScaledIdentity = BasicScaledIdentity<F32>;

}  // namespace moe::inline MOE_ABI
