// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/kernel/panel_matrix.hpp"
#include "moe/kernel/tasks.hpp"
#include "moe/kernel/tile.hpp"

// Products of many groups of rows, each with a weight matrix of its own: expert e has rows [begin(e), end(e)). One
// order of loops serves all numbers of rows: for every panel, for every tile of rows. The panel comes from memory once,
// ahead of time, and stays in L2 while the tiles pass over it; rows are read in place, through pointers. Packing rows
// into tile order, or blocking the depth so that a panel's block stays in L1, was measured and lost (90% and 91%
// against 95% of the FMA peak at 512 rows, 74% against 84% at 64; AVX2, Zen 5, 2026-11-25).
namespace moe::inline MOE_ABI::kernel {

/// Rows that make it worth to read a panel: 16 tiles. Blocks of rows are no smaller; above, reading weights costs a
/// fraction of multiplying with them.
inline constexpr Index kLeastRows = 16 * kTileRows;

namespace detail {

/// Most steps that a panel is walked before the next tile of rows: half of a 512 KiB L2. Longer products are done block
/// by block, the sums waiting in memory.
template <class S>
inline constexpr Index kDepthBlock = (Index{256} << 10) / (kPanelWidth<S> * static_cast<Index>(sizeof(S)));

/// Bytes of rows that all panels pass over before the next rows: they are read once per panel and have to stay in L3.
inline constexpr Index kRowBytes = Index{4} << 20;

/// Most rows whose sums wait between two blocks of the depth: 64 KiB of stack.
template <class S>
inline constexpr Index kWaitingRows =
    (Index{64} << 10) / (kPanelWidth<S> * static_cast<Index>(sizeof(S))) / kTileRows * kTileRows;

/// How far ahead of its use a line is fetched: at 40 GB/s, 8 KiB are 200 ns, twice the latency of memory.
inline constexpr Index kLinesAhead = 128;

/// Rows [begin, end) in tiles of nearly equal height: a tile of 4 rows is as fast as one of 6, one of 2 is not.
class Tiles {
 public:
  Tiles(Index begin, Index end) : begin_(begin), rows_(end - begin), count_((rows_ + kTileRows - 1) / kTileRows) {}
  Index count() const { return count_; }
  Index begin(Index tile) const { return begin_ + tile * (rows_ / count_) + std::min(tile, rows_ % count_); }
  int height(Index tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }

