// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "moe/kernel/combine.hpp"
#include "moe/kernel/combine_backward.hpp"

// Several gates that weigh the same rows. Nothing is added up across tokens: one thread has all rows of a token.
namespace moe::inline MOE_ABI::kernel {

/// The choices of one gate over rows that other gates may have chosen, too. Refers to memory of others.
template <class S>
struct GateRows {
  const Routing<S>* routing;
  std::span<const Index> row;              ///< [num_assignments], in the plan of all gates; -1 where dropped
  std::span<const std::uint8_t> is_first;  ///< [num_assignments], 1 where no gate before it chose the row
};

/// out[t] = [of the first gate of t | of the second | ...], each sum_slots weight * rows[row] in slot order, with zeros
/// behind the last.
///   rows      [num_rows, at least output_dim], unweighted
///   gates_of  span of const Index (Index t): which of `gates` token t goes through
///   out       [num_tokens, a multiple of output_dim], overwritten
/// Memory-bound, but a row is read from the first-level cache by all gates but the first; no allocation.
template <class S, class GatesOf>
void combine_gates(const RowBuffer<S>& rows, std::span<const GateRows<S>> gates, const GatesOf& gates_of,
                   Index output_dim, std::type_identity_t<MatrixRef<S>> out) {
  moe::detail::require_apart("moe::kernel::combine_gates", "out", out, "rows", rows.matrix());
  parallel_ranges(out.rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t) {
      S* to = out.data() + t * out.outerStride();
      S* const end_of_row = to + out.cols();
      for (const Index g : gates_of(t)) {
        const auto& [routing, row, is_first] = gates[static_cast<std::size_t>(g)];
        const std::span<const S> weights = routing->weights();
        detail::combine_token(
            rows, row, 0, [&](Index a) { return weights[static_cast<std::size_t>(a)]; }, routing->begin(t),
            routing->end(t), output_dim, to);
        to += output_dim;
      }
      std::fill(to, end_of_row, S{0});
    }
  });
}

/// Gradient of combine_gates: dweight_of(g)[a] = <dout[t] of gate g, rows[row]>, and drows[row] = sum over gates of
/// weight * dout[t], gates in the order of gates_of(t). drows becomes as large as rows, whose every row some gate has
/// chosen first; its columns from output_dim on are set to zero. Entries of dweight whose choices were dropped, or
/// whose tokens do not go through the gate, are left as they are. Throws std::invalid_argument if drows is rows, or
/// dout lies in it.
template <class S, class GatesOf, class DweightOf>
void combine_gates_backward(const MatrixView<S>& dout, const RowBuffer<S>& rows, std::span<const GateRows<S>> gates,
                            const GatesOf& gates_of, Index output_dim, const DweightOf& dweight_of,
                            RowBuffer<S>& drows) {
  constexpr const char* kFunction = "moe::kernel::combine_gates_backward";
  if (&drows == &rows) fail(kFunction, ": drows is rows, expected memory of its own");
  moe::detail::require_apart(kFunction, "drows", drows.matrix(), "dout", dout);
  drows.resize(rows.rows(), rows.cols());
  parallel_ranges(dout.rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
    for (Index t = begin; t < end; ++t) {
      const S* from = dout.data() + t * dout.outerStride();
      for (const Index g : gates_of(t)) {
        const auto& [routing, row, is_first] = gates[static_cast<std::size_t>(g)];
        const std::span<S> dweight = dweight_of(g);
        for (auto a = static_cast<std::size_t>(routing->begin(t)); a < static_cast<std::size_t>(routing->end(t)); ++a) {
          if (row[a] < 0) continue;
          const S *y = rows.row(row[a]), weight = routing->weights()[a];
          S* drow = drows.row(row[a]);
          if (is_first[a]) {
            std::fill(drow + output_dim, drow + drows.cols(), S{0});
            dweight[a] = detail::scale_and_dot<detail::PutScaled::Store>(from, y, weight, output_dim, drow);
          } else {
            dweight[a] = detail::scale_and_dot<detail::PutScaled::Add>(from, y, weight, output_dim, drow);
          }
        }
        from += output_dim;
      }
    }
  });
}

}  // namespace moe::inline MOE_ABI::kernel
