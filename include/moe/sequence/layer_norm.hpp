// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "moe/core/block_sum.hpp"
#include "moe/core/same_parameters.hpp"
#include "moe/core/simd.hpp"
#include "moe/expert/checks.hpp"
#include "moe/expert/concept.hpp"

namespace moe::inline MOE_ABI {

/// Layer normalisation: y = g o (x - m) / sqrt(v + epsilon) + b with the mean m and variance v (over n, not n - 1) of
/// the row itself; g and b [dim] start as 1 and 0. An expert, as it maps row by row. A row's bits depend on it alone,
/// those of gradients on no number of threads. Immutable in forward, share freely. O(num_rows dim), no allocation when
/// warm. Ba, Kiros & Hinton, "Layer normalization" (arXiv:1607.06450).
template <class S = float>
class LayerNorm {
 public:
  using Scalar = S;
  struct Tape {
    RowBuffer<S> normal;     ///< (x - m) / sqrt(v + epsilon)
    std::vector<S> inverse;  ///< 1 / sqrt(v + epsilon), per row
    RowBuffer<double> partial;
    std::vector<double> sums;  ///< dg, then db
  };

  /// Throws std::invalid_argument for dim < 1 or epsilon not finite and above 0, as an S.
  explicit LayerNorm(Index dim, double epsilon = 1e-5)
      : epsilon_(epsilon),
        scale_(RowVector<S>::Ones(detail::checked_size("moe::LayerNorm", "dim", dim, 1))),
        shift_(RowVector<S>::Zero(dim)) {
    if (!(epsilon > 0 && epsilon <= static_cast<double>(std::numeric_limits<S>::max()) && static_cast<S>(epsilon) > 0))
      fail("moe::LayerNorm: epsilon is ", epsilon, ", expected a finite value above 0 in ", 8 * sizeof(S), " bits");
  }

  Index input_dim() const { return scale_.size(); }
  Index output_dim() const { return scale_.size(); }
  RowVector<S>& scale() { return scale_; }  ///< g
  const RowVector<S>& scale() const { return scale_; }
  RowVector<S>& shift() { return shift_; }  ///< b
  const RowVector<S>& shift() const { return shift_; }

  /// out [num_rows, dim], which may be `rows`. Throws std::invalid_argument on other shapes.
  void forward(const MatrixView<S>& rows, MatrixRef<S> out, const Context& context) const {
    forward(rows, out, context, context.scratch.get<Memory>().tape);
  }
  void forward(const MatrixView<S>& rows, MatrixRef<S> out, const Context&, Tape& tape) const {
    require_vectors("moe::LayerNorm::forward");
    detail::require_shape("moe::LayerNorm::forward", "rows", rows, rows.rows(), input_dim());
    detail::require_shape("moe::LayerNorm::forward", "out", out, rows.rows(), input_dim());
    tape.normal.resize(rows.rows(), input_dim());
    tape.inverse.resize(static_cast<std::size_t>(rows.rows()));
    parallel_ranges(rows.rows(), kRowsPerBlock, nanoseconds(rows.rows()), [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r)
        normalise(rows.row(r).data(), tape.normal.row(r), tape.inverse[static_cast<std::size_t>(r)], out.row(r).data());
    });
  }

