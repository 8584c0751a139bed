// SPDX-License-Identifier: MIT
#pragma once

#include "moe/expert/backward_stages.hpp"
#include "moe/expert/forward_stages.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Copies the first out.cols() columns of every row.
template <class S>
void copy_rows(const RowBuffer<S>& rows, MatrixRef<S> out) {
  for (Index r = 0; r < out.rows(); ++r) std::copy_n(rows.row(r), out.cols(), out.data() + r * out.outerStride());
}

/// Copies a matrix into rows of `width` columns, zero-padded.
template <class S>
void copy_padded(const ConstMatrixRef<S>& matrix, Index width, RowBuffer<S>& rows) {
  rows.resize(matrix.rows(), width);
  for (Index r = 0; r < matrix.rows(); ++r) {
    std::copy_n(matrix.data() + r * matrix.outerStride(), matrix.cols(), rows.row(r));
    std::fill(rows.row(r) + matrix.cols(), rows.row(r) + width, S{0});
  }
}

}  // namespace detail

/// Base of experts that list their stages: makes `Derived` an Expert of its own, usable outside a pool (as a shared
/// expert, say). Derived offers stages(self), input_dim() and output_dim(); see BasicMlp for a complete one.
template <class Derived, class Codec>
class StagedExpert {
 public:
  using Scalar = typename Codec::Scalar;

  /// out = expert(rows): rows [num_rows, input_dim], out [num_rows, output_dim].
  /// Throws std::invalid_argument on other shapes. 2 * num_rows * num_parameters operations; no allocation when warm.
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, Context& context) const {
    run<Keep::Nothing>(rows, out, context.scratch.get<Buffers<Derived>>());
  }

  /// Shared by forward and backward of one call.
  template <class D>
  struct Buffers {
    StageTapeOf<D> stages;
    RowBuffer<Scalar> out, din;
    Index num_rows = 0;  // of the forward pass
  };

  template <class D>
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, Context&, Buffers<D>& tape) const {
    run<Keep::PreActivations>(rows, out, tape);
  }

  /// Throws std::invalid_argument on wrong shapes.
  template <class D>
  void backward(const MatrixView<Scalar>& rows, Buffers<D>& tape, const MatrixView<Scalar>& dout,
                MatrixRef<Scalar> drows, D& gradient, Context&) const {
    constexpr const char* kFunction = "moe::Expert::backward";
    moe::detail::require_shape(kFunction, "rows", rows, tape.num_rows, derived().input_dim());
    moe::detail::require_shape(kFunction, "dout", dout, tape.num_rows, derived().output_dim());
    moe::detail::require_shape(kFunction, "drows", drows, tape.num_rows, derived().input_dim());
    const Index offset[] = {0, rows.rows()};
    const kernel::RowGroups groups{offset, 1};
    const auto self = [&](Index) -> const D& { return derived(); };
    detail::copy_padded<Scalar>(dout, backward_width<D>(groups, self), tape.out);
    backward_stages<D>(groups, kernel::RowSource<Scalar>::from(rows), self, tape.stages, tape.out,
                       [&](Index) -> D& { return gradient; }, tape.din);
    detail::copy_rows<Scalar>(tape.din, drows);
  }

 private:
  const Derived& derived() const { return static_cast<const Derived&>(*this); }

  template <Keep keep, class D>
  void run(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, Buffers<D>& buffers) const {
    moe::detail::require_shape("moe::Expert::forward", "rows", rows, rows.rows(), derived().input_dim());
    moe::detail::require_shape("moe::Expert::forward", "out", out, rows.rows(), derived().output_dim());
    const Index offset[] = {0, rows.rows()};
    buffers.num_rows = rows.rows();
    forward_stages<keep, D>({offset, 1}, kernel::RowSource<Scalar>::from(rows),
                            [&](Index) -> const D& { return derived(); }, buffers.stages, buffers.out);
    detail::copy_rows<Scalar>(buffers.out, out);
  }
};

}  // namespace moe::inline MOE_ABI
