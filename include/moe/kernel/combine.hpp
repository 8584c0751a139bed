// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "moe/kernel/dispatch.hpp"

// Combine gathers: each token's row is summed by one thread in slot order, so no atomics, and the same bits always.
namespace moe::inline MOE_ABI::kernel {

namespace detail {

/// out[t] = sum over the kept slots of t of weight(assignment) * rows[row], each a fused multiply-add from +0.
template <class S, class Weight>
void combine_weighted(const RowBuffer<S>& rows, const DispatchPlan& plan, const Routing<S>& routing,
                      const Weight& weight, MatrixRef<S> out) {
  const auto row_of = plan.row_of_assignment();
  parallel_ranges(routing.num_tokens(), kRowsPerTask, [&](Index first, Index last, Index) {
    for (Index t = first; t < last; ++t) {
      const auto sum = [&](Index column) {
        simd::Batch<S> total(S{0});
        for (Index a = routing.begin(t); a < routing.end(t); ++a) {
          const Index row = row_of[static_cast<std::size_t>(a)];
          if (row < 0) continue;
          total = simd::fma(simd::Batch<S>(weight(a)), simd::load(rows.row(row) + column), total);
        }
        return total;
      };
      S* to = out.data() + t * out.outerStride();
      simd::for_each<S>(
          out.cols(), [&](Index c) { simd::store(to + c, sum(c)); },
          [&](Index c, Index count) { simd::store_partial(to + c, sum(c), count); });
    }
  });
}

}  // namespace detail

/// out[t] = sum_slots weight * expert_out[row], in slot order; a token without kept assignments gets zeros.
///   expert_out  [plan.num_rows(), model_dim], unweighted      out  [num_tokens, model_dim], overwritten
/// Memory-bound; no allocation.
template <class S>
void combine(const RowBuffer<S>& expert_out, const DispatchPlan& plan, const Routing<S>& routing,
             std::type_identity_t<MatrixRef<S>> out) {
  const auto weights = routing.weights();
  detail::combine_weighted(expert_out, plan, routing, [&](Index a) { return weights[static_cast<std::size_t>(a)]; },
                           out);
}

/// out[t] = sum_slots rows[row]: the gradient of dispatch.
template <class S>
void combine_unweighted(const RowBuffer<S>& rows, const DispatchPlan& plan, const Routing<S>& routing,
                        std::type_identity_t<MatrixRef<S>> out) {
  detail::combine_weighted(rows, plan, routing, [](Index) { return S{1}; }, out);
}

/// Gradient of combine: dweight[a] = <dout[t], expert_out[row]> (0 where dropped), drows[row] = weight * dout[t].
/// drows is resized to [plan.num_rows(), width] with width >= model_dim; columns from model_dim on are set to zero.
template <class S>
void combine_backward(const MatrixView<S>& dout, const RowBuffer<S>& expert_out, const DispatchPlan& plan,
                      const Routing<S>& routing, Index width, std::span<S> dweight, RowBuffer<S>& drows) {
  drows.resize(plan.num_rows(), width);
  const auto row_of = plan.row_of_assignment();
  const auto weights = routing.weights();
  const auto one_slot = [&](const S* gradient, Index a) {
    const Index row = row_of[static_cast<std::size_t>(a)];
    if (row < 0) return S{0};
    const S* y = expert_out.row(row);
    S* dy = drows.row(row);
    const simd::Batch<S> weight(weights[static_cast<std::size_t>(a)]);
    simd::Batch<S> dot(S{0});
    simd::for_each<S>(
        dout.cols(),
        [&](Index c) {
          const auto g = simd::load(gradient + c);
          dot = simd::fma(g, simd::load(y + c), dot);
          simd::store(dy + c, g * weight);
        },
        [&](Index c, Index count) {
          const auto g = simd::load_partial(gradient + c, count, S{0});
          dot = simd::fma(g, simd::load_partial(y + c, count, S{0}), dot);
          simd::store_partial(dy + c, g * weight, count);
        });
    std::fill(dy + dout.cols(), dy + width, S{0});
    return simd::reduce_add(dot);
  };
  parallel_ranges(routing.num_tokens(), kRowsPerTask, [&](Index first, Index last, Index) {
    for (Index t = first; t < last; ++t)
      for (Index a = routing.begin(t); a < routing.end(t); ++a)
        dweight[static_cast<std::size_t>(a)] = one_slot(dout.data() + t * dout.outerStride(), a);
  });
}

}  // namespace moe::inline MOE_ABI::kernel
