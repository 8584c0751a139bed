// SPDX-License-Identifier: MIT
#pragma once

#include "moe/io/checkpoint/load_register.hpp"

namespace moe::inline MOE_ABI::detail {

/// One input of panels [begin, end).
struct PanelRow {
  const PanelJob& job;
  Index input, begin, end;

  bool is_paired() const { return job.to->order() == PanelOrder::Paired; }
  float* at(Index p) const { return job.to->panel(p) + input * PanelMatrix<F32>::kWidth; }
};

/// A row of a panel, of two registers. Past the caches where it is whole lines.
inline void put_row(float* to, const simd::Batch<float>& lower, const simd::Batch<float>& upper) {
  constexpr bool kStream = sizeof(lower) + sizeof(upper) >= kCacheLine;
  kernel::put<kStream>(to, lower);
  kernel::put<kStream>(to + PanelMatrix<F32>::kLanes, upper);
}

/// Decodes the outputs of a slice that stand in the row, side by side, and zeros where there are none.
inline void decode_row(const PanelRow& to, const WeightSlice& slice, float* row) {
  const Index width = to.is_paired() ? PanelMatrix<F32>::kLanes : PanelMatrix<F32>::kWidth;
  const Index count = std::min(to.end * width, slice.outputs) - to.begin * width, stride = slice.output_stride;
  const Index first = slice.first + to.begin * width * stride + to.input * slice.input_stride;
  slice.source.read_values(first, {row, static_cast<std::size_t>((count - 1) * stride + 1)});
  if (stride != 1)
    for (Index o = 1; o < count; ++o) row[o] = row[o * stride];
  std::fill(row + count, row + (to.end - to.begin) * width, 0.0f);
}

/// BF16 gates and ups in turns, in paired order: a lane of pairs is a gate and its up. Returns how many panels it
/// filled, 0 where the weights are anything else.
inline Index put_turns(const PanelRow& to) {
#if defined(__SSE2__)  // whose loads take any address
  constexpr Index kLanes = PanelMatrix<F32>::kLanes;
  const WeightSlice &gate = to.job.lower, &up = to.job.upper;
  const std::byte *const gates = bf16_of(gate), *const ups = bf16_of(up);
  if (!to.is_paired() || !gates || ups != gates + 2 || gate.output_stride != 2 || up.output_stride != 2 ||
      gate.input_stride != up.input_stride)
    return 0;
  const Index last = std::min(to.end, gate.outputs / kLanes);
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
  float *const lower = scratch.rows.row(0), *const upper = to.is_paired() ? scratch.rows.row(1) : lower + kLanes;
  decode_row(to, to.job.lower, lower);
  if (to.is_paired()) decode_row(to, to.job.upper, upper);
  const Index width = to.is_paired() ? kLanes : kWidth;
  for (Index p = to.begin; p < to.end; ++p) {
    const Index place = (p - to.begin) * width;
    put_row(to.at(p), simd::load(lower + place), simd::load(upper + place));
  }
}

/// A piece of a job, padding included: panels [begin, end), or inputs [begin, end) of all panels. Rows of outputs are
/// read from end to end: reading is what memory likes in order, panels are written a line or two at a time anyway.
inline void load_panels(const PanelJob& job, Index begin, Index end, PanelScratch& scratch) {
  const Index panels = job.to->panels();
  if (has_rows_of_outputs(job)) {
    scratch.rows.resize(2, kPanelsPerRow * PanelMatrix<F32>::kWidth * kDenseStride);
    for (Index input = begin; input < end; ++input)
      for (Index p = 0; p < panels; p += kPanelsPerRow)
        load_row({job, input, p, std::min(p + kPanelsPerRow, panels)}, scratch);
  } else {
    for (Index p = begin; p < end; ++p)
      for (Index half = 0; half < 2; ++half) load_register(job, p, half, scratch);
  }
  simd::finish_streaming();
}

}  // namespace moe::inline MOE_ABI::detail
