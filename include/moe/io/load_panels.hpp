// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "moe/core/simd_transpose.hpp"
#include "moe/io/weight_slice.hpp"
#include "moe/kernel/panel_matrix.hpp"

namespace moe::inline MOE_ABI::detail {

/// One matrix to fill: from one slice (then both are the same), or its lower and upper half of outputs from two.
struct PanelJob {
  WeightSlice lower, upper;
  PanelMatrix<F32>* to = nullptr;

  bool is_fused() const { return lower.outputs != to->outputs(); }
};

/// Memory of one worker.
struct PanelScratch {
  RowBuffer<float> rows;
};

/// Inputs of a row that are decoded at a time: long enough to stream, and a square of rows stays in L1 or L2.
inline constexpr Index kDecodedInputs = 512;
/// Panels that are filled together from rows of outputs, so that a row is read in pieces of some cache lines.
inline constexpr Index kPanelsPerRow = 8;
/// Inputs after which gates give way to ups: where they interleave, the same lines of the file are still in the cache.
inline constexpr Index kInputsPerTurn = 32;
/// Largest distance of outputs in a row of which everything between is decoded, too.
inline constexpr Index kDenseStride = 4;

/// Whether a job is done by rows of outputs: those lie dense, and the halves of a register come from one slice each.
inline bool has_rows_of_outputs(const PanelJob& job) {
  const auto is_dense = [](const WeightSlice& s) { return s.input_stride != 1 && s.output_stride <= kDenseStride; };
  return is_dense(job.lower) && is_dense(job.upper) && (job.to->order() == PanelOrder::Paired || !job.is_fused());
}

inline Index panels_at_once(const PanelJob& job) { return has_rows_of_outputs(job) ? kPanelsPerRow : 1; }

/// Outputs [begin, begin + count) of a slice, as they lie side by side in a register of a panel.
struct OutputRun {
  const WeightSlice& slice;
  Index begin, count;
};

/// What fills register `half` of panel `p`.
inline OutputRun outputs_of(const PanelJob& job, Index p, Index half) {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes;
  if (job.to->order() == PanelOrder::Paired) {
    const WeightSlice& slice = half == 0 ? job.lower : job.upper;
    return {slice, p * kLanes, std::min(kLanes, slice.outputs - p * kLanes)};
  }
  const Index output = 2 * p * kLanes + half * kLanes;
  return {job.lower, output, std::clamp<Index>(job.to->outputs() - output, 0, kLanes)};
}

/// Where a lane comes from: in plain order, a register may begin in one slice and end in the other.
inline std::pair<const WeightSlice*, Index> source_of(const PanelJob& job, const OutputRun& run, Index lane) {
  const Index output = run.begin + lane;
  if (&run.slice == &job.lower && output >= job.lower.outputs) return {&job.upper, output - job.lower.outputs};
  return {&run.slice, output};
}

/// `count` values of a slice from (output, input) on, along the inputs.
inline void read_inputs(const WeightSlice& slice, Index output, Index input, std::span<float> values) {
  const Index first = slice.first + output * slice.output_stride + input * slice.input_stride;
  if (slice.input_stride == 1) return slice.source.read_values(first, values);
  for (std::size_t i = 0; i < values.size(); ++i)
    slice.source.read_values(first + static_cast<Index>(i) * slice.input_stride, values.subspan(i, 1));
}

/// One register of one panel, for all inputs: rows of inputs are decoded and turned.
inline void load_register(const PanelJob& job, Index p, Index half, PanelScratch& scratch) {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = PanelMatrix<F32>::kWidth;
  const OutputRun run = outputs_of(job, p, half);
  const Index inputs = job.to->inputs();
  std::array<const float*, static_cast<std::size_t>(kLanes)> rows;
  scratch.rows.resize(kLanes, kDecodedInputs);
  for (Index lane = 0; lane < kLanes; ++lane) {
    rows[static_cast<std::size_t>(lane)] = scratch.rows.row(lane);
    if (lane >= run.count) std::fill_n(scratch.rows.row(lane), kDecodedInputs, 0.0f);
  }
  for (Index begin = 0; begin < inputs; begin += kDecodedInputs) {
    const Index count = std::min(kDecodedInputs, inputs - begin), body = count - count % kLanes;
    for (Index lane = 0; lane < run.count; ++lane) {
      const auto [slice, output] = source_of(job, run, lane);
      read_inputs(*slice, output, begin, {scratch.rows.row(lane), static_cast<std::size_t>(count)});
    }
    float* const to = job.to->panel(p) + begin * kWidth + half * kLanes;
    for (Index i = 0; i < body; i += kLanes) simd::transpose(rows.data(), i, to + i * kWidth, kWidth);
    for (Index i = body; i < count; ++i)
      for (Index lane = 0; lane < kLanes; ++lane) to[i * kWidth + lane] = rows[static_cast<std::size_t>(lane)][i];
  }
}

/// Panels [begin, end), input by input: a row of outputs is decoded and dealt to the panels.
inline void load_rows_of_outputs(const PanelJob& job, Index begin, Index end, PanelScratch& scratch) {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = PanelMatrix<F32>::kWidth;
  const bool is_paired = job.to->order() == PanelOrder::Paired;
  const Index width = is_paired ? kLanes : kWidth, inputs = job.to->inputs();
  scratch.rows.resize(1, kPanelsPerRow * kWidth * kDenseStride);
  float* const row = scratch.rows.row(0);
  const auto load_row = [&](const WeightSlice& slice, Index input, Index column) {
    const Index count = std::min(end * width, slice.outputs) - begin * width, stride = slice.output_stride;
    const Index first = slice.first + begin * width * stride + input * slice.input_stride;
    slice.source.read_values(first, {row, static_cast<std::size_t>((count - 1) * stride + 1)});
    if (stride != 1)
      for (Index o = 1; o < count; ++o) row[o] = row[o * stride];
    std::fill(row + count, row + (end - begin) * width, 0.0f);
    for (Index p = begin; p < end; ++p)
      std::copy_n(row + (p - begin) * width, width, job.to->panel(p) + input * kWidth + column);
  };
  for (Index turn = 0; turn < inputs; turn += kInputsPerTurn) {
    const Index last = std::min(turn + kInputsPerTurn, inputs);
    for (Index input = turn; input < last; ++input) load_row(job.lower, input, 0);
    for (Index input = turn; is_paired && input < last; ++input) load_row(job.upper, input, kLanes);
  }
}

/// Fills panels [begin, end), padding included.
inline void load_panels(const PanelJob& job, Index begin, Index end, PanelScratch& scratch) {
  if (has_rows_of_outputs(job)) return load_rows_of_outputs(job, begin, end, scratch);
  for (Index p = begin; p < end; ++p)
    for (Index half = 0; half < 2; ++half) load_register(job, p, half, scratch);
}

}  // namespace moe::inline MOE_ABI::detail
