// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/kernel/panel_source.hpp"
#include "moe/kernel/rows.hpp"

namespace moe::inline MOE_ABI::kernel {

/// The rows of one grouped product in the form that ConvertedProducts read: each is converted once, for all panels and
/// threads. Working memory, which grows and never shrinks; one per thread.
class RowConversion {
 public:
  /// Products of so many rows are to come: these allocate in the first of them at once.
  void expect_rows(Index rows) { expected_ = rows; }

  /// Converts the rows of all groups whose weight(g), a PanelSource, has a ConvertedProduct; in parallel where they are
  /// many.
  template <class S, class Weight>
  void convert(const RowGroups& groups, const RowSource<S>& in, const Weight& weight) {
    if (!lay_out<S>(groups, weight)) return;
    const Index rows = groups.num_rows(), first = groups.begin(0);
    const Index each = std::max<Index>(1, kInputsPerTask / std::max<Index>(1, most_inputs_));
    parallel_for((rows + each - 1) / each, [&](Index task, Index) {
      const Index begin = first + task * each, end = std::min(first + rows, begin + each);
      // The first group that ends behind the row.
      const auto behind = std::upper_bound(groups.offset + 1, groups.offset + groups.count, begin);
      for (Index g = behind - groups.offset - 1; g < groups.count && groups.begin(g) < end; ++g) {
        const Index from = std::max(begin, groups.begin(g)), to = std::min(end, groups.end(g));
        if (from >= to) continue;
        const PanelSource<S> matrix = weight(g);
        const ConvertedProduct<S>* const product = product_of(matrix);
        if (!product) continue;
        for (Index row = from; row < to; ++row)
          product->convert(matrix.matrix, in.row(row), row - groups.begin(g), groups.size(g), place(g));
      }
    });
  }

  /// Of a group that convert() has converted.
  ConvertedRows rows(const RowGroups& groups, Index g) const {
    return {memory_.data() + offset_[static_cast<std::size_t>(g)], groups.begin(g), groups.end(g)};
  }

 private:
  /// Worth some microseconds.
  static constexpr Index kInputsPerTask = Index{1} << 14;

  template <class S>
  static const ConvertedProduct<S>* product_of(const PanelSource<S>& matrix) {
    return matrix.decoder ? matrix.decoder->product : nullptr;
  }
  std::byte* place(Index g) { return memory_.data() + offset_[static_cast<std::size_t>(g)]; }

  /// Finds places for the rows of all groups. False if no group with rows has a ConvertedProduct.
  template <class S, class Weight>
  bool lay_out(const RowGroups& groups, const Weight& weight) {
    constexpr auto kLine = static_cast<Index>(kCacheLine);
    Index most = 0, next = 0;
    bool any = false;
    most_inputs_ = 0;
    for (Index g = 0; g < groups.count; ++g) {
      const PanelSource<S> matrix = weight(g);
      if (const ConvertedProduct<S>* const product = product_of(matrix)) {
        if (most == 0) offset_.resize(static_cast<std::size_t>(groups.count));
        const Index bytes = product->bytes_of_row(matrix.matrix);
        most = std::max(most, bytes);
        if (groups.size(g) == 0) continue;
        any = true;
        offset_[static_cast<std::size_t>(g)] = next;
        next += (groups.size(g) * bytes + kLine - 1) / kLine * kLine;
        most_inputs_ = std::max(most_inputs_, matrix.inputs);
      }
    }
    if (most == 0) return false;
    // As much as any routing of so many rows to these groups may take: the next may go to those that are empty now,
    // whose rows may take more.
    const Index rows = std::max(expected_, groups.num_rows());
    const Index size = rows * (most + kLine) + ConvertedProduct<S>::kRowsBehind * most;
    if (size > memory_.size()) {
      memory_ = {};  // free first
      memory_ = AlignedBuffer<std::byte>::uninitialised(size);
    }
    return any;
  }

  AlignedBuffer<std::byte> memory_;
  std::vector<Index> offset_;  ///< [groups]
  Index most_inputs_ = 0, expected_ = 0;
};

}  // namespace moe::inline MOE_ABI::kernel
