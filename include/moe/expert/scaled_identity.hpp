// SPDX-License-Identifier: MIT
#pragma once

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

  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, Context&) const { out = scale * rows; }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, Context&, Tape&) const { out = scale * rows; }
  void backward(const MatrixView<Scalar>&, Tape&, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                BasicScaledIdentity&, Context&) const {
    drows = scale * dout;
  }
};

using ScaledIdentity = BasicScaledIdentity<F32>;

}  // namespace moe::inline MOE_ABI
