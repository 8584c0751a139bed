// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <span>

#include "moe/core/overlap.hpp"
#include "moe/core/unroll.hpp"
#include "moe/kernel/combine_backward.hpp"
#include "moe/kernel/dispatch.hpp"
#include "moe/routing/plan_view.hpp"

// Combine gathers: each token's row is summed by one thread in slot order, so no atomics, and the same bits always.
namespace moe::inline MOE_ABI::kernel {

namespace detail {

/// Registers of columns that are summed at once: the addresses and weights of the slots are looked up once for all of
/// them, and their sums hide the latency of each other. With 4 (8, 16) of them a sum of 8 slots reads 35 (44, 43) GB/s
/// from the last-level cache, 16 without this blocking (Zen 5, AVX2).
inline constexpr int kCombineRegisters = 8;

/// Rows and weights of some kept slots of a token, in slot order.
template <class S>
struct Slots {
  static constexpr std::size_t kMost = 32;

  /// Takes assignments from `a` on, and returns the first that is left. `rows` holds the rows of the plan from `first`
  /// on.
  template <class Weight>
  Index collect(const RowBuffer<S>& rows, std::span<const Index> row_of, Index first, const Weight& weight_of, Index a,
                Index end) {
    const auto num_rows = static_cast<std::size_t>(rows.rows());
    for (count = 0; a < end && count < kMost; ++a) {
      const Index from = row_of[static_cast<std::size_t>(a)] - first;
      if (static_cast<std::size_t>(from) >= num_rows) continue;  // dropped, or of another part of the plan
      row[count] = rows.row(from);
      weight[count++] = weight_of(a);
    }
    return a;
  }

  /// total[i] = fma(weight, row, total[i]) over the slots, for Registers registers from a column on.
  template <int Registers>
  void add(Index column, simd::Batch<S>* total) const {
    for (std::size_t s = 0; s < count; ++s) {
      const simd::Batch<S> factor(weight[s]);
      const S* from = row[s] + column;
      simd::unroll<Registers>(
          [&](auto i) { total[i] = simd::fma(factor, simd::load(from + i * simd::kLanes<S>), total[i]); });
    }
  }

  std::array<const S*, kMost> row;
  std::array<S, kMost> weight;
  std::size_t count = 0;
};

/// to[c] = the sum over the slots, for whole registers from `column` on; on top of what is there unless it is the
/// `first` part. Returns the first column that is left.
template <int Registers, class S>
Index sum_columns(const Slots<S>& kept, bool first, Index column, Index body, S* to) {
  constexpr Index kLanes = simd::kLanes<S>;
  for (; column <= body - Registers * kLanes; column += Registers * kLanes) {
    simd::Batch<S> total[Registers];
    simd::unroll<Registers>(
        [&](auto i) { total[i] = first ? simd::Batch<S>(S{0}) : simd::load(to + column + i * kLanes); });
    kept.template add<Registers>(column, total);
    simd::unroll<Registers>([&](auto i) { simd::store(to + column + i * kLanes, total[i]); });
  }
  if constexpr (Registers > 1) column = sum_columns<Registers / 2>(kept, first, column, body, to);
  return column;
}

template <class S>
void sum_row(const Slots<S>& kept, bool first, Index cols, S* to) {
  const Index rest = cols % simd::kLanes<S>, body = sum_columns<kCombineRegisters>(kept, first, 0, cols - rest, to);
  if (rest == 0) return;
  simd::Batch<S> total = first ? simd::Batch<S>(S{0}) : simd::load_partial(to + body, rest, S{0});
  kept.template add<1>(body, &total);  // the rows of a buffer are padded
  simd::store_partial(to + body, total, rest);
}

/// to[c] = sum over the kept slots among assignments [a, end) of weight(assignment) * rows[row], each a fused
/// multiply-add from +0; `rows` holds the rows of the plan from `first_row` on.
template <class S, class Weight>
void combine_token(const RowBuffer<S>& rows, std::span<const Index> row_of, Index first_row, const Weight& weight,
                   Index a, Index end, Index cols, S* to) {
  Slots<S> kept;
  bool first = true;
  do {
    a = kept.collect(rows, row_of, first_row, weight, a, end);
    sum_row(kept, first, cols, to);
    first = false;
  } while (a < end);
}

template <class S, class Weight>
void combine_weighted(const RowBuffer<S>& rows, const DispatchPlan& plan, Index first_row, const Weight& weight,
                      MatrixRef<S> out) {
  moe::detail::require_apart("moe::kernel::combine", "out", out, "rows", rows.matrix());
  const auto row_of = plan.row_of_assignment();
  const Index scalars = plan.num_rows() * out.cols();  // some 16 of them a nanosecond where they are in caches
  parallel_ranges(plan.num_tokens(), kRowsPerTask, scalars / 16, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t)
      combine_token(rows, row_of, first_row, weight, plan.begin(t), plan.end(t), out.cols(),
                    out.data() + t * out.outerStride());
  });
}

}  // namespace detail

/// out[t] = sum_slots weight * rows[row], in slot order; a token without kept assignments gets zeros.
///   rows  [plan.num_rows(), at least output_dim], unweighted      out  [num_tokens, output_dim], overwritten
/// Memory-bound; no allocation. Throws std::invalid_argument if `out` lies in `rows`.
template <class S>
void combine(const RowBuffer<S>& rows, const DispatchPlan& plan, const Routing<S>& routing,
             std::type_identity_t<MatrixRef<S>> out) {
  const auto weights = routing.weights();
  detail::combine_weighted(
      rows, plan, 0, [&](Index a) { return weights[static_cast<std::size_t>(a)]; }, out);
}

/// out[t] = sum over the slots of t in `plan` of rows[row - plan.first_row()]: the gradient of dispatch. Overwrites
/// out [num_tokens, at most the columns of rows].
template <class S>
void combine_unweighted(const RowBuffer<S>& rows, const PlanView& plan, std::type_identity_t<MatrixRef<S>> out) {
  detail::combine_weighted(
      rows, plan.plan(), plan.first_row(), [](Index) { return S{1}; }, out);
}

}  // namespace moe::inline MOE_ABI::kernel
