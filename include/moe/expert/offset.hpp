// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/concept.hpp"
#include "moe/kernel/panel_matrix.hpp"

namespace moe::inline MOE_ABI {

/// y = b whatever x is: as a branch an output bias, added once per token and weighted by nothing (JetMoE,
/// arXiv:2404.07413); as an expert the constant of MoE++ (arXiv:2410.07348). Immutable in forward, share freely.
template <class Codec>
class BasicOffset {
  using Panels = PanelMatrix<BiasCodec<Codec>>;

 public:
  using Scalar = typename Codec::Scalar;
  struct Tape {};

  /// Zero offset [dim]. Throws std::invalid_argument for a negative size.
  explicit BasicOffset(Index dim) : bias_(Panels::bias(detail::checked_size("moe::Offset", "dim", dim))) {}

  Index input_dim() const { return bias_.outputs(); }
  Index output_dim() const { return bias_.outputs(); }
  Panels& bias() { return bias_; }
  const Panels& bias() const { return bias_; }

  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context&) const { fill(rows, out); }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context&, Tape&) const { fill(rows, out); }

  /// gradient.b += column sums of dout, in double, rows ascending.
  void backward(const MatrixView<Scalar>&, Tape&, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                BasicOffset& gradient, const Context&) const {
    require_rows(dout, drows);
    if (!gradient.bias_.is_shaped_as(bias_))
      fail("moe::Offset::backward: gradient has ", gradient.output_dim(), " entries, expected ", output_dim());
    for (Index c = 0; c < output_dim(); ++c) {
      double sum = 0;
      for (Index r = 0; r < dout.rows(); ++r) sum += static_cast<double>(dout(r, c));
      gradient.bias_(c, 0) += static_cast<Scalar>(sum);
    }
    drows.setZero();  // last: it may overlap `dout`
  }
  void backward(const MatrixView<Scalar>&, Tape&, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows, NoGradient,
                const Context&) const {
    require_rows(dout, drows);
    drows.setZero();
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("bias", self.bias_...);
  }

 private:
  void require_rows(const ConstMatrixRef<Scalar>& dout, const ConstMatrixRef<Scalar>& drows) const {
    detail::require_shape("moe::Offset::backward", "dout", dout, dout.rows(), output_dim());
    detail::require_shape("moe::Offset::backward", "drows", drows, dout.rows(), input_dim());
  }
  void fill(const ConstMatrixRef<Scalar>& rows, MatrixRef<Scalar> out) const {
    detail::require_shape("moe::Offset::forward", "out", out, rows.rows(), output_dim());
    for (Index r = 0; r < out.rows(); ++r)
      for (Index c = 0; c < out.cols(); ++c) out(r, c) = bias_(c, 0);
  }

  Panels bias_;
};

using Offset = BasicOffset<F32>;

}  // namespace moe::inline MOE_ABI
