// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/core/parallel.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/kernel/tile.hpp"

// Products of many groups of rows, each with a weight matrix of its own: expert e has rows [begin(e), end(e)). Work is
// handed out as (group, panels), so that each weight panel is read by one thread only, with one barrier for all groups.
namespace moe::inline MOE_ABI::kernel {

/// Where the rows of a product lie: contiguous, or picked by `index` (the token of each row). Reads in place.
template <class S>
struct RowSource {
  const S* base = nullptr;
  Index stride = 0;
  const Index* index = nullptr;  ///< [num_rows], or null for row r at base + r * stride

  const S* row(Index r) const { return base + (index ? index[r] : r) * stride; }

  static RowSource from(const ConstMatrixRef<S>& rows, const Index* index = nullptr) {
    return {rows.data(), rows.outerStride(), index};
  }
  static RowSource from(const RowBuffer<S>& rows) { return {rows.row(0), rows.stride(), nullptr}; }
};

/// Groups of consecutive rows: group g is [offset[g], offset[g + 1]).
struct RowGroups {
  const Index* offset = nullptr;  ///< [count + 1]
  Index count = 0;

  Index begin(Index g) const { return offset[g]; }
  Index size(Index g) const { return offset[g + 1] - offset[g]; }
  Index num_rows() const { return offset[count]; }
};

namespace detail {

/// Calls body(group, first, last) in parallel for blocks of at most `block` items of every non-empty group, where
/// items(g) counts what group g has of them (panels, inputs).
template <class Items, class Body>
void parallel_blocks(const RowGroups& groups, Index most_items, Index block, const Items& items, const Body& body) {
  const Index blocks = (most_items + block - 1) / block;
  parallel_for(groups.count * blocks, [&](Index task, Index) {
    const Index group = task / blocks, first = task % blocks * block;
    const Index last = std::min(items(group), first + block);
    if (first < last && groups.size(group) > 0) body(group, first, last);
  });
}

/// Largest items(g) over the groups.
template <class Items>
Index most(const RowGroups& groups, const Items& items) {
  Index result = 0;
  for (Index g = 0; g < groups.count; ++g) result = std::max(result, items(g));
  return result;
}

}  // namespace detail

/// Sets the columns of every row from inputs(g) on to zero, g being the row's group.
template <class S, class Inputs>
void clear_columns(RowBuffer<S>& rows, const RowGroups& groups, const Inputs& inputs) {
  for (Index g = 0; g < groups.count; ++g)
    for (Index r = groups.begin(g); r < groups.begin(g) + groups.size(g); ++r)
      std::fill(rows.row(r) + inputs(g), rows.row(r) + rows.cols(), S{0});
}

/// in x W^T for the rows of group g and panels [first, last): hands each row's sums of one panel to
///   finish(g, row, panel, S* sums)    sums [2 * lanes], aligned, may be overwritten
/// which adds the bias, applies the activation and stores.
template <class S, class Matrix, class Finish>
void multiply_group(const RowGroups& groups, Index g, Index first, Index last, const RowSource<S>& in,
                    const Matrix& matrix, const Finish& finish) {
  constexpr Index kWidth = 2 * simd::kLanes<S>;
  alignas(64) S sums[std::max(kTileRows, kTilePanels) * kWidth];
  const S* rows[kTileRows];
  const Index end = groups.begin(g) + groups.size(g);
  for (Index r = groups.begin(g); r < end; r += kTileRows) {
    const int height = static_cast<int>(std::min<Index>(kTileRows, end - r));
    for (int i = 0; i < height; ++i) rows[i] = in.row(r + i);
    for (Index p = first; p < last;) {
      const int width = p + panels_at_once(height) <= last ? panels_at_once(height) : 1;
      with_constant<kTileRows>(height, [&](auto h) {
        const auto multiply = width == 1 ? &multiply_tile<h, 1, S> : &multiply_tile<h, panels_at_once(h), S>;
        multiply(rows, matrix.panel(p), matrix.stride(), matrix.inputs(), sums);
      });
      for (int i = 0; i < height; ++i)
        for (int q = 0; q < width; ++q) finish(g, r + i, p + q, sums + (i * width + q) * kWidth);
      p += width;
    }
  }
}

/// multiply_group for every group, where weight(g) is the PanelMatrix of group g.
template <class S, class Weight, class Finish>
void grouped_multiply(const RowGroups& groups, const RowSource<S>& in, const Weight& weight, const Finish& finish) {
  const auto panels = [&](Index g) { return weight(g).panels(); };
  detail::parallel_blocks(groups, detail::most(groups, panels), kTilePanels, panels,
                          [&](Index g, Index first, Index last) {
                            multiply_group<S>(groups, g, first, last, in, weight(g), finish);
                          });
}

/// din = dout x W(g) for every group: hands each result to finish(row, input, value). dout rows hold W(g).width()
/// scalars, whose padding must be finite.
template <class S, class Weight, class Finish>
void grouped_input_gradient(const RowGroups& groups, const RowSource<S>& dout, const Weight& weight,
                            const Finish& finish) {
  constexpr int kRows = 3, kInputs = 4;  // 12 accumulators, 4 weights or 3 rows in flight
  constexpr Index kWidth = 2 * simd::kLanes<S>, kBlock = 64;
  const auto inputs = [&](Index g) { return weight(g).inputs(); };
  detail::parallel_blocks(
      groups, detail::most(groups, inputs), kBlock, inputs, [&](Index g, Index first, Index last) {
        const auto& matrix = weight(g);
        const S* rows[kRows];
        const Index end = groups.begin(g) + groups.size(g);
        for (Index r = groups.begin(g); r < end; r += kRows) {
          const int height = static_cast<int>(std::min<Index>(kRows, end - r));
          for (int j = 0; j < height; ++j) rows[j] = dout.row(r + j);
          const auto run = [&]<int Inputs>(Index i, std::integral_constant<int, Inputs>) {
            S out[kRows][Inputs];
            with_constant<kRows>(height, [&](auto h) {
              transposed_tile<h, Inputs>(rows, matrix.panel(0) + i * kWidth, matrix.stride(), matrix.panels(), out);
            });
            for (int j = 0; j < height; ++j)
              for (int k = 0; k < Inputs; ++k) finish(r + j, i + k, out[j][k]);
          };
          const Index body = first + (last - first) / kInputs * kInputs;
          for (Index i = first; i < body; i += kInputs) run(i, std::integral_constant<int, kInputs>{});
          for (Index i = body; i < last; ++i) run(i, std::integral_constant<int, 1>{});
        }
      });
}

/// gradient(g) += in^T x dout for every group, and bias(g) += column sums of dout where bias(g) is not empty; rows in
/// ascending order. dout rows hold gradient(g).width() scalars, zero in the padding (which keeps the panels' zero).
template <class S, class Gradient, class Bias>
void grouped_weight_gradient(const RowGroups& groups, const RowSource<S>& in, const RowSource<S>& dout,
                             const Gradient& gradient, const Bias& bias) {
  constexpr Index kWidth = 2 * simd::kLanes<S>;
  const auto panels = [&](Index g) { return gradient(g).panels(); };
  const auto one = [](Index) {
    static constexpr S kOne = 1;
    return &kOne;
  };
  detail::parallel_blocks(groups, detail::most(groups, panels), 1, panels, [&](Index g, Index p, Index) {
    auto& matrix = gradient(g);
    const Index begin = groups.begin(g), rows = groups.size(g);
    const auto columns = [&](Index r) { return dout.row(begin + r) + p * kWidth; };
    for (Index i = 0; i < matrix.inputs(); i += kTileRows) {
      const int height = static_cast<int>(std::min<Index>(kTileRows, matrix.inputs() - i));
      const auto values = [&](Index r) { return in.row(begin + r) + i; };
      with_constant<kTileRows>(height, [&](auto h) {
        outer_product_tile<h>(rows, values, columns, matrix.panel(p) + i * kWidth);
      });
    }
    if (!bias(g).empty()) outer_product_tile<1>(rows, one, columns, bias(g).panel(p));
  });
}

}  // namespace moe::inline MOE_ABI::kernel