 private:
  Index begin_, rows_, count_;
};

/// The pointers to the rows of a tile, at step `k`.
template <class S>
struct TileRows {
  TileRows(const RowSource<S>& in, Index first, int height, Index k) {
    for (int i = 0; i < height; ++i) row[i] = in.row(first + i) + k;
  }
  const S* row[kTileRows];
};

/// Few rows: `streams_at_once` panels side by side, from as many places of [first, last).
template <int Rows, class S, class Matrix, class Finish>
void multiply_streams(const RowSource<S>& in, Index row, const Matrix& matrix, Index first, Index last,
                      const Finish& finish) {
  constexpr int kStreams = streams_at_once(Rows);
  constexpr Index kWidth = kPanelWidth<S>;
  alignas(64) S sums[kStreams * Rows * kWidth];
  const TileRows<S> rows(in, row, Rows, 0);
  const auto run = [&]<int Streams>(Index p, Index apart, std::integral_constant<int, Streams>) {
    stream_tile<Rows, Streams>(rows.row, matrix.panel(p), apart * matrix.stride(), matrix.inputs(), sums);
    for (int q = 0; q < Streams; ++q) finish(row, Rows, p + q * apart, sums + q * Rows * kWidth);
  };
  const Index each = (last - first) / kStreams;
  for (Index p = 0; p < each; ++p) run(first + p, each, std::integral_constant<int, kStreams>{});
  for (Index p = first + kStreams * each; p < last; ++p) run(p, 0, std::integral_constant<int, 1>{});
}

/// Steps [begin, end) of one panel for all tiles. Tile t of n fetches its n-th part of what comes kLinesAhead behind
/// the place where tile 0 will need it.
template <class S, class Matrix, class Done>
void multiply_panel(const RowSource<S>& in, const Tiles& tiles, const Matrix& matrix, Index p, Index begin, Index end,
                    const S* last, S* sums, Index sums_per_tile, const Done& done) {
  constexpr Index kWidth = kPanelWidth<S>;
  const Index count = tiles.count(), part = (end - begin) * kWidth / count;
  const S* panel = matrix.panel(p) + begin * kWidth;
  ReadAhead<S> ahead{panel, last, ReadAhead<S>::kStepsPerBlock * kWidth / count};
  const Index first_line = part * (count - 1) + kLinesAhead * ReadAhead<S>::kLine;
  for (Index t = 0; t < count; ++t) {
    const TileRows<S> rows(in, tiles.begin(t), tiles.height(t), begin);
    ahead.next = panel + std::min(last - panel, first_line + t * part);
    with_constant<kTileRows>(tiles.height(t), [&](auto height) {
      const auto multiply = begin > 0 ? &multiply_tile<height, true, S> : &multiply_tile<height, false, S>;
      multiply(rows.row, panel, end - begin, ahead, sums + t * sums_per_tile);
    });
    done(t);
  }
}

/// Rows [begin, end) by panels [first, last).
template <class S, class Matrix, class Finish>
void multiply_rows(const RowSource<S>& in, Index begin, Index end, const Matrix& matrix, Index first, Index last,
                   const Finish& finish) {
  constexpr Index kWidth = kPanelWidth<S>, kTile = kTileRows * kWidth;
  const Index depth = matrix.inputs();
  const Tiles tiles(begin, end);
  const S* behind = matrix.panel(last - 1) + depth * kWidth;
  const auto finish_tile = [&](Index t, Index p, S* sums) { finish(tiles.begin(t), tiles.height(t), p, sums); };
  if (depth <= kDepthBlock<S> || tiles.count() == 1) {
    alignas(64) S sums[kTile];
    for (Index p = first; p < last; ++p)
      multiply_panel(in, tiles, matrix, p, 0, depth, behind, sums, 0, [&](Index t) { finish_tile(t, p, sums); });
    return;
  }
  MOE_ASSERT(end - begin <= kWaitingRows<S>);
  alignas(64) S sums[kWaitingRows<S> * kWidth];
  for (Index p = first; p < last; ++p)
    for (Index k = 0; k < depth; k += kDepthBlock<S>) {
      const Index stop = std::min(depth, k + kDepthBlock<S>);
      multiply_panel(in, tiles, matrix, p, k, stop, behind, sums, kTile, [&](Index t) {
        if (stop == depth) finish_tile(t, p, sums + t * kTile);
      });
    }
}

}  // namespace detail

/// in x W^T for rows [begin, end) and panels [first, last): hands the sums of `count` rows from `row` on and one panel
/// to
///   finish(row, count, panel, S* sums)    sums [count, 2 * lanes], aligned, may be overwritten
/// which adds the bias, applies the activation and stores. One thread; no allocation.
template <class S, class Matrix, class Finish>
void multiply(const RowSource<S>& in, Index begin, Index end, const Matrix& matrix, Index first, Index last,
              const Finish& finish) {
  if (begin == end || first == last) return;
  constexpr int kFew = kTileRows / 2;  // up to here streams_at_once gives two and more
  if (end - begin <= kFew)
    return with_constant<kFew>(static_cast<int>(end - begin), [&](auto rows) {
      detail::multiply_streams<rows, S>(in, begin, matrix, first, last, finish);
    });
  const Index row_bytes = std::max<Index>(1, matrix.inputs()) * static_cast<Index>(sizeof(S));
  Index most = std::max(detail::kRowBytes / row_bytes, kLeastRows);
  if (matrix.inputs() > detail::kDepthBlock<S>) most = std::min(most, detail::kWaitingRows<S>);
  const Index blocks = (end - begin + most - 1) / most, size = (end - begin + blocks - 1) / blocks;
  for (Index r = begin; r < end; r += size)
    detail::multiply_rows(in, r, std::min(end, r + size), matrix, first, last, finish);
}

/// multiply for every group in parallel, where weight(g) is the PanelMatrix of group g: finish(g, row, count, panel, S*
/// sums).
template <class S, class Weight, class Finish>
void grouped_multiply(const RowGroups& groups, const RowSource<S>& in, const Weight& weight, TaskList& tasks,
                      const Finish& finish) {
  tasks.run(
      groups, [&](Index g) { return weight(g).panels(); }, [&](Index g) { return weight(g).inputs(); },
      [&](Index g, Index first, Index last, Index) {
        multiply(in, groups.begin(g), groups.end(g), weight(g), first, last,
                 [&](Index row, int count, Index panel, S* sums) { finish(g, row, count, panel, sums); });
      });
}

}  // namespace moe::inline MOE_ABI::kernel