  /// Throws std::invalid_argument unless the tape is of so many rows, and the gradient as wide.
  void require_backward(Index num_rows, const Tape& tape, const LayerNorm& gradient) const {
    constexpr const char* kFunction = "moe::LayerNorm::backward";
    require_vectors(kFunction);
    gradient.require_vectors(kFunction);
    detail::require_shape(kFunction, "tape.normal", tape.normal, num_rows, input_dim());
    if (gradient.input_dim() != input_dim())
      fail(kFunction, ": gradient has ", gradient.input_dim(), " columns, expected ", input_dim());
  }
  /// With d = dout o g: drows = (d - mean(d) - normal mean(d o normal)) / sqrt(v + epsilon). `drows` may be `dout`.
  void backward(const MatrixView<S>& rows, Tape& tape, const MatrixView<S>& dout, MatrixRef<S> drows,
                LayerNorm& gradient, const Context&) const {
    detail::require_backward_rows("moe::LayerNorm::backward", *this, rows, dout, drows);
    require_backward(rows.rows(), tape, gradient);
    const Index n = input_dim();
    tape.sums.assign(static_cast<std::size_t>(2 * n), 0.0);
    detail::add_blocks({rows.rows(), kRowsPerBlock}, tape.sums, tape.partial,
                       [&](Index begin, Index end, double* sum, Index) {
                         for (Index r = begin; r < end; ++r) {
                           const S* d = dout.row(r).data();
                           const S* normal = tape.normal.row(r);
                           for (Index c = 0; c < n; ++c) {
                             sum[c] += static_cast<double>(d[c]) * static_cast<double>(normal[c]);
                             sum[n + c] += static_cast<double>(d[c]);
                           }
                           backward_row(d, normal, tape.inverse[static_cast<std::size_t>(r)], drows.row(r).data());
                         }
                       });
    for (Index c = 0; c < n; ++c) {
      gradient.scale_(c) += static_cast<S>(tape.sums[static_cast<std::size_t>(c)]);
      gradient.shift_(c) += static_cast<S>(tape.sums[static_cast<std::size_t>(n + c)]);
    }
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("scale", self.scale_...);
    f("shift", self.shift_...);
  }

 private:
  using V = simd::Batch<S>;
  static constexpr Index kRowsPerBlock = 64;  // decides the bits of gradients
  struct Memory {
    Tape tape;
  };

  Index nanoseconds(Index num_rows) const { return num_rows * input_dim() / 2; }

  void require_vectors(const char* function) const {
    if (shift_.size() != scale_.size())
      fail(function, ": shift has ", shift_.size(), " entries, expected ", scale_.size(), " as scale");
  }

  /// Sum of term(load), where load(pointer) gives lanes of an array of n, and zeros behind it.
  template <class Term>
  S sum(const Term& term) const {
    V total(S{0});
    simd::for_each<S>(
        input_dim(), [&](Index i) { total = total + term([i](const S* from) { return simd::load(from + i); }); },
        [&](Index i, Index count) {
          const V some = term([=](const S* from) { return simd::load_partial(from + i, count, S{0}); });
          alignas(64) std::array<S, static_cast<std::size_t>(simd::kLanes<S>)> mask{};
          std::fill_n(mask.begin(), count, S{1});
          total = total + some * simd::load(mask.data());
        });
    return simd::reduce_add(total);
  }

  void normalise(const S* x, S* normal, S& inverse, S* out) const {
    const Index n = input_dim();
    const S mean = sum([&](const auto& load) { return load(x); }) / static_cast<S>(n);
    const S variance = sum([&](const auto& load) {
                         const V off = load(x) - V(mean);
                         return off * off;
                       }) /
                       static_cast<S>(n);
    inverse = S{1} / std::sqrt(variance + static_cast<S>(epsilon_));
    for (Index c = 0; c < n; ++c) {
      normal[c] = (x[c] - mean) * inverse;
      out[c] = simd::fma(scale_(c), normal[c], shift_(c));
    }
  }

  void backward_row(const S* dout, const S* normal, S inverse, S* dx) const {
    const Index n = input_dim();
    const S* g = scale_.data();
    const S mean = sum([&](const auto& load) { return load(dout) * load(g); }) / static_cast<S>(n);
    const S slope = sum([&](const auto& load) { return load(dout) * load(g) * load(normal); }) / static_cast<S>(n);
    for (Index c = 0; c < n; ++c) dx[c] = simd::fma(-slope, normal[c], simd::fma(dout[c], g[c], -mean)) * inverse;
  }

  double epsilon_;
  RowVector<S> scale_, shift_;
};

static_assert(DifferentiableExpert<LayerNorm<float>> && DifferentiableExpert<LayerNorm<double>>);

}  // namespace moe::inline MOE_ABI
