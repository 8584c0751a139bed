// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/kernel/grouped_gradient.hpp"
#include "moe/kernel/panel_matrix.hpp"

// Products with matrices of few columns, as low-rank updates scale * B A of weights [outputs, inputs] have them: A^T is
// a PanelMatrix [inputs, rank] and B one [outputs, rank], so that a rank of 8 is not padded to the width of a panel,
// and panel p of either is [rank, width] for the columns [p * width, ...) of what it is multiplied with.
namespace moe::inline MOE_ABI {

/// Which factor of their updates all experts of a pool have in common.
enum class SharedFactor { Neither, A, B };

namespace detail {

/// Whether an update is one of a matrix of these sizes, or of none.
template <class Update, class Weight>
bool is_update_of(const Update& update, const Weight& weight) {
  return update.empty() ? update.b.inputs() == 0
                        : update.a.outputs() == weight.inputs() && update.a.order() == PanelOrder::Plain &&
                              update.b.outputs() == weight.outputs() && update.b.order() == weight.order() &&
                              update.b.inputs() == update.rank();
}

}  // namespace detail

/// What is added to a weight W [outputs, inputs]: W + scale * B A (Hu et al., "LoRA", arXiv:2106.09685). A plain value;
/// without a rank it adds nothing.
template <class Codec>
struct LowRankUpdate {
  PanelMatrix<Codec> a;  ///< A^T [inputs, rank]
  PanelMatrix<Codec> b;  ///< B [outputs, rank], in the order of W
  double scale = 1;      ///< alpha / rank

  Index rank() const { return a.inputs(); }
  bool empty() const { return rank() == 0; }
  static constexpr SharedFactor shared_factor() { return SharedFactor::Neither; }
  bool is_shaped_as(const LowRankUpdate& other) const { return a.is_shaped_as(other.a) && b.is_shaped_as(other.b); }
  /// Whether it is one of a matrix of these sizes, or of none.
  template <class Weight>
  bool is_update_of(const Weight& weight) const {
    return detail::is_update_of(*this, weight);
  }
};

/// The same whose factors lie elsewhere, one of them maybe those of other experts, too. P is a PanelMatrix, or const.
template <class P>
struct LowRankView {
  P& a;
  P& b;
  double scale;
  SharedFactor shared;

