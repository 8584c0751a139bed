// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/overlap.hpp"
#include "moe/core/part_of_gradient.hpp"
#include "moe/expert/stage/backward_stages.hpp"
#include "moe/expert/stage/forward_stages.hpp"
#include "moe/kernel/gather.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Copies the first out.cols() columns of every row.
template <class S>
void copy_rows(const RowBuffer<S>& rows, MatrixRef<S> out) {
  for (Index r = 0; r < out.rows(); ++r) std::copy_n(rows.row(r), out.cols(), out.data() + r * out.outerStride());
}

}  // namespace detail

/// Base of experts that list their stages: makes `Derived` an Expert of its own, usable outside a pool (as a shared
/// expert, say). Derived offers stages(self), input_dim() and output_dim(); see BasicMlp for a complete one.
template <class Derived, class Codec>
class StagedExpert {
 public:
  using Scalar = typename Codec::Scalar;

  /// What backward needs of a forward pass.
  template <class D>
  struct Tape {
    StageTapeOf<D> stages;
    Index num_rows = 0, input_dim = 0;
  };

  /// out = expert(rows): rows [num_rows, input_dim], out [num_rows, output_dim]; they may overlap.
  /// Throws std::invalid_argument on other shapes. 2 * num_rows * num_parameters operations; no allocation when warm.
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    run<Derived>(rows, out, context);
  }

  /// Throws std::invalid_argument if the stages do not fit together: weights may be replaced through references.
  void require_parts() const { widths<Derived>(); }

  /// The same with what backward needs kept in `tape`; `out` must not overlap `rows`, which backward reads again.
  template <class D>
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape<D>& tape) const {
    moe::detail::require_apart("moe::StagedExpert::forward", "out", out, "rows", rows);
    run<D>(rows, out, context, tape.stages);
    tape.num_rows = rows.rows();
    tape.input_dim = rows.cols();
  }

  /// Throws std::invalid_argument unless the tape is that of a forward pass of so many rows through an expert of these
  /// sizes, and the gradient of these sizes, too.
  template <class D>
  void require_backward(Index num_rows, const Tape<D>& tape, const D& gradient) const {
    require_pass(num_rows, tape, gradient);
  }
  template <class D>
  void require_backward(Index num_rows, const Tape<D>& tape, NoGradient none) const {
    require_pass(num_rows, tape, none);
  }

  /// Throws std::invalid_argument, before it writes anything, on wrong shapes and as require_backward(). `drows` may
  /// overlap `rows` and `dout`.
  template <class D>
  void backward(const MatrixView<Scalar>& rows, const Tape<D>& tape, const MatrixView<Scalar>& dout,
                MatrixRef<Scalar> drows, D& gradient, const Context& context) const {
    backward_rows(rows, tape, dout, drows, gradient, context);
  }
  /// The same without a gradient, which is not computed.
  template <class D>
  void backward(const MatrixView<Scalar>& rows, const Tape<D>& tape, const MatrixView<Scalar>& dout,
                MatrixRef<Scalar> drows, NoGradient none, const Context& context) const {
    backward_rows(rows, tape, dout, drows, none, context);
  }
  /// The same without `drows`, which is not computed.
  template <class D>
  void backward(const MatrixView<Scalar>& rows, const Tape<D>& tape, const MatrixView<Scalar>& dout, D& gradient,
                const Context& context) const {
    run_backward(rows, tape, dout, gradient, memory<D>(context), InputGradient::Skip);
  }

 private:
  /// Working memory of both passes.
  template <class D>
  struct Memory {
    StageMemoryOf<D> stages;
    RowBuffer<Scalar> out;  ///< and, in backward, its gradient
  };
  template <class D>
  static Memory<D>& memory(const Context& context) {
    return context.scratch.get<Memory<D>>();
  }

  const Derived& derived() const { return static_cast<const Derived&>(*this); }

  template <class D>
  moe::detail::StageWidths<D> widths() const {
    const Index any_row[] = {0, 1};
    return moe::detail::require_stages<D>({any_row, 1}, derived().input_dim(), derived().output_dim(),
                                          for_any_row<const D>(derived()));
  }

  /// As stages ask for experts and gradients: the same for every group.
  template <class T>
  static auto for_any_row(T& object) {
    if constexpr (moe::detail::kIsNoGradient<T>)
      return NoGradient{};
    else
      return [&object](Index) -> T& { return object; };
  }

  template <class D, class Gradient>
  void require_pass(Index num_rows, const Tape<D>& tape, const Gradient& gradient) const {
    if (tape.num_rows != num_rows || tape.input_dim != derived().input_dim())
      fail("moe::StagedExpert::backward: the tape is of [", tape.num_rows, ", ", tape.input_dim, "] rows, expected [",
           num_rows, ", ", derived().input_dim(), "]");
    const Index offset[] = {0, num_rows};
    require_backward_stages<D>({offset, 1}, for_any_row<const D>(derived()), widths<D>(), tape.stages,
                               for_any_row(gradient));
  }

  template <class D, class Gradient>
  void backward_rows(const ConstMatrixRef<Scalar>& rows, const Tape<D>& tape, const ConstMatrixRef<Scalar>& dout,
                     MatrixRef<Scalar> drows, Gradient& gradient, const Context& context) const {
    moe::detail::require_shape("moe::StagedExpert::backward", "drows", drows, tape.num_rows, derived().input_dim());
    Memory<D>& working = memory<D>(context);
    run_backward(rows, tape, dout, gradient, working, InputGradient::Compute);
    detail::copy_rows<Scalar>(working.stages.drows, drows);
  }

  template <class D, class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& rows, const Tape<D>& tape, const ConstMatrixRef<Scalar>& dout,
                    Gradient& gradient, Memory<D>& working, InputGradient inputs) const {
    constexpr const char* kFunction = "moe::StagedExpert::backward";
    moe::detail::require_shape(kFunction, "rows", rows, tape.num_rows, derived().input_dim());
    moe::detail::require_shape(kFunction, "dout", dout, tape.num_rows, derived().output_dim());
    require_pass(rows.rows(), tape, gradient);
    if (static_cast<const void*>(&gradient) == &derived())
      fail(kFunction, ": gradient is the expert itself, expected one of its own (zeros_like)");
    kernel::gather<Scalar>(
        dout, dout.rows(), row_width<D>(derived()), [](Index r) { return r; }, working.out);
    const Index offset[] = {0, rows.rows()};
    backward_stages<D>(staged_rows<D>(rows, offset), tape.stages, working.stages, working.out, for_any_row(gradient),
                       inputs);
  }

  /// One group, `offset`, through this expert.
  template <class D>
  auto staged_rows(const ConstMatrixRef<Scalar>& rows, const Index* offset) const {
    const auto self = for_any_row<const D>(derived());
    return StagedRows<D, decltype(self)>{{offset, 1}, kernel::RowSource<Scalar>::from(rows), self, widths<D>()};
  }

  template <class D, class... MaybeTape>
  void run(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, MaybeTape&... tape) const {
    moe::detail::require_shape("moe::StagedExpert::forward", "rows", rows, rows.rows(), derived().input_dim());
    moe::detail::require_shape("moe::StagedExpert::forward", "out", out, rows.rows(), derived().output_dim());
    const Index offset[] = {0, rows.rows()};
    const auto of = staged_rows<D>(rows, offset);
    Memory<D>& working = memory<D>(context);
    working.out.resize(rows.rows(), row_width<D>(derived()));
    forward_stages(of, working.stages, working.out, tape...);
    detail::copy_rows<Scalar>(working.out, out);
  }
};

}  // namespace moe::inline MOE_ABI
