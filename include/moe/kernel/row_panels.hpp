// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/kernel/grouped_gemm.hpp"

namespace moe::inline MOE_ABI::kernel {

/// Groups of rows as what other rows are multiplied by: a copy of them in panels, so that products of activations run
/// through the kernel of the weights, in its order of summation. Packing is a small part of multiplying with more than
/// a few rows. Working memory, which grows and never shrinks; one per thread.
template <class S>
class RowPanels {
 public:
  /// For A B, where B is the rows of a group, [rows of the group, cols], and row(r) is where row r lies. A has a column
  /// per row.
  template <class Row>
  void pack(const RowGroups& groups, Index cols, const Row& row) {
    const auto fill = [&](Index first_row, Index rows, Index panel, S* to) {
      const Index first = panel * kWidth, count = std::min(kWidth, cols - first);
      for (Index i = 0; i < rows; ++i) {
        std::copy_n(row(first_row + i) + first, count, to + i * kWidth);
        std::fill_n(to + i * kWidth + count, kWidth - count, S{0});
      }
    };
    pack_panels(
        groups, [&](Index g) { return groups.size(g); }, [&](Index) { return cols; }, fill);
  }
  /// For A B^T: A has a column per column.
  template <class Row>
  void pack_transposed(const RowGroups& groups, Index cols, const Row& row) {
    const auto fill = [&](Index first_row, Index rows, Index panel, S* to) {
      const Index first = panel * kWidth, count = std::min(kWidth, rows - first);
      for (Index c = 0; c < kWidth; ++c) {
        const S* const from = c < count ? row(first_row + first + c) : nullptr;
        for (Index i = 0; i < cols; ++i) to[i * kWidth + c] = from ? from[i] : S{0};
      }
    };
    pack_panels(
        groups, [&](Index) { return cols; }, [&](Index g) { return groups.size(g); }, fill);
  }

  PanelSource<S> source(Index g) const { return source_[static_cast<std::size_t>(g)]; }

 private:
  static constexpr Index kWidth = kPanelWidth<S>;

  /// Lays out a matrix per group, and calls fill(first row, rows, panel, S* to) for each of its panels.
  template <class Inputs, class Outputs, class Fill>
  void pack_panels(const RowGroups& groups, const Inputs& inputs, const Outputs& outputs, const Fill& fill) {
    source_.clear();
    first_panel_.assign(1, 0);
    Index size = 0;
    for (Index g = 0; g < groups.count; ++g) {
      const Index panels = panels_of<S>(outputs(g)), stride = inputs(g) * kWidth;
      source_.push_back({.inputs = inputs(g), .panels = panels, .stride = stride, .data = nullptr});
      first_panel_.push_back(first_panel_.back() + panels);
      size += panels * stride;
    }
    if (size > data_.size()) data_ = AlignedBuffer<S>::uninitialised(size);
    const S* next = data_.data();
    for (PanelSource<S>& source : source_) {
      source.data = next;
      next += source.panels * source.stride;
    }
    parallel_for(first_panel_.back(), [&](Index task, Index) {
      const Index g = static_cast<Index>(std::ranges::upper_bound(first_panel_, task) - first_panel_.begin()) - 1;
      const Index panel = task - first_panel_[static_cast<std::size_t>(g)];
      S* const to = data_.data() + (source(g).panel(panel) - data_.data());
      fill(groups.begin(g), groups.size(g), panel, to);
    });
  }

  AlignedBuffer<S> data_;
  std::vector<PanelSource<S>> source_;
  std::vector<Index> first_panel_;
};

/// to(row)[c] = sum_i a(row)[i] b(g)[i, c] for the rows of every group g, for the first `cols` columns; each sum from
/// +0, one fused multiply-add per i, ascending, whatever the number of threads. 2 * rows * inputs * cols operations.
template <class S, class To>
void multiply_by_rows(const RowGroups& groups, const RowSource<S>& a, const RowPanels<S>& b, Index cols,
                      TaskList& tasks, const To& to) {
  grouped_multiply<S>(
      groups, a, [&](Index g) { return b.source(g); }, tasks,
      [&](Index, Index row, int count, Index panel, const S* sums) {
        constexpr Index kWidth = kPanelWidth<S>;
        const Index first = panel * kWidth;
        for (int i = 0; i < count; ++i)
          std::copy_n(sums + i * kWidth, std::min(kWidth, cols - first), to(row + i) + first);
      });
}

}  // namespace moe::inline MOE_ABI::kernel
