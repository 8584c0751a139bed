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

namespace moe::inline MOE_ABI::detail {

/// One matrix to fill: from one slice (then both are the same), or its lower and upper half of outputs from two.
struct PanelJob {
  WeightSlice lower, upper;
  PanelMatrix<F32>* to = nullptr;

  bool is_fused() const { return lower.outputs != to->outputs(); }
};

/// Panels are written past the caches where a register is a whole line: they are larger than those, and nobody reads
/// them before the load ends.
struct StreamStore {
  template <class S>
  static void put(S* to, const simd::Batch<S>& value) {
    if constexpr (sizeof(value) == kCacheLine)
      kernel::stream(to, value);
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

/// Whether a job is done by rows of outputs: those lie dense, and the halves of a register come from one slice each.
inline bool has_rows_of_outputs(const PanelJob& job) {
  const auto is_dense = [](const WeightSlice& s) { return s.input_stride != 1 && s.output_stride <= kDenseStride; };
  return is_dense(job.lower) && is_dense(job.upper) && (job.to->order() == PanelOrder::Paired || !job.is_fused());
}

/// A job is cut along what the file is ordered by, so that a piece is one range of the file: inputs or panels.
inline Index extent_of(const PanelJob& job) {
  return has_rows_of_outputs(job) && job.to->panels() > 0 ? job.to->inputs() : job.to->panels();
}
inline Index extent_of_piece(const PanelJob& job) {
  const Index width = PanelMatrix<F32>::kWidth;
  const Index weights = has_rows_of_outputs(job) ? job.to->panels() * width : job.to->inputs() * width;
  return std::max<Index>(1, kWeightsPerPiece / std::max<Index>(1, weights));
}

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

/// Where BF16 of a slice lies in memory, or null where it is anything else.
inline const std::byte* bf16_of(const WeightSlice& slice) {
  const auto bytes = slice.source.stored_as(Dtype::BF16);
  return bytes.empty() ? nullptr : bytes.data() + 2 * slice.first;
}

using RegisterRows = std::array<const float*, static_cast<std::size_t>(PanelMatrix<F32>::kLanes)>;

/// Rows of BF16 inputs that fill a register of a panel, turned as pairs without being decoded: all inputs but those
/// that fill no square. Returns how many, 0 where the weights are anything else.
inline Index turn_pairs(const PanelJob& job, const OutputRun& run, float* to) {
#if defined(__SSE2__)  // whose loads take any address
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = PanelMatrix<F32>::kWidth;
  if (run.count < kLanes) return 0;
  RegisterRows rows;
  for (Index lane = 0; lane < kLanes; ++lane) {
    const auto [slice, output] = source_of(job, run, lane);
    const std::byte* const first = slice->input_stride == 1 ? bf16_of(*slice) : nullptr;
    if (!first) return 0;
    rows[static_cast<std::size_t>(lane)] = reinterpret_cast<const float*>(first + 2 * output * slice->output_stride);
  }
  const Index inputs = job.to->inputs(), body = inputs - inputs % (2 * kLanes);
  for (Index i = 0; i < body; i += 2 * kLanes) {
    for (const float* row : rows) _mm_prefetch(reinterpret_cast<const char*>(row) + 2 * i + kFetchAhead, _MM_HINT_T0);
    simd::transpose<float, StreamPairs>(rows.data(), i / 2, to + i * kWidth, 2 * kWidth);
  }
  return body;
#else
  return 0;
#endif
}

/// One register of one panel, for all inputs: rows of inputs are decoded and turned.
inline void load_register(const PanelJob& job, Index p, Index half, PanelScratch& scratch) {
  constexpr Index kLanes = PanelMatrix<F32>::kLanes, kWidth = PanelMatrix<F32>::kWidth;
  const OutputRun run = outputs_of(job, p, half);
  const Index inputs = job.to->inputs();
  RegisterRows rows;
  scratch.rows.resize(kLanes, kDecodedInputs);
  for (Index lane = 0; lane < kLanes; ++lane) {
    rows[static_cast<std::size_t>(lane)] = scratch.rows.row(lane);
    if (lane >= run.count) std::fill_n(scratch.rows.row(lane), kDecodedInputs, 0.0f);
  }
  for (Index begin = turn_pairs(job, run, job.to->panel(p) + half * kLanes); begin < inputs; begin += kDecodedInputs) {
    const Index count = std::min(kDecodedInputs, inputs - begin), body = count - count % kLanes;
    for (Index lane = 0; lane < run.count; ++lane) {
      const auto [slice, output] = source_of(job, run, lane);
      read_inputs(*slice, output, begin, {scratch.rows.row(lane), static_cast<std::size_t>(count)});
    }
    float* const to = job.to->panel(p) + begin * kWidth + half * kLanes;
    for (Index i = 0; i < body; i += kLanes)
      simd::transpose<float, StreamStore>(rows.data(), i, to + i * kWidth, kWidth);
    for (Index i = body; i < count; ++i)
      for (Index lane = 0; lane < kLanes; ++lane) to[i * kWidth + lane] = rows[static_cast<std::size_t>(lane)][i];
  }
}

}  // namespace moe::inline MOE_ABI::detail
