// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "moe/core/aligned.hpp"
#include "moe/core/simd_expand.hpp"
#include "moe/core/unroll.hpp"
#include "moe/kernel/panel_source.hpp"

// Panels of floats most of which are zero: the others one behind the other, and a bit per weight that says where. Every
// register of a panel row is expanded and multiplied with, one without weights, too, so that sums have the bits of the
// product with the zeros: an infinity times a weight of zero is NaN in both.
namespace moe::inline MOE_ABI::kernel {

/// Where the parts of a sparse matrix lie. Refers to them.
struct SparsePanels {
  static constexpr Index kWidth = kPanelWidth<float>;

  Index inputs = 0, panels = 0;
  const simd::LaneBits* lanes = nullptr;  ///< [panels, inputs, 2 registers]: whose weights are not zero
  const float* values = nullptr;          ///< of all panels, input by input; a register more may be read
  const Index* first = nullptr;           ///< [panels, blocks()]: the first value of a block

  /// Blocks of kWidth inputs in a panel.
  Index blocks() const { return (inputs + kWidth - 1) / kWidth; }
  const simd::LaneBits* lanes_of(Index panel) const { return lanes + 2 * panel * inputs; }
  /// Values from the first of `block` on; of a panel with inputs.
  const float* values_of(Index panel, Index block) const { return values + first[panel * blocks() + block]; }
};

namespace detail {

/// How far ahead of its use a line of values is fetched, as of codes.
inline constexpr Index kSparseBytesAhead = 4096;

/// sums[s][r][c] = sum_i rows[r][i] * weight of input i, column c, panels[s]; rows beyond num_rows repeat others and
/// are not stored.
template <int Rows, int Streams>
[[gnu::noinline]] void multiply_sparse(const SparsePanels& of, const std::array<const float*, Rows>& rows, int num_rows,
                                       const std::array<Index, Streams>& panels, float* sums) noexcept {
  using Batch = simd::Batch<float>;
  constexpr Index kLanes = simd::kLanes<float>, kWidth = SparsePanels::kWidth;
  const Index inputs = of.inputs;
  Batch sum[Rows][2 * Streams];
  simd::unroll<Rows>([&](auto r) { simd::unroll<2 * Streams>([&](auto c) { sum[r][c] = Batch(0.0f); }); });
  const float* next[Streams];
  const simd::LaneBits* lanes[Streams];
  simd::unroll<Streams>([&](auto s) {
    next[s] = inputs > 0 ? of.values_of(panels[s], 0) : nullptr;
    lanes[s] = of.lanes_of(panels[s]);
  });
  for (Index i = 0; i < inputs; ++i) {
    Batch value[Rows];
    simd::unroll<Rows>([&](auto r) { value[r] = Batch(rows[r][i]); });
    simd::unroll<2 * Streams>([&](auto c) __attribute__((always_inline)) {
      constexpr int s = c / 2;
      const simd::LaneBits set = lanes[s][2 * i + c % 2];
      const Batch weight = simd::expand(next[s], set);
      // An address, as nothing may lie there.
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(next[s]) + kSparseBytesAhead));
      next[s] += std::popcount(set);
      simd::unroll<Rows>([&](auto r) { sum[r][c] = simd::fma(value[r], weight, sum[r][c]); });
    });
  }
  simd::unroll<2 * Streams>([&](auto c) {
    simd::unroll<Rows>([&](auto r) {
      if (r < num_rows) simd::store(sums + (c / 2 * num_rows + r) * kWidth + c % 2 * kLanes, sum[r][c]);
    });
  });
}

/// PanelDecoder::multiply
inline void multiply_sparse_panels(const void* matrix, const float* const* rows, int num_rows, Index panel, Index apart,
                                   int streams, float* sums) {
  const auto& of = *static_cast<const SparsePanels*>(matrix);
  const auto run = [&]<int Rows>(std::integral_constant<int, Rows>) {
    std::array<const float*, Rows> row;
    for (int r = 0; r < Rows; ++r) row[static_cast<std::size_t>(r)] = rows[std::min(r, num_rows - 1)];
    const auto next = [&]<int Streams>(int first, std::integral_constant<int, Streams>) {
      std::array<Index, Streams> panels;
      for (int s = 0; s < Streams; ++s) panels[static_cast<std::size_t>(s)] = panel + (first + s) * apart;
      multiply_sparse<Rows, Streams>(of, row, num_rows, panels, sums + first * num_rows * SparsePanels::kWidth);
    };
    constexpr int kMost = (simd::kRegisters - 2) / (Rows + 1) / 2;  // as many as leave registers for sums and weights
    constexpr int kStreams = kMost >= 4 ? 4 : kMost >= 2 ? 2 : 1;
    int first = 0;
    for (; first + kStreams <= streams; first += kStreams) next(first, std::integral_constant<int, kStreams>{});
    if constexpr (kStreams > 1)
      for (; first < streams; ++first) next(first, std::integral_constant<int, 1>{});
  };
  if (num_rows == 1)
    run(std::integral_constant<int, 1>{});
  else if (num_rows == 2)
    run(std::integral_constant<int, 2>{});
  else if (num_rows <= 4)
    run(std::integral_constant<int, 4>{});
  else
    run(std::integral_constant<int, 6>{});
}

/// PanelDecoder::decode
inline void decode_sparse_panel(const void* matrix, Index panel, Index begin, Index end, float* to) {
  const auto& of = *static_cast<const SparsePanels*>(matrix);
  if (begin >= end) return;
  MOE_ASSERT(begin % SparsePanels::kWidth == 0);
  const simd::LaneBits* const lanes = of.lanes_of(panel);
  const float* next = of.values_of(panel, begin / SparsePanels::kWidth);
  for (Index k = 2 * begin; k < 2 * end; ++k, to += simd::kLanes<float>) {
    simd::store(to, simd::expand(next, lanes[k]));
    next += std::popcount(lanes[k]);
  }
}

}  // namespace detail

inline constexpr PanelDecoder<float> kSparseDecoder{.decode = &detail::decode_sparse_panel,
                                                    .multiply = &detail::multiply_sparse_panels};

}  // namespace moe::inline MOE_ABI::kernel
