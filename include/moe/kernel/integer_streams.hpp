// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "moe/core/unroll.hpp"
#include "moe/kernel/byte_tiles.hpp"
#include "moe/kernel/code_product.hpp"
#include "moe/kernel/grouped_gemm.hpp"

// Few rows as integers times codes, which become bytes in registers: there is no time to store them first, as such a
// product waits for the memory that codes come from. The sums, and so the bits, of dot_tile.
namespace moe::inline MOE_ABI::kernel::detail {

/// Panels that are walked side by side, each with two sums of integers and two of floats per row. Chains of products
/// wait 4 to 5 cycles for each other, so one row wants 8 of them.
constexpr int integer_streams(int rows) {
  if (simd::kRegisters == 32) return rows == 1 ? 4 : rows == 2 ? 2 : 1;
  return rows == 1 ? 2 : 1;
}
/// More rows take turns on a block of bytes: their sums do not fit the registers.
inline constexpr int kMostStreamedDotRows = simd::kRegisters == 32 ? 4 : 2;

/// sums[q][r][c] of row r of `rows`, column c of the q-th panel.
template <class Codes, int Rows, int Streams>
[[gnu::noinline]] void dot_streams(const CodePanels& of, const IntegerRows& rows,
                                   const std::array<const std::byte*, Streams>& panels, float* sums) noexcept {
  using Batch = simd::Batch<float>;
  constexpr int kHalves = 2 * Streams;
  const Index bytes = step_bytes(of.format), each = inputs_per_sum(of), inputs = of.inputs, group = of.group;
  const Index scale_bytes = kCodeLanes * of.format.scale_bits() / 8;
  const ScaleType type = of.format.scale;
  const Batch factor(Codes::kFactor);
  const auto half_of = [&](auto c, Index offset, Index size) __attribute__((always_inline)) {
    return panels[c / 2] + offset + c % 2 * size;
  };
  Batch total[Rows][kHalves];
  simd::unroll<Rows>([&](auto r) { simd::unroll<kHalves>([&](auto c) { total[r][c] = Batch(0.0f); }); });
  const float* of_rows = rows.scale;
  const std::int32_t* start = rows.start;
  Index offset = 0;
  for (Index first = 0; first < inputs; first += group, offset += of.group_bytes) {
    const Index last = std::min(inputs, first + group);
    Index place = offset + of.header_bytes;
    fetch_ahead(panels, offset, of.header_bytes);
    for (Index input = first; input < last; of_rows += Rows, start += Rows) {
      simd::Integers sum[Rows][kHalves];
      simd::unroll<Rows>([&](auto r) { simd::unroll<kHalves>([&](auto c) { sum[r][c] = simd::integers(start[r]); }); });
      for (const Index end = std::min(last, input + each); input < end; input += 8, place += bytes) {
        fetch_ahead(panels, place, bytes);
        std::int32_t even[Rows], odd[Rows];
        simd::unroll<Rows>([&](auto r) {
          const std::byte* const code = rows.code + r * rows.stride + input;
          std::memcpy(&even[r], code, sizeof even[r]);
          std::memcpy(&odd[r], code + 4, sizeof odd[r]);
        });
        simd::unroll<kHalves>([&](auto c) {
          const simd::TwoIntegers both =
              Codes::template read<ByteForm::Offset>(half_of(c, place, Codes::kRegisterBytes));
          simd::unroll<Rows>([&](auto r) {
            sum[r][c] = simd::add_products<Codes::kFirst>(sum[r][c], both.even, even[r]);
            sum[r][c] = simd::add_products<Codes::kFirst>(sum[r][c], both.odd, odd[r]);
          });
        });
      }
      simd::unroll<kHalves>([&](auto c) {
        const Batch scale = load_scales(type, half_of(c, offset, scale_bytes), of.scale) * factor;
        simd::unroll<Rows>([&](auto r) {
          total[r][c] = simd::fma(simd::to_floats(sum[r][c]), Batch(of_rows[r]) * scale, total[r][c]);
        });
      });
    }
  }
  simd::unroll<kHalves>([&](auto c) {
    simd::unroll<Rows>(
        [&](auto r) { simd::store(sums + (c / 2 * Rows + r) * kCodeWidth + c % 2 * kCodeLanes, total[r][c]); });
  });
}

/// The product with at most kMostStreamedDotRows rows, at least one.
template <class Codes>
void multiply_integer_streams(const IntegerRows& rows, Index begin, const PanelRange<float>& panels,
                              const FinishRef<float>& finish) {
  const auto& of = *static_cast<const CodePanels*>(panels.of.matrix);
  simd::with_constant<kMostStreamedDotRows>(static_cast<int>(rows.count), [&](auto num_rows) {
    constexpr int kRows = num_rows, kStreams = integer_streams(kRows);
    alignas(kCacheLine) float sums[kStreams * kRows * kCodeWidth];
    const auto run = [&]<int Streams>(Index p, Index apart, std::integral_constant<int, Streams>) {
      std::array<const std::byte*, Streams> from;
      for (int q = 0; q < Streams; ++q) from[static_cast<std::size_t>(q)] = of.panel(p + q * apart);
      dot_streams<Codes, kRows, Streams>(of, rows, from, sums);
      finish(begin, kRows, p, apart, Streams, sums);
    };
    const Index each = (panels.last - panels.first) / kStreams;
    for (Index p = 0; p < each; ++p) run(panels.first + p, each, std::integral_constant<int, kStreams>{});
    for (Index p = panels.first + kStreams * each; p < panels.last; ++p) run(p, 0, std::integral_constant<int, 1>{});
  });
}

}  // namespace moe::inline MOE_ABI::kernel::detail
