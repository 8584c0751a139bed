// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moe/core/simd_transpose.hpp"
#include "moe/kernel/grouped_gemm.hpp"

// The two products of a backward pass on the panels of forward. Both are sums in one accumulator in ascending order, as
// in forward: over outputs for the gradient of a row, over rows for the gradient of a weight.
namespace moe::inline MOE_ABI::kernel {

/// Working memory of the gradients: the shares, and a buffer for each worker. One per thread.
template <class S>
struct GradientScratch {
  TaskList tasks;
  std::vector<AlignedBuffer<S>> buffer;

  /// A buffer of at least `size` scalars for each worker; to be called before the loop.
  void reserve(Index size) {
    const auto workers = static_cast<std::size_t>(num_workers());
    if (buffer.size() < workers) buffer.resize(workers);
    for (std::size_t w = 0; w < workers; ++w)
      if (buffer[w].size() < size) buffer[w] = AlignedBuffer<S>::uninitialised(size);
  }
};

namespace detail {

/// Inputs [panel * width, ...) of a weight matrix as a panel of its transpose, whose inputs are the outputs, padding
/// included. So one kernel multiplies forwards and backwards. Transposing costs as much as multiplying with about four
/// rows, and less than reading from memory.
template <class S>
class TransposedPanel {
 public:
  /// Scalars of the buffer for a matrix of `width` physical outputs.
  static Index size(Index width) { return width * kPanelWidth<S>; }

  TransposedPanel(const PanelSource<S>& matrix, Index panel, S* buffer) : data_(buffer), depth_(matrix.width()) {
    constexpr Index kWidth = kPanelWidth<S>;
    const Index first = panel * kWidth, count = std::min(kWidth, matrix.inputs - first);
    alignas(kCacheLine) S expanded[kWidth * kWidth];
    for (Index p = 0; p < matrix.panels; ++p) {
      fetch(matrix.place(std::min(p + kPanelsAhead, matrix.panels - 1), first, first + count));
      const S* from = expanded;
      if (matrix.decoder)
        matrix.decoder->decode(matrix.matrix, p, first, first + count, expanded);
      else
        from = matrix.panel(p) + first * kWidth;
      S* to = buffer + p * kWidth * kWidth;
      if (count == kWidth) {
        turn(from, to);
      } else {
        std::fill_n(to, kWidth * kWidth, S{0});
        for (Index i = 0; i < count; ++i)
          for (Index o = 0; o < kWidth; ++o) to[o * kWidth + i] = from[i * kWidth + o];
      }
    }
  }
  PanelSource<S> source() const { return {.inputs = depth_, .panels = 1, .data = data_}; }

 private:
  /// A square as wide as a panel: four of a register.
  static void turn(const S* from, S* to) {
    constexpr Index kLanes = simd::kLanes<S>, kWidth = kPanelWidth<S>;
    const S* row[kWidth];
    for (Index i = 0; i < kWidth; ++i) row[i] = from + i * kWidth;
    for (Index i = 0; i < kWidth; i += kLanes)
      for (Index o = 0; o < kWidth; o += kLanes) simd::transpose(row + i, o, to + o * kWidth + i, kWidth);
  }

  /// The pieces of different panels lie far apart, where no hardware prefetch finds them: 6 KiB ahead (AVX2), as
  /// forward.
  static constexpr Index kPanelsAhead = 6;
  static void fetch(std::span<const S> piece) {
    for (Index i = 0; i < std::ssize(piece); i += ReadAhead<S>::kLine) __builtin_prefetch(piece.data() + i);
  }

