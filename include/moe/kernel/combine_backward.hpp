// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>

#include "moe/core/unroll.hpp"
#include "moe/kernel/dispatch.hpp"

namespace moe::inline MOE_ABI::kernel {

namespace detail {

/// Accumulators of a dot product: one would wait for itself. How they share the columns is a function of their number,
/// so the bits of a row depend on nothing else.
inline constexpr int kDotRegisters = 4;

/// How weight * gradient gets to its row: over what is there, past the caches, or on top of it.
enum class PutScaled { Store, Stream, Add };

/// scaled = weight * gradient, or += of it, and returns <gradient, y>; `scaled` starts a row of a RowBuffer.
template <PutScaled kPut, class S>
S scale_and_dot(const S* gradient, const S* y, S weight, Index cols, S* scaled) {
  using V = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kBlock = kDotRegisters * kLanes;
  const V factor(weight);
  V dot[kDotRegisters];
  simd::unroll<kDotRegisters>([&](auto i) { dot[i] = V(S{0}); });
  const auto step = [&](Index c, V& sum) {
    const V g = simd::load(gradient + c);
    sum = simd::fma(g, simd::load(y + c), sum);
    if constexpr (kPut == PutScaled::Add)
      simd::store(scaled + c, simd::fma(g, factor, simd::load(scaled + c)));
    else
      put<kPut == PutScaled::Stream>(scaled + c, g * factor);
  };
  const Index blocks = cols - cols % kBlock, body = cols - cols % kLanes;
  for (Index c = 0; c < blocks; c += kBlock) simd::unroll<kDotRegisters>([&](auto i) { step(c + i * kLanes, dot[i]); });
  for (Index c = blocks; c < body; c += kLanes) step(c, dot[0]);
  if (const Index rest = cols - body; rest > 0) {
    const V g = simd::load_partial(gradient + body, rest, S{0});
    dot[1] = simd::fma(g, simd::load_partial(y + body, rest, S{0}), dot[1]);
    if constexpr (kPut == PutScaled::Add)
      simd::store_partial(scaled + body, simd::fma(g, factor, simd::load_partial(scaled + body, rest, S{0})), rest);
    else
      simd::store_partial(scaled + body, g * factor, rest);
  }
  return simd::reduce_add((dot[0] + dot[1]) + (dot[2] + dot[3]));
}

template <bool kStream, class S>
void combine_backward(const ConstMatrixRef<S>& dout, const RowBuffer<S>& rows, const DispatchPlan& plan,
                      const Routing<S>& routing, std::span<S> dweight, RowBuffer<S>& drows) {
  const auto row_of = plan.row_of_assignment();
  const auto weights = routing.weights();
  constexpr PutScaled kPut = kStream ? PutScaled::Stream : PutScaled::Store;
  const auto one_slot = [&](const S* gradient, std::size_t a) {
    const Index row = row_of[a];
    if (row < 0) return S{0};
    S* drow = drows.row(row);
    std::fill(drow + dout.cols(), drow + drows.cols(), S{0});
    return scale_and_dot<kPut>(gradient, rows.row(row), weights[a], dout.cols(), drow);
  };
  parallel_ranges(routing.num_tokens(), kRowsPerTask, [&](Index first, Index last, Index) {
    for (Index t = first; t < last; ++t)
      for (auto a = static_cast<std::size_t>(routing.begin(t)); a < static_cast<std::size_t>(routing.end(t)); ++a)
        dweight[a] = one_slot(dout.data() + t * dout.outerStride(), a);
    if constexpr (kStream) simd::finish_streaming();
  });
}

}  // namespace detail

/// Gradient of combine: dweight[a] = <dout[t], rows[row]> (0 where dropped), drows[row] = weight * dout[t].
/// drows is resized to [plan.num_rows(), width] with width >= output_dim; columns from output_dim on are set to zero.
/// Throws std::invalid_argument if drows is rows, or dout lies in it.
template <class S>
void combine_backward(const MatrixView<S>& dout, const RowBuffer<S>& rows, const DispatchPlan& plan,
                      const Routing<S>& routing, Index width, std::span<S> dweight, RowBuffer<S>& drows) {
  constexpr const char* kFunction = "moe::kernel::combine_backward";
  if (&drows == &rows) fail(kFunction, ": drows is rows, expected memory of its own");
  moe::detail::require_apart(kFunction, "drows", drows.matrix(), "dout", dout);
  drows.resize(plan.num_rows(), width);
  if (worth_streaming<S>(plan.num_rows(), width))
    detail::combine_backward<true>(dout, rows, plan, routing, dweight, drows);
  else
    detail::combine_backward<false>(dout, rows, plan, routing, dweight, drows);
}

}  // namespace moe::inline MOE_ABI::kernel
