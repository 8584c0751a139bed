// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <utility>

#include "moe/core/aligned.hpp"
#include "moe/core/overlap.hpp"
#include "moe/core/part_of_gradient.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/tape.hpp"
#include "moe/expert/checks.hpp"

namespace moe::inline MOE_ABI {

/// An expert that scales and shifts the features of its rows by what another makes of them:
///   y = gamma(z) o z + beta(z),   [gamma(z), beta(z)] = maker(z)
/// The maker gives twice as many columns as it reads: Film<Linear> is the full modulation (2 d^2 parameters), and with
/// BasicMlp<F32, Identity> of r hidden units it has rank r (3 d r). Output biases of 1 in the first half and zeros
/// elsewhere leave rows as they are. Immutable in forward, share freely; row by row if the maker is. No allocation when
/// warm. Perez et al., "FiLM" (arXiv:1709.07871); as experts of a mixture: see FilmExperts.
template <class M>
class Film {
  static_assert(Expert<M>, "moe::Film: what makes scales and shifts is an Expert (see moe/expert/concept.hpp)");

 public:
  using Scalar = typename M::Scalar;
  static constexpr bool kPerToken = kIsPerToken<M>;
  struct Tape {
    RowBuffer<Scalar> made;   ///< gamma, then beta, of every row
    RowBuffer<Scalar> dmade;  ///< working memory of backward
    detail::TapeOf<M> maker;
  };

  /// Throws std::invalid_argument unless the maker gives two columns for each that it reads.
  explicit Film(M maker) : maker_(std::move(maker)) {
    if (maker_.output_dim() != 2 * maker_.input_dim())
      fail("moe::Film: the maker maps ", maker_.input_dim(), " to ", maker_.output_dim(), ", expected ",
           2 * maker_.input_dim(), " outputs, scales and shifts");
  }

  Index input_dim() const { return maker_.input_dim(); }
  Index output_dim() const { return maker_.input_dim(); }
  M& maker() { return maker_; }
  const M& maker() const { return maker_; }

  /// `out` must not overlap `rows`.
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context) const {
    RowBuffer<Scalar>& made = context.scratch.template get<Made>().rows;
    run(rows, out, made, [&](MatrixRef<Scalar> to) { maker_.forward(rows, to, context); });
  }
  void forward(const MatrixView<Scalar>& rows, MatrixRef<Scalar> out, const Context& context, Tape& tape) const
    requires DifferentiableExpert<M>
  {
    run(rows, out, tape.made, [&](MatrixRef<Scalar> to) { maker_.forward(rows, to, context, tape.maker); });
  }

  /// Throws std::invalid_argument unless tape and gradient are those of an expert of these sizes.
  void require_backward(Index num_rows, const Tape& tape, const Film& gradient) const
    requires DifferentiableExpert<M>
  {
    require_pass(num_rows, tape, gradient);
  }
  void require_backward(Index num_rows, const Tape& tape, NoGradient none) const
    requires SkipsGradient<M>
  {
    require_pass(num_rows, tape, none);
  }
  /// dz = gamma o dout + what goes through the maker. Throws std::invalid_argument as require_backward().
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                Film& gradient, const Context& context) const
    requires DifferentiableExpert<M>
  {
    run_backward(rows, tape, dout, drows, gradient, context);
  }
  void backward(const MatrixView<Scalar>& rows, Tape& tape, const MatrixView<Scalar>& dout, MatrixRef<Scalar> drows,
                NoGradient none, const Context& context) const
    requires SkipsGradient<M>
  {
    run_backward(rows, tape, dout, drows, none, context);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    visit_part(f, "maker", self.maker_...);
  }

 private:
  struct Made {
    RowBuffer<Scalar> rows;
  };

  template <class Make>
  void run(const ConstMatrixRef<Scalar>& rows, MatrixRef<Scalar> out, RowBuffer<Scalar>& made, const Make& make) const {
    constexpr const char* kFunction = "moe::Film::forward";
    detail::require_shape(kFunction, "rows", rows, rows.rows(), input_dim());
    detail::require_shape(kFunction, "out", out, rows.rows(), output_dim());
    detail::require_apart(kFunction, "out", out, "rows", rows);
    made.resize(rows.rows(), 2 * input_dim());
    make(made.matrix());
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < input_dim(); ++c)
        out(r, c) = std::fma(made.row(r)[c], rows(r, c), made.row(r)[input_dim() + c]);
  }

  template <class Gradient>
  void require_pass(Index num_rows, const Tape& tape, const Gradient& gradient) const {
    constexpr const char* kFunction = "moe::Film::backward";
    detail::require_shape(kFunction, "tape.made", tape.made, num_rows, 2 * input_dim());
    detail::require_backward_of(kFunction, "gradient.maker", maker_, num_rows, tape.maker,
                                detail::part_of(gradient, &Film::maker_));
  }

  template <class Gradient>
  void run_backward(const ConstMatrixRef<Scalar>& rows, Tape& tape, const ConstMatrixRef<Scalar>& dout,
                    MatrixRef<Scalar> drows, Gradient& gradient, const Context& context) const {
    constexpr const char* kFunction = "moe::Film::backward";
    detail::require_backward_rows(kFunction, *this, rows, dout, drows);
    require_pass(rows.rows(), tape, gradient);
    tape.dmade.resize(rows.rows(), 2 * input_dim());
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < input_dim(); ++c) {
        tape.dmade.row(r)[c] = dout(r, c) * rows(r, c);
        tape.dmade.row(r)[input_dim() + c] = dout(r, c);
      }
    maker_.backward(rows, tape.maker, tape.dmade, drows, detail::part_of(gradient, &Film::maker_), context);
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < input_dim(); ++c) drows(r, c) = std::fma(tape.made.row(r)[c], dout(r, c), drows(r, c));
  }

  M maker_;
};

}  // namespace moe::inline MOE_ABI