  Index rank() const { return a.inputs(); }
  bool empty() const { return rank() == 0; }
  SharedFactor shared_factor() const { return shared; }
  template <class Other>
  bool is_shaped_as(const LowRankView<Other>& other) const {
    return a.is_shaped_as(other.a) && b.is_shaped_as(other.b);
  }
  template <class Weight>
  bool is_update_of(const Weight& weight) const {
    return detail::is_update_of(*this, weight);
  }
};

namespace kernel {

/// sums[r][c] += sum_j coefficients[r][j] * panel[j][c] for `count` rows of a panel, `stride` apart. What adds up to 0
/// is not added, so that an update of zeros leaves the bits of sums, those of -0, too, for rows whose coefficients are
/// finite.
template <class S>
void add_low_rank(const S* coefficients, Index stride, Index count, const S* panel, Index rank, S* sums) {
  constexpr Index kLanes = simd::kLanes<S>, kWidth = kPanelWidth<S>;
  alignas(kCacheLine) S added[kTileRows * kWidth];
  for (Index first = 0; first < count; first += kTileRows) {
    const Index rows = std::min<Index>(kTileRows, count - first);
    const S* row[kTileRows];
    for (Index r = 0; r < rows; ++r) row[r] = coefficients + (first + r) * stride;
    with_constant<kTileRows>(static_cast<int>(rows),
                             [&](auto n) { multiply_tile<n, false>(row, panel, rank, ReadAhead<S>{}, added); });
    for (Index i = 0; i < rows * kWidth; i += kLanes) {
      const auto more = simd::load(added + i), sum = simd::load(sums + first * kWidth + i);
      simd::store(sums + first * kWidth + i, simd::select(more == decltype(more)(S{0}), sum, sum + more));
    }
  }
}

namespace detail {

/// out[r][j] = scale * <rows[r], column j of the matrix> for Rows rows and Columns columns from `column` on. Sums lane
/// by lane over ascending panels, then over lanes by halving: the same for a row in every tile.
template <int Rows, int Columns, class S>
[[gnu::noinline]] void project_tile(const S* const* rows, Index width, const PanelSource<S>& matrix, Index column,
                                    S scale, S* const* out) noexcept {
  using Batch = simd::Batch<S>;
  constexpr Index kLanes = simd::kLanes<S>, kWidth = kPanelWidth<S>;
  alignas(kCacheLine) S last[Rows * kWidth];
  Batch sum[Rows][Columns];
  unroll<Rows>([&](auto r) { unroll<Columns>([&](auto c) { sum[r][c] = Batch(S{0}); }); });
  for (Index begin = 0, p = 0; begin < width; begin += kWidth, ++p) {
    const bool whole = width - begin >= kWidth;
    if (!whole)
      for (Index r = 0; r < Rows; ++r)
        std::fill(std::copy(rows[r] + begin, rows[r] + width, last + r * kWidth), last + (r + 1) * kWidth, S{0});
    const S* panel = matrix.panel(p) + column * kWidth;
    unroll<2>([&](auto half) {
      Batch value[Rows];
      unroll<Rows>(
          [&](auto r) { value[r] = simd::load((whole ? rows[r] + begin : last + r * kWidth) + half * kLanes); });
      unroll<Columns>([&](auto c) {
        const Batch weight = simd::load(panel + c * kWidth + half * kLanes);
        unroll<Rows>([&](auto r) { sum[r][c] = simd::fma(value[r], weight, sum[r][c]); });
      });
    });
  }
  unroll<Rows>(
      [&](auto r) { unroll<Columns>([&](auto c) { out[r][column + c] = scale * simd::reduce_add(sum[r][c]); }); });
}

template <int Rows, class S>
void project_columns(const S* const* rows, Index width, const PanelSource<S>& matrix, S scale, S* const* out) {
  Index column = 0;
  for (; column + 4 <= matrix.inputs; column += 4) project_tile<Rows, 4, S>(rows, width, matrix, column, scale, out);
  for (; column < matrix.inputs; ++column) project_tile<Rows, 1, S>(rows, width, matrix, column, scale, out);
}

}  // namespace detail

/// Rows that one share of project_rows() takes, and one tile of it.
inline constexpr Index kProjectedRows = 4;

/// out[r - origin][j] = scale(g) * sum_c in[r][c] * matrix(g)(c, j) for every row r of every group, where matrix(g) is
/// a PanelMatrix and the first width(g) scalars of a row count; rows of groups with an empty matrix are left as they
/// are. 2 * num_rows * width * rank operations; rows in parallel; no allocation.
template <class S, class MatrixOf, class WidthOf, class ScaleOf>
void project_rows(const RowGroups& groups, const RowSource<S>& in, const MatrixOf& matrix, const WidthOf& width,
                  const ScaleOf& scale, RowBuffer<S>& out) {
  const Index origin = groups.begin(0);
  parallel_ranges(groups.num_rows(), kProjectedRows, [&](Index begin, Index end, Index) {
    const Index* const offsets = groups.offset;
    Index row = origin + begin;
    for (Index g = std::upper_bound(offsets, offsets + groups.count + 1, row) - offsets - 1; row < origin + end; ++g) {
      const Index last = std::min(groups.end(g), origin + end);
      const auto& of_group = matrix(g);
      if (!of_group.empty()) {
        const PanelSource<S> source = of_group.source();
        const Index columns = width(g);
        const auto factor = static_cast<S>(scale(g));
        const auto run = [&](auto count) {
          const S* from[count];
          S* to[count];
          for (Index r = 0; r < count; ++r) {
            from[r] = in.row(row + r);
            to[r] = out.row(row - origin + r);
          }
          detail::project_columns<count, S>(from, columns, source, factor, to);
          row += count;
        };
        while (row + kProjectedRows <= last) run(std::integral_constant<int, kProjectedRows>{});
        while (row < last) run(std::integral_constant<int, 1>{});
      }
      row = std::max(row, last);
    }
  });
}

/// gradient(g)(c, j) += sum_r coefficients[r - origin][j] * rows[r][c] over the rows of every group, ascending, where
/// gradient(g) is a PanelMatrix, maybe an empty one, and the first width(g) scalars of a row count.
/// 2 * num_rows * width * rank operations; panels in parallel; no allocation when warm.
template <class S, class GradientOf, class WidthOf>
void grouped_low_rank_gradient(const RowGroups& groups, const RowSource<S>& rows, const RowBuffer<S>& coefficients,
                               const GradientOf& gradient, const WidthOf& width, GradientScratch<S>& scratch) {
  constexpr Index kWidth = kPanelWidth<S>, kRows = detail::kGradientRows;
  const Index origin = groups.begin(0);
  scratch.reserve(kRows * kWidth);
  scratch.tasks.run(
      groups, [&](Index g) { return gradient(g).panels(); }, [&](Index g) { return gradient(g).inputs(); },
      [&](Index g, Index first, Index last, Index worker) {
        auto& of_group = gradient(g);
        S* const packed = scratch.buffer[static_cast<std::size_t>(worker)].data();
        for (Index p = first; p < last; ++p)
          for (Index r = groups.begin(g); r < groups.end(g); r += kRows) {
            const Index count = std::min(kRows, groups.end(g) - r), columns = std::min(kWidth, width(g) - p * kWidth);
            for (Index j = 0; j < count; ++j) {
              S* const end = std::copy_n(rows.row(r + j) + p * kWidth, columns, packed + j * kWidth);
              std::fill(end, packed + (j + 1) * kWidth, S{0});
            }
            for (Index i = 0; i < of_group.inputs(); i += kTileRows)
              with_constant<kTileRows>(
                  static_cast<int>(std::min<Index>(kTileRows, of_group.inputs() - i)), [&](auto inputs) {
                    S* const panel = of_group.panel(p) + i * kWidth;
                    outer_product_tile<inputs, S>({coefficients.row(r - origin) + i, coefficients.stride()},
                                                  {packed, kWidth}, count, panel, panel);
                  });
          }
      });
}

}  // namespace kernel

}  // namespace moe::inline MOE_ABI
