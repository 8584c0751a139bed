// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "moe/core/simd_bfloat.hpp"
#include "moe/core/simd_transpose.hpp"
#include "moe/io/checkpoint/weight_slice.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/kernel/stream.hpp"

// How the panels of one matrix are filled from its slices, which follow each other in its outputs.
namespace moe::inline MOE_ABI::detail {

/// All slices of one matrix, by output.
using MatrixSlices = std::span<const WeightSlice>;

inline PanelMatrix<F32>& matrix_of(MatrixSlices slices) { return *slices.front().to; }
inline bool is_paired(MatrixSlices slices) { return matrix_of(slices).order() == PanelOrder::Paired; }

/// The slice that holds an output of the matrix.
inline const WeightSlice& slice_of(MatrixSlices slices, Index output) {
  std::size_t s = 0;
  while (s + 1 < slices.size() && slices[s + 1].first_output <= output) ++s;
  return slices[s];
}

/// Place of an element of the matrix among the values of the slice that holds it.
inline Index place_of(const WeightSlice& slice, Index output, Index input) {
  return slice.first + (output - slice.first_output) * slice.output_stride + input * slice.input_stride;
}

/// Outputs [begin, begin + count) of a matrix.
struct OutputRun {
  Index begin, count;
};

/// What fills register `half` of panel `p`.
inline OutputRun outputs_of(MatrixSlices slices, Index p, Index half) {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes;
  const Index outputs = matrix_of(slices).outputs();
  if (is_paired(slices)) {
    const Index each = outputs / 2;
    return {half * each + p * kLanes, std::min(kLanes, each - p * kLanes)};
  }
  const Index output = 2 * p * kLanes + half * kLanes;
  return {output, std::clamp<Index>(outputs - output, 0, kLanes)};
}

/// Outputs that stand in one order in the panels: all of them, or gates (0) and ups (1).
inline OutputRun side_of(MatrixSlices slices, Index side) {
  const Index outputs = matrix_of(slices).outputs();
  if (is_paired(slices)) return {side * (outputs / 2), outputs / 2};
  return {0, outputs};
}

/// Panels are written past the caches where a register is a whole line: they are larger than those, and nobody reads
/// them before the load ends.
struct StreamStore {
  template <class S>
  static void put(S* to, const simd::Batch<S>& value) {
    if constexpr (sizeof(value) == kCacheLine)
      simd::stream(to, value);
    else
      simd::store(to, value);
  }
};

/// The same for pairs of bfloat16: two inputs of the outputs that stand in a register.
struct StreamPairs {
  static void put(float* to, const simd::Batch<float>& pairs) {
    StreamStore::put(to, simd::first_of_pairs(pairs));
    StreamStore::put(to + PanelMatrix<F32>::kWidth, simd::second_of_pairs(pairs));
  }
};

/// Memory of one worker.
struct PanelScratch {
  RowBuffer<float> rows;
};

/// Inputs of a row that are decoded at a time: long enough to stream, and a square of rows stays in L1.
inline constexpr Index kDecodedInputs = 256;
/// How far ahead of a turned square its rows are fetched, in bytes: there are more of them than the machine follows by
/// itself. Zen 5, AVX-512, November 2026: GB/s of BF16 per core: 12.9 without, 14.1 with 256, 13.8 with 512.
inline constexpr Index kFetchAhead = 256;
/// Panels that are filled together from a row of outputs, which is decoded to L1.
inline constexpr Index kPanelsPerRow = 32;
/// Largest distance of outputs in a row of which everything between is decoded, too.
inline constexpr Index kDenseStride = 4;
/// Weights that one worker loads at a time.
inline constexpr Index kWeightsPerPiece = Index{1} << 17;

/// Whether a matrix is filled by rows of outputs: those lie dense, and each side comes from one slice.
inline bool has_rows_of_outputs(MatrixSlices slices) {
  const auto is_dense = [](const WeightSlice& s) { return s.input_stride != 1 && s.output_stride <= kDenseStride; };
  const auto is_whole = [&](Index side) {
    const auto [begin, count] = side_of(slices, side);
    return count == 0 || &slice_of(slices, begin) == &slice_of(slices, begin + count - 1);
  };
  return std::all_of(slices.begin(), slices.end(), is_dense) && is_whole(0) && is_whole(1);
}

/// A matrix is cut along what the file is ordered by, so that a piece is one range of the file: inputs or panels.
inline Index extent_of(MatrixSlices slices) {
  const PanelMatrix<F32>& to = matrix_of(slices);
  return has_rows_of_outputs(slices) && to.panels() > 0 ? to.inputs() : to.panels();
}
inline Index extent_of_piece(MatrixSlices slices) {
  const PanelMatrix<F32>& to = matrix_of(slices);
  const Index weights = (has_rows_of_outputs(slices) ? to.panels() : to.inputs()) * PanelMatrix<F32>::kWidth;
  return std::max<Index>(1, kWeightsPerPiece / std::max<Index>(1, weights));
}

/// Where BF16 of an element lies in memory, or null where the weight is anything else.
inline const std::byte* bf16_at(const WeightSlice& slice, Index output, Index input) {
  const auto bytes = slice.source.stored_as(Dtype::BF16);
  return bytes.empty() ? nullptr : bytes.data() + 2 * place_of(slice, output, input);
}

/// `count` values from (output, input) on, along the inputs.
inline void read_inputs(const WeightSlice& slice, Index output, Index input, std::span<float> values) {
  const Index first = place_of(slice, output, input);
  if (slice.input_stride == 1) return slice.source.read_values(first, values);
  for (std::size_t i = 0; i < values.size(); ++i)
    slice.source.read_values(first + static_cast<Index>(i) * slice.input_stride, values.subspan(i, 1));
}

using RegisterRows = std::array<const float*, static_cast<std::size_t>(PanelMatrix<F32>::kLanes)>;

/// Rows of BF16 inputs that fill a register of a panel, turned as pairs without being decoded: all inputs but those
/// that fill no square. Returns how many, 0 where the weights are anything else.
inline Index turn_pairs(MatrixSlices slices, const OutputRun& run, float* to) {
#if defined(__SSE2__)  // whose loads take any address
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = PanelMatrix<F32>::kWidth;
  if (run.count < kLanes) return 0;
  RegisterRows rows;
  for (Index lane = 0; lane < kLanes; ++lane) {
    const WeightSlice& slice = slice_of(slices, run.begin + lane);
    const std::byte* const row = slice.input_stride == 1 ? bf16_at(slice, run.begin + lane, 0) : nullptr;
    if (!row) return 0;
    rows[static_cast<std::size_t>(lane)] = reinterpret_cast<const float*>(row);
  }
  const Index inputs = matrix_of(slices).inputs(), body = inputs - inputs % (2 * kLanes);
  for (Index i = 0; i < body; i += 2 * kLanes) {
    for (const float* row : rows) __builtin_prefetch(reinterpret_cast<const char*>(row) + 2 * i + kFetchAhead);
    simd::transpose<float, StreamPairs>(rows.data(), i / 2, to + i * kWidth, 2 * kWidth);
  }
  return body;
#else
  return 0;
#endif
}

/// One register of one panel, for all inputs: rows of inputs are decoded and turned.
inline void load_register(MatrixSlices slices, Index p, Index half, PanelScratch& scratch) {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = PanelMatrix<F32>::kWidth;
  const OutputRun run = outputs_of(slices, p, half);
  const Index inputs = matrix_of(slices).inputs();
  float* const panel = matrix_of(slices).panel(p) + half * kLanes;
  RegisterRows rows;
  scratch.rows.resize(kLanes, kDecodedInputs);
  for (Index lane = 0; lane < kLanes; ++lane) {
    rows[static_cast<std::size_t>(lane)] = scratch.rows.row(lane);
    if (lane >= run.count) std::fill_n(scratch.rows.row(lane), kDecodedInputs, 0.0f);
  }
  for (Index begin = turn_pairs(slices, run, panel); begin < inputs; begin += kDecodedInputs) {
    const Index count = std::min(kDecodedInputs, inputs - begin), body = count - count % kLanes;
    for (Index lane = 0; lane < run.count; ++lane)
      read_inputs(slice_of(slices, run.begin + lane), run.begin + lane, begin,
                  {scratch.rows.row(lane), static_cast<std::size_t>(count)});
    float* const to = panel + begin * kWidth;
    for (Index i = 0; i < body; i += kLanes)
      simd::transpose<float, StreamStore>(rows.data(), i, to + i * kWidth, kWidth);
    for (Index i = body; i < count; ++i)
      for (Index lane = 0; lane < kLanes; ++lane) to[i * kWidth + lane] = rows[static_cast<std::size_t>(lane)][i];
  }
}

/// One input of panels [begin, end).
struct PanelRow {
  MatrixSlices slices;
  Index input, begin, end;

