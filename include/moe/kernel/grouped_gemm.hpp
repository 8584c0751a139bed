// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "moe/kernel/panel_source.hpp"
#include "moe/kernel/rows.hpp"
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

/// Panels [first, last) of a weight matrix.
template <class S>
struct PanelRange {
  const PanelSource<S>& of;
  Index first, last;
};

/// What becomes of the sums of a tile: a reference to a callable
///   finish(row, count, panel, S* sums)    sums [count, 2 * lanes] of rows from `row` on, aligned, may be overwritten
/// valid during the call that it is passed to. Not a template parameter, so that the loops over panels and tiles are
/// compiled once and not for every epilogue.
template <class S>
class FinishRef {
 public:
  template <class F>
    requires(!std::is_same_v<F, FinishRef>)
  FinishRef(const F& finish)
      : object_(&finish), call_([](const void* object, Index row, int count, const Panels& panels, S* sums) {
          for (int q = 0; q < panels.count; ++q)
            (*static_cast<const F*>(object))(row, count, panels.first + q * panels.apart,
                                             sums + q * count * kPanelWidth<S>);
        }) {}

  void operator()(Index row, int count, Index panel, S* sums) const { call_(object_, row, count, {panel, 0, 1}, sums); }
  /// The same for several panels `apart`, whose sums follow each other: one call, which few rows would feel.
  void operator()(Index row, int count, Index panel, Index apart, int panels, S* sums) const {
    call_(object_, row, count, {panel, apart, panels}, sums);
  }

 private:
  struct Panels {
    Index first, apart;
    int count;
  };
  const void* object_;
  void (*call_)(const void*, Index, int, const Panels&, S*);
};

