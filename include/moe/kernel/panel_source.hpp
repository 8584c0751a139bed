// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>

#include "moe/core/simd.hpp"

namespace moe::inline MOE_ABI::kernel {

/// Columns of a panel: two registers.
template <class S>
inline constexpr Index kPanelWidth = 2 * simd::kLanes<S>;

/// Panels that hold so many columns.
template <class S>
constexpr Index panels_of(Index columns) {
  return (columns + kPanelWidth<S> - 1) / kPanelWidth<S>;
}

template <class S>
struct PanelRange;
template <class S>
class FinishRef;

/// The rows [begin, end) of a product in the form that a ConvertedProduct gave them.
struct ConvertedRows {
  const std::byte* data = nullptr;
  Index begin = 0, end = 0;
};

/// A product of rows that are converted first, once for all panels.
template <class S>
struct ConvertedProduct {
  /// Memory that a converted row takes. What lies up to kRowsBehind rows behind the last one may be read.
  Index (*bytes_of_row)(const void* matrix);
  static constexpr Index kRowsBehind = 32;
  /// Converts `row`, the r-th of `count` rows whose memory begins at `to`, on a cache line.
  void (*convert)(const void* matrix, const S* row, Index r, Index count, std::byte* to);
  /// As multiply() in moe/kernel/grouped_gemm.hpp.
  void (*multiply)(const ConvertedRows& rows, const PanelRange<S>& panels, const FinishRef<S>& finish);
};

/// How the panels of one format of codes are read: one constant table per format. Every weight decodes to one scalar,
/// and a product with codes has the bits of the product with panels that hold these scalars.
template <class S>
struct PanelDecoder {
  /// Inputs [begin, end) of a panel, as they would lie in one:
  ///   to[(i - begin) * kPanelWidth<S> + c] = weight of input i in column c, or 0 in a column without an output
  /// begin is a multiple of kPanelWidth<S>; `to` is aligned to a cache line.
  void (*decode)(const void* matrix, Index panel, Index begin, Index end, S* to);

  /// Where the codes and scales of inputs [begin, end) of a panel lie, to be fetched ahead of decode(): as scalars, but
  /// none is read. Null where that is not known.
  std::span<const S> (*place)(const void* matrix, Index panel, Index begin, Index end) = nullptr;

  /// A product with few rows (at most kTileRows / 2), which waits for the bytes of the codes: panel, panel + apart,
  /// ..., `streams` of them (at most 4), decoded in registers.
  ///   sums[(q * num_rows + r) * kPanelWidth<S> + c] = sum_i rows[r][i] * weight of input i, column c, q-th panel
  /// each from +0, one fused multiply-add per input, in ascending order. Without it, decode() goes block by block.
  void (*multiply)(const void* matrix, const S* const* rows, int num_rows, Index panel, Index apart, int streams,
                   S* sums) = nullptr;

  /// Where there is one, the product is this, with other bits than that of the decoded weights.
  const ConvertedProduct<S>* product = nullptr;
};

/// A weight matrix as the kernels see it: where its panels lie, or how its codes are decoded on the way. One type for
/// all formats, so that every group of a product may have its own at full speed. Refers to the matrix.
template <class S>
struct PanelSource {
  Index inputs = 0, panels = 0;
  Index stride = 0;                          ///< scalars from one panel to the next
  const S* data = nullptr;                   ///< panel 0, [inputs, kPanelWidth<S>]; not read where there is a decoder
  const PanelDecoder<S>* decoder = nullptr;  ///< of codes, else null
  const void* matrix = nullptr;              ///< what the decoder reads

  const S* panel(Index p) const { return data + p * stride; }
  /// Where inputs [begin, end) of a panel lie, scalars or codes, to be fetched; empty where a decoder does not say.
  std::span<const S> place(Index p, Index begin, Index end) const {
    if (!decoder) return {panel(p) + begin * kPanelWidth<S>, panel(p) + end * kPanelWidth<S>};
    return decoder->place ? decoder->place(matrix, p, begin, end) : std::span<const S>{};
  }
  /// Physical columns, padding included.
  Index width() const { return panels * kPanelWidth<S>; }
};

}  // namespace moe::inline MOE_ABI::kernel