  const S* data_;
  Index depth_;
};

}  // namespace detail

/// din = dout W(g) for every group, where weight(g) is a PanelSource, in panels of inputs: hands the sums of some rows
/// to
///   finish(g, row, count, panel, S* sums)    inputs [panel * 2 lanes, ...), zero behind the last; may be overwritten
/// dout rows hold W(g).width() scalars, whose padding must be finite. 2 * num_rows * inputs * outputs operations; no
/// allocation when warm.
template <class S, class Weight, class Finish>
void grouped_input_gradient(const RowGroups& groups, const RowSource<S>& dout, const Weight& weight,
                            GradientScratch<S>& scratch, const Finish& finish) {
  Index width = 0;
  for (Index g = 0; g < groups.count; ++g)
    if (!groups.is_empty(g)) width = std::max(width, weight(g).width());
  scratch.reserve(detail::TransposedPanel<S>::size(width));
  scratch.tasks.run(
      groups, [&](Index g) { return panels_of<S>(weight(g).inputs); }, [&](Index g) { return weight(g).width(); },
      [&](Index g, Index first, Index last, Index worker) {
        const PanelSource<S> matrix = weight(g);
        for (Index p = first; p < last; ++p) {
          const detail::TransposedPanel<S> panel(matrix, p, scratch.buffer[static_cast<std::size_t>(worker)].data());
          const PanelSource<S> transposed = panel.source();
          multiply(dout, groups.begin(g), groups.end(g), {transposed, 0, 1},
                   [&](Index row, int count, Index, S* sums) { finish(g, row, count, p, sums); });
        }
      });
}

namespace detail {

/// Rows and inputs that stay in L1 and L2 while all panels of a share pass over them. 48 is a multiple of the tile
/// heights of x86; packed rows of 48 do not fall on the same cache sets, as rows of a token matrix would.
inline constexpr Index kGradientRows = 256, kGradientInputs = 48;

/// gradient += packed.rows^T x dout.rows for one panel and `count` of the packed inputs; `next` is what comes after.
template <class S>
void add_outer_products(OuterRows<S> packed, Index count, OuterRows<S> dout, Index num_rows, S* gradient,
                        const S* next) {
  for (Index i = 0; i < count; i += kTileRows)
    with_constant<kTileRows>(static_cast<int>(std::min<Index>(kTileRows, count - i)), [&](auto inputs) {
      const OuterRows<S> in{packed.rows + i, packed.stride};
      outer_product_tile<inputs>(in, dout, num_rows, gradient + i * kPanelWidth<S>, next + i * kPanelWidth<S>);
    });
}

/// Inputs [first, last) of the gradient of one group, rows [begin, end); `packed` has room for kGradientRows x
/// kGradientInputs.
template <class S>
struct GradientShare {
  Index begin, end;
  Index first, last;
  S* packed;
};

template <class S, class Panels>
void add_weight_gradient(const RowSource<S>& in, const RowSource<S>& dout, const GradientShare<S>& share,
                         Panels& gradient) {
  const auto [begin, end, first, last, packed] = share;
  constexpr Index kWidth = kPanelWidth<S>;
  for (Index i = first; i < last; i += kGradientInputs) {
    const Index count = std::min(kGradientInputs, last - i);
    for (Index r = begin; r < end; r += kGradientRows) {
      const Index rows = std::min(kGradientRows, end - r);
      for (Index j = 0; j < rows; ++j) std::copy_n(in.row(r + j) + i, count, packed + j * kGradientInputs);
      for (Index p = 0; p < gradient.panels(); ++p)
        add_outer_products<S>({packed, kGradientInputs}, count, {dout.row(r) + p * kWidth, dout.stride}, rows,
                              gradient.panel(p) + i * kWidth,
                              gradient.panel(std::min(p + 1, gradient.panels() - 1)) + i * kWidth);
    }
  }
}

/// Column sums of dout, as outer products with a single input of 1.
template <class S, class Panels>
void add_bias_gradient(const RowSource<S>& dout, Index begin, Index end, Panels& gradient) {
  static constexpr S kOne = 1;
  for (Index p = 0; p < gradient.panels(); ++p)
    outer_product_tile<1, S>({&kOne, 0}, {dout.row(begin) + p * kPanelWidth<S>, dout.stride}, end - begin,
                             gradient.panel(p), gradient.panel(p));
}

}  // namespace detail

/// gradient(g) += in^T x dout for every group, and bias(g) += column sums of dout where bias(g) is not empty; rows in
/// ascending order. dout rows are contiguous, hold gradient(g).width() scalars and are zero in the padding (which keeps
/// the panels' zero). Split by inputs, so that rows are packed once and matrices with few outputs are spread, too.
/// 2 * num_rows * inputs * outputs operations; no allocation when warm.
template <class S, class GradientOf, class BiasOf>
void grouped_weight_gradient(const RowGroups& groups, const RowSource<S>& in, const RowSource<S>& dout,
                             const GradientOf& gradient, const BiasOf& bias, GradientScratch<S>& scratch) {
  MOE_ASSERT(dout.index == nullptr);
  constexpr Index kInputs = detail::kGradientInputs;
  scratch.reserve(detail::kGradientRows * kInputs);
  scratch.tasks.run(
      groups, [&](Index g) { return std::max<Index>(1, (gradient(g).inputs() + kInputs - 1) / kInputs); },
      [&](Index g) { return gradient(g).width() * kInputs / kPanelWidth<S>; },
      [&](Index g, Index first, Index last, Index worker) {
        auto& of_group = gradient(g);
        detail::add_weight_gradient<S>(
            in, dout,
            {groups.begin(g), groups.end(g), first * kInputs, std::min(last * kInputs, of_group.inputs()),
             scratch.buffer[static_cast<std::size_t>(worker)].data()},
            of_group);
        if (first == 0 && !bias(g).empty()) detail::add_bias_gradient(dout, groups.begin(g), groups.end(g), bias(g));
      });
}

/// bias(g) += column sums of dout where bias(g) is not empty, with the bits of grouped_weight_gradient(): for weights
/// that have no gradient.
template <class S, class BiasOf>
void grouped_bias_gradient(const RowGroups& groups, const RowSource<S>& dout, const BiasOf& bias, TaskList& tasks) {
  tasks.run(
      groups, [&](Index g) { return bias(g).empty() ? Index{0} : Index{1}; }, [&](Index g) { return bias(g).width(); },
      [&](Index g, Index, Index, Index) { detail::add_bias_gradient(dout, groups.begin(g), groups.end(g), bias(g)); });
}

}  // namespace moe::inline MOE_ABI::kernel