namespace detail {

/// Most steps that a panel is walked before the next tile of rows: half of a 512 KiB L2. Longer products are done block
/// by block, the sums waiting in memory.
template <class S>
inline constexpr Index kDepthBlock = (Index{256} << 10) / (kPanelWidth<S> * static_cast<Index>(sizeof(S)));

/// Most steps of a panel of codes that are expanded at a time, 32 KiB: between two blocks every tile stores its sums
/// and reads them again. Half as many for a single tile, as then expanding counts and the block should be in L1. (60
/// rows, time of floats: 1.04, with 16 KiB 1.07; 12 rows of bf16 .99, .90. L1 of 32 KiB, Zen 4, 2026-12-01.)
template <class S>
inline constexpr Index kExpandedInputs = (Index{32} << 10) / (kPanelWidth<S> * static_cast<Index>(sizeof(S)));

/// Bytes of rows that all panels pass over before the next rows: they are read once per panel and have to stay in L3.
inline constexpr Index kRowBytes = Index{4} << 20;

/// Most rows whose sums wait between two blocks of the depth: 48 KiB of stack.
template <class S>
inline constexpr Index kWaitingRows =
    (Index{48} << 10) / (kPanelWidth<S> * static_cast<Index>(sizeof(S))) / kTileRows * kTileRows;

/// How far ahead of its use a line is fetched: at 40 GB/s, 8 KiB are 200 ns, twice the latency of memory.
inline constexpr Index kLinesAhead = 128;

/// Rows [begin, end) in tiles of nearly equal height: a tile of 4 rows is as fast as one of 6, one of 2 is not.
class Tiles {
 public:
  Tiles(Index begin, Index end) : begin_(begin), rows_(end - begin), count_((rows_ + kTileRows - 1) / kTileRows) {}
  Index count() const { return count_; }
  Index rows() const { return rows_; }
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
template <int Rows, class S>
void multiply_streams(const RowSource<S>& in, Index row, const PanelRange<S>& panels, const FinishRef<S>& finish) {
  const PanelSource<S>& matrix = panels.of;
  const Index first = panels.first, last = panels.last;
  constexpr int kStreams = streams_at_once(Rows);
  constexpr Index kWidth = kPanelWidth<S>;
  alignas(64) S sums[kStreams * Rows * kWidth];
  const TileRows<S> rows(in, row, Rows, 0);
  const auto run = [&]<int Streams>(Index p, Index apart, std::integral_constant<int, Streams>) {
    if (matrix.decoder)
      matrix.decoder->multiply(matrix.matrix, rows.row, Rows, p, apart, Streams, sums);
    else
      stream_tile<Rows, Streams>(rows.row, matrix.panel(p), apart * matrix.stride, matrix.inputs, sums);
    finish(row, Rows, p, apart, Streams, sums);
  };
  const Index each = (last - first) / kStreams;
  for (Index p = 0; p < each; ++p) run(first + p, each, std::integral_constant<int, kStreams>{});
  for (Index p = first + kStreams * each; p < last; ++p) run(p, 0, std::integral_constant<int, 1>{});
}

/// Steps [begin, begin + depth) of a panel, which lie at `data`, and what is fetched while tiles pass over them: tile t
/// of n fetches the t-th of n parts of [ahead, ahead + size), but nothing from `last` on.
template <class S>
struct PanelPart {
  const S* data;
  Index begin, depth;
  const S* ahead = nullptr;
  Index size = 0;
  const S* last = nullptr;
};

/// What tile t fetches.
template <class S>
ReadAhead<S> read_ahead(const Tiles& tiles, Index t, const PanelPart<S>& panel) {
  constexpr Index kSteps = ReadAhead<S>::kStepsPerBlock;
  const Index part = (panel.size + tiles.count() - 1) / tiles.count(), blocks = (panel.depth + kSteps - 1) / kSteps;
  return {panel.ahead + std::min(panel.last - panel.ahead, t * part), panel.last,
          blocks > 0 ? (part + blocks - 1) / blocks : 0};
}

/// Of scalars in memory from `data` to `behind`, what comes kLinesAhead behind the place where tile 0 will need it.
template <class S>
PanelPart<S> part_in_memory(const Tiles& tiles, const S* data, Index begin, Index end, const S* behind) {
  const Index size = (end - begin) * kPanelWidth<S>;
  const Index ahead = size - size / tiles.count() + kLinesAhead * ReadAhead<S>::kLine;
  return {data, begin, end - begin, data + std::min(ahead, behind - data), size, behind};
}

/// All tiles with one part of a panel.
template <class S, class Done>
void multiply_panel(const RowSource<S>& in, const Tiles& tiles, const PanelPart<S>& panel, S* sums, Index sums_per_tile,
                    const Done& done) {
  for (Index t = 0; t < tiles.count(); ++t) {
    const TileRows<S> rows(in, tiles.begin(t), tiles.height(t), panel.begin);
    const ReadAhead<S> ahead = read_ahead(tiles, t, panel);
    with_constant<kTileRows>(tiles.height(t), [&](auto height) {
      const auto multiply = panel.begin > 0 ? &multiply_tile<height, true, S> : &multiply_tile<height, false, S>;
      multiply(rows.row, panel.data, panel.depth, ahead, sums + t * sums_per_tile);
    });
    done(t);
  }
}

/// All tiles by some panels in blocks of `size` steps, between which the sums of all tiles wait.
/// run(p, begin, end, sums, done) multiplies steps [begin, end) of panel p, tile t to sums + t * kTileRows panel rows.
template <class S, class Run>
void multiply_blocks(const Tiles& tiles, const PanelRange<S>& panels, Index size, const Run& run,
                     const FinishRef<S>& finish) {
  const Index depth = panels.of.inputs;
  constexpr Index kTile = kTileRows * kPanelWidth<S>;
  MOE_ASSERT(tiles.rows() <= kWaitingRows<S>);
  alignas(64) S sums[kWaitingRows<S> * kPanelWidth<S>];
  for (Index p = panels.first; p < panels.last; ++p) {
    Index begin = 0;
    do {  // once where there are no steps: the sums are 0 then
      const Index end = std::min(depth, begin + size);
      run(p, begin, end, sums, [&](Index t) {
        if (end == depth) finish(tiles.begin(t), tiles.height(t), p, sums + t * kTile);
      });
      begin = end;
    } while (begin < depth);
  }
}

/// The rows of `tiles` by some panels.
template <class S>
void multiply_rows(const RowSource<S>& in, const Tiles& tiles, const PanelRange<S>& panels,
                   const FinishRef<S>& finish) {
  constexpr Index kWidth = kPanelWidth<S>, kTile = kTileRows * kWidth;
  const PanelSource<S>& matrix = panels.of;
  const Index depth = matrix.inputs;
  const S* const behind = matrix.panel(panels.last - 1) + depth * kWidth;
  const auto part = [&](Index p, Index begin, Index end) {
    return part_in_memory(tiles, matrix.panel(p) + begin * kWidth, begin, end, behind);
  };
  if (depth <= kDepthBlock<S> || tiles.count() == 1) {
    alignas(64) S sums[kTile];
    for (Index p = panels.first; p < panels.last; ++p) {
      const auto done = [&](Index t) { finish(tiles.begin(t), tiles.height(t), p, sums); };
      multiply_panel<S>(in, tiles, part(p, 0, depth), sums, 0, done);
    }
    return;
  }
  const auto run = [&](Index p, Index begin, Index end, S* sums, const auto& done) {
    multiply_panel<S>(in, tiles, part(p, begin, end), sums, kTile, done);
  };
  multiply_blocks<S>(tiles, panels, kDepthBlock<S>, run, finish);
}

/// The same for codes, of which a block is expanded once and stays in L1 while the tiles pass over it and fetch the
/// codes of the next one: fetched as they are decoded, they are waited for (bf16, 60 rows: 1.15 times the time of
/// floats, so 1.07; AVX-512, Zen 4, 2026-12-01).
template <class S>
void multiply_coded_rows(const RowSource<S>& in, const Tiles& tiles, const PanelRange<S>& panels,
                         const FinishRef<S>& finish) {
  constexpr Index kWidth = kPanelWidth<S>, kTile = kTileRows * kWidth;
  alignas(64) S expanded[kExpandedInputs<S> * kWidth];
  const PanelSource<S>& matrix = panels.of;
  const Index size = tiles.count() > 1 ? kExpandedInputs<S> : kExpandedInputs<S> / 2;
  const auto codes_of = [&](Index p, Index begin) -> std::span<const S> {
    if (p == panels.last) return {};
    return matrix.place(p, begin, std::min(matrix.inputs, begin + size));
  };
  const auto run = [&](Index p, Index begin, Index end, S* sums, const auto& done) {
    matrix.decoder->decode(matrix.matrix, p, begin, end, expanded);
    const std::span<const S> next = end < matrix.inputs ? codes_of(p, end) : codes_of(p + 1, 0);
    const PanelPart<S> part{expanded, begin, end - begin, next.data(), std::ssize(next), next.data() + next.size()};
    multiply_panel<S>(in, tiles, part, sums, kTile, done);
  };
  multiply_blocks<S>(tiles, panels, size, run, finish);
}

}  // namespace detail

/// in x W^T for rows [begin, end) and some panels: hands the sums of some rows and one panel to `finish`, which adds
/// the bias, applies the activation and stores. One thread; no allocation. Not of weights with a ConvertedProduct,
/// which needs memory: see grouped_multiply.
template <class S>
void multiply(const RowSource<S>& in, Index begin, Index end, const std::type_identity_t<PanelRange<S>>& panels,
              const std::type_identity_t<FinishRef<S>>& finish) {
  if (begin == end || panels.first == panels.last) return;
  const PanelSource<S>& matrix = panels.of;
  const bool coded = matrix.decoder != nullptr;
  MOE_ASSERT(!coded || !matrix.decoder->product);
  constexpr int kFew = kTileRows / 2;  // up to here streams_at_once gives two and more
  if (end - begin <= kFew && (!coded || matrix.decoder->multiply))
    return with_constant<kFew>(static_cast<int>(end - begin),
                               [&](auto rows) { detail::multiply_streams<rows, S>(in, begin, panels, finish); });
  const Index row_bytes = std::max<Index>(1, matrix.inputs) * static_cast<Index>(sizeof(S));
  Index most = std::max(detail::kRowBytes / row_bytes, kLeastRows);
  if (coded || matrix.inputs > detail::kDepthBlock<S>) most = std::min(most, detail::kWaitingRows<S>);
  const Index blocks = (end - begin + most - 1) / most, size = (end - begin + blocks - 1) / blocks;
  for (Index r = begin; r < end; r += size) {
    const detail::Tiles tiles(r, std::min(end, r + size));
    if (coded)
      detail::multiply_coded_rows(in, tiles, panels, finish);
    else
      detail::multiply_rows(in, tiles, panels, finish);
  }
}

/// multiply for every group in parallel, where weight(g) is the PanelSource of group g: finish(g, row, count, panel, S*
/// sums). Rows are converted first for weights with a ConvertedProduct.
template <class S, class Weight, class Finish>
void grouped_multiply(const RowGroups& groups, const RowSource<S>& in, const Weight& weight, TaskList& tasks,
                      const Finish& finish) {
  RowConversion& conversion = tasks.conversion();
  conversion.convert(groups, in, weight);
  tasks.run_product(
      groups, [&](Index g) { return weight(g).panels; }, [&](Index g) { return weight(g).inputs; },
      [&](Index g, Index first, Index last, Index) {
        const PanelSource<S> matrix = weight(g);
        const PanelRange<S> panels{matrix, first, last};
        const auto store = [&](Index row, int count, Index panel, S* sums) { finish(g, row, count, panel, sums); };
        if (matrix.decoder && matrix.decoder->product)
          matrix.decoder->product->multiply(conversion.rows(groups, g), panels, store);
        else
          multiply(in, groups.begin(g), groups.end(g), panels, store);
      });
}

}  // namespace moe::inline MOE_ABI::kernel