  float* at(Index p) const { return matrix_of(slices).panel(p) + input * PanelMatrix<F32>::kWidth; }
};

/// A row of a panel, of two registers. Past the caches where it is whole lines.
inline void put_row(float* to, const simd::Batch<float>& lower, const simd::Batch<float>& upper) {
  constexpr bool kStream = sizeof(lower) + sizeof(upper) >= kCacheLine;
  kernel::put<kStream>(to, lower);
  kernel::put<kStream>(to + PanelMatrix<F32>::kLanes, upper);
}

/// Decodes the outputs of one side that stand in the row, one after the other, and zeros where there are none.
inline void decode_row(const PanelRow& to, Index side, float* row) {
  const auto [first, outputs] = side_of(to.slices, side);
  const Index width = is_paired(to.slices) ? PanelMatrix<F32>::kLanes : PanelMatrix<F32>::kWidth;
  const Index begin = to.begin * width, count = std::min(to.end * width, outputs) - begin;
  const WeightSlice& slice = slice_of(to.slices, first);
  const Index stride = slice.output_stride;
  slice.source.read_values(place_of(slice, first + begin, to.input),
                           {row, static_cast<std::size_t>((count - 1) * stride + 1)});
  if (stride != 1)
    for (Index o = 1; o < count; ++o) row[o] = row[o * stride];
  std::fill(row + count, row + (to.end - to.begin) * width, 0.0f);
}

/// BF16 gates and ups in turns, in paired order: a lane of pairs is a gate and its up. Returns how many panels it
/// filled, 0 where the weights are anything else.
inline Index put_turns(const PanelRow& to) {
#if defined(__SSE2__)  // whose loads take any address
  constexpr Index kLanes = PanelMatrix<F32>::kLanes;
  if (!is_paired(to.slices)) return 0;
  const Index outputs = matrix_of(to.slices).outputs() / 2;
  const WeightSlice &gate = slice_of(to.slices, 0), &up = slice_of(to.slices, outputs);
  if (gate.output_stride != 2 || up.output_stride != 2 || gate.input_stride != up.input_stride) return 0;
  const std::byte *const gates = bf16_at(gate, 0, 0), *const ups = bf16_at(up, outputs, 0);
  if (!gates || ups != gates + 2) return 0;
  const Index last = std::min(to.end, outputs / kLanes);
  for (Index p = to.begin; p < last; ++p) {
    const std::byte* const pairs = gates + 2 * to.input * gate.input_stride + 4 * p * kLanes;
    const simd::Batch<float> batch = simd::load(reinterpret_cast<const float*>(pairs));
    put_row(to.at(p), simd::first_of_pairs(batch), simd::second_of_pairs(batch));
  }
  return std::max<Index>(0, last - to.begin);
#else
  (void)to;
  return 0;
#endif
}

/// A row of outputs is decoded and dealt to the panels.
inline void load_row(PanelRow to, PanelScratch& scratch) {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = PanelMatrix<F32>::kWidth;
  to.begin += put_turns(to);
  if (to.begin == to.end) return;
  const bool paired = is_paired(to.slices);
  float *const lower = scratch.rows.row(0), *const upper = paired ? scratch.rows.row(1) : lower + kLanes;
  decode_row(to, 0, lower);
  if (paired) decode_row(to, 1, upper);
  const Index width = paired ? kLanes : kWidth;
  for (Index p = to.begin; p < to.end; ++p) {
    const Index place = (p - to.begin) * width;
    put_row(to.at(p), simd::load(lower + place), simd::load(upper + place));
  }
}

/// A piece of a matrix, padding included: panels [begin, end), or inputs [begin, end) of all panels. Rows of outputs
/// are read from end to end: reading is what memory likes in order, panels are written a line or two at a time anyway.
inline void load_panels(MatrixSlices slices, Index begin, Index end, PanelScratch& scratch) {
  const Index panels = matrix_of(slices).panels();
  if (has_rows_of_outputs(slices)) {
    scratch.rows.resize(2, kPanelsPerRow * PanelMatrix<F32>::kWidth * kDenseStride);
    for (Index input = begin; input < end; ++input)
      for (Index p = 0; p < panels; p += kPanelsPerRow)
        load_row({slices, input, p, std::min(p + kPanelsPerRow, panels)}, scratch);
  } else {
    for (Index p = begin; p < end; ++p)
      for (Index half = 0; half < 2; ++half) load_register(slices, p, half, scratch);
  }
  simd::finish_streaming();
}

}  // namespace moe::inline MOE_ABI::detail
