// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "moe/core/aligned.hpp"
#include "moe/core/unroll.hpp"
#include "moe/kernel/code_panels.hpp"

// Products with weights that are codes: decoded in registers for few rows, block by block for many.
namespace moe::inline MOE_ABI::kernel {

namespace detail {

/// How far ahead of its use a line of codes is fetched: decoding stalls the hardware's prefetching (int8: 23 -> 30
/// GB/s; Zen 5, 2026-11-29).
inline constexpr Index kCodeBytesAhead = 4096, kLine = static_cast<Index>(kCacheLine);

/// An address, as nothing may lie there.
[[gnu::always_inline]] inline const void* ahead_of(const std::byte* at, Index offset) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) +
                                       static_cast<std::uintptr_t>(offset + kCodeBytesAhead));
}

/// Fetches so many bytes of each panel before they are used.
template <std::size_t Streams>
[[gnu::always_inline]] inline void fetch_ahead(const std::array<const std::byte*, Streams>& panels, Index begin,
                                               Index bytes) {
  for (Index line = 0; line < bytes; line += kLine)
    for (const std::byte* const panel : panels) __builtin_prefetch(ahead_of(panel, begin + line));
}

/// sums[s][r][c] = sum_i rows[r][i] * weight of input i, column c, panel s; rows beyond num_rows repeat others and are
/// not stored.
template <class Codes, int Rows, int Streams>
[[gnu::noinline]] void multiply_codes(const CodePanels& of, const std::array<const float*, Rows>& rows, int num_rows,
                                      const std::array<const std::byte*, Streams>& panels, float* sums) noexcept {
  using Batch = simd::Batch<float>;
  constexpr int kStep = kInputsPerStep<Codes>;
  const Index bytes = step_bytes(of.format), header = of.header_bytes, inputs = of.inputs, group = of.group;
  Batch sum[Rows][2 * Streams];
  simd::unroll<Rows>([&](auto r) { simd::unroll<2 * Streams>([&](auto c) { sum[r][c] = Batch(0.0f); }); });
  Index offset = 0;
  for (Index begin = 0; begin < inputs; begin += group, offset += of.group_bytes) {
    GroupScales<Codes> scales[2 * Streams];
    simd::unroll<2 * Streams>([&](auto c) { scales[c] = GroupScales<Codes>(of, panels[c / 2] + offset, c % 2); });
    const auto add = [&](Index input, const auto& weight_of) __attribute__((always_inline)) {
      Batch value[Rows];
      simd::unroll<Rows>([&](auto r) { value[r] = Batch(rows[r][input]); });
      simd::unroll<2 * Streams>([&](auto c) {
        const Batch weight = scales[c](weight_of(c));
        simd::unroll<Rows>([&](auto r) { sum[r][c] = simd::fma(value[r], weight, sum[r][c]); });
      });
    };
    const Index end = std::min(inputs, begin + group);
    Index place = offset + header, input = begin;
    fetch_ahead(panels, offset, header);
    if constexpr (kIsPlanes<Codes>) {
      alignas(kCacheLine) float step[2 * Streams][kStep * kCodeLanes];
      for (; input < end; input += kStep, place += bytes) {
        fetch_ahead(panels, place, bytes);
        for (int c = 0; c < 2 * Streams; ++c)
          Codes::read_step(of, panels[static_cast<std::size_t>(c / 2)] + place + c % 2 * Codes::kRegisterBytes,
                           step[c]);
        const Index count = std::min<Index>(kStep, end - input);
        for (Index i = 0; i < count; ++i) add(input + i, [&](auto c) { return simd::load(step[c] + i * kCodeLanes); });
      }
    } else {
      const auto add_input = [&](auto i) __attribute__((always_inline)) {
        add(
            input + i, [&](auto c) __attribute__((always_inline)) {
              return Codes::value(panels[c / 2] + place + c % 2 * Codes::kRegisterBytes, i);
            });
      };
      for (; input + kStep <= end; input += kStep, place += bytes) {
        fetch_ahead(panels, place, bytes);
        simd::unroll<kStep>(add_input);
      }
      for (int i = 0; input + i < end; ++i) add_input(i);
    }
  }
  simd::unroll<2 * Streams>([&](auto c) {
    simd::unroll<Rows>([&](auto r) {
      if (r < num_rows) simd::store(sums + (c / 2 * num_rows + r) * kCodeWidth + c % 2 * kCodeLanes, sum[r][c]);
    });
  });
}

/// Panels that are walked side by side: as many as leave registers for their sums, scales, zero points and codes. The
/// codes of a word stay in a register for eight inputs: spilled, int4 runs at half the speed (2 rows, AVX-512).
template <class Codes, int Rows>
inline constexpr int kCodeStreams = [] {
  constexpr int kColumn = Rows + 1 + (Codes::kScaled ? 1 : 0) + (Codes::kZeros ? 1 : 0);
  constexpr int kMost = (simd::kRegisters - 2) / kColumn / 2;
  return kMost >= 4 ? 4 : kMost >= 2 ? 2 : 1;
}();

/// PanelDecoder::multiply
template <class Codes>
void multiply_coded(const void* matrix, const float* const* rows, int num_rows, Index panel, Index apart, int streams,
                    float* sums) {
  const auto& of = *static_cast<const CodePanels*>(matrix);
  const auto run = [&]<int Rows>(std::integral_constant<int, Rows>) {
    std::array<const float*, Rows> row;
    for (int r = 0; r < Rows; ++r) row[static_cast<std::size_t>(r)] = rows[std::min(r, num_rows - 1)];
    const auto next = [&]<int Streams>(int first, std::integral_constant<int, Streams>) {
      std::array<const std::byte*, Streams> panels;
      for (int s = 0; s < Streams; ++s) panels[static_cast<std::size_t>(s)] = of.panel(panel + (first + s) * apart);
      multiply_codes<Codes, Rows, Streams>(of, row, num_rows, panels, sums + first * num_rows * kCodeWidth);
    };
    constexpr int kStreams = kCodeStreams<Codes, Rows>;
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
template <class Codes>
void decode_codes(const void* matrix, Index panel, Index begin, Index end, float* to) {
  const auto& of = *static_cast<const CodePanels*>(matrix);
  constexpr int kStep = kInputsPerStep<Codes>;
  const Index bytes = step_bytes(of.format);
  for (Index input = begin; input < end;) {
    const Index g = input / of.group, first = g * of.group, last = std::min(end, first + of.group);
    const std::byte* const at = of.panel(panel) + g * of.group_bytes;
    const GroupScales<Codes> low(of, at, 0), high(of, at, 1);
    const auto put = [&](const simd::Batch<float>& lower, const simd::Batch<float>& upper) {
      simd::store(to, low(lower));
      simd::store(to + kCodeLanes, high(upper));
      to += kCodeWidth;
    };
    while (input < last) {
      const Index step = (input - first) / kStep, i = (input - first) % kStep;
      const Index count = std::min(kStep - i, last - input);
      const std::byte* const codes = at + of.header_bytes + step * bytes;
      if constexpr (kIsPlanes<Codes>) {
        alignas(kCacheLine) float lower[kStep * kCodeLanes], upper[kStep * kCodeLanes];
        Codes::read_step(of, codes, lower);
        Codes::read_step(of, codes + Codes::kRegisterBytes, upper);
        for (Index j = i; j < i + count; ++j)
          put(simd::load(lower + j * kCodeLanes), simd::load(upper + j * kCodeLanes));
      } else {
        const auto put_input = [&](auto j) __attribute__((always_inline)) {
          put(Codes::value(codes, j), Codes::value(codes + Codes::kRegisterBytes, j));
        };
        if (count == kStep)
          simd::unroll<kStep>(put_input);
        else
          for (int j = 0; j < count; ++j) put_input(static_cast<int>(i) + j);
      }
      input += count;
    }
  }
}

/// PanelDecoder::place
inline std::span<const float> place_of_codes(const void* matrix, Index panel, Index begin, Index end) {
  const auto& of = *static_cast<const CodePanels*>(matrix);
  const Index step = inputs_per_step(of.format.code), bytes = step_bytes(of.format);
  const auto offset = [&](Index input, Index steps) {  // with the scales, where a group begins
    return input / of.group * of.group_bytes + (steps == 0 ? 0 : of.header_bytes + steps * bytes);
  };
  const Index first = offset(begin, begin % of.group / step), last = offset(end, (end % of.group + step - 1) / step);
  const std::byte* const at = of.panel(panel);
  return {reinterpret_cast<const float*>(at + first), reinterpret_cast<const float*>(at + last)};
}

inline void decode_none(const void*, Index, Index begin, Index end, float* to) {
  std::fill_n(to, (end - begin) * kCodeWidth, 0.0f);
}

// S is float: what depends on it is compiled where it is used.
template <class Codes, class S>
inline constexpr PanelDecoder<S> kDecoderOf{
    .decode = &decode_codes<Codes>, .place = &place_of_codes, .multiply = &multiply_coded<Codes>};
/// Without a product for few rows: what is rare is not worth its code.
template <class S>
inline constexpr PanelDecoder<S> kExactE4M3Decoder{.decode = &decode_codes<ExactE4M3Codes>, .place = &place_of_codes};
template <class S>
inline constexpr PanelDecoder<S> kNoDecoder{.decode = &decode_none};

}  // namespace detail

/// Whether codes E4M3 may be NaN, which takes as long as the rest of decoding.
enum class NanCodes { Absent, Present };

/// How matrices of a format are read.
template <class S = float>
const PanelDecoder<S>& decoder_of(const WeightFormat& format, NanCodes nan = NanCodes::Absent) {
  using namespace detail;
  const bool zeros = format.has_zero_points;
  switch (format.code) {
    case WeightCode::Zeros:
      break;
    case WeightCode::Bf16:
      return kDecoderOf<Bf16Codes, S>;
    case WeightCode::F16:
      return kDecoderOf<F16Codes, S>;
    case WeightCode::E4M3:
      return nan == NanCodes::Present ? kExactE4M3Decoder<S> : kDecoderOf<E4M3Codes, S>;
    case WeightCode::E5M2:
      return kDecoderOf<E5M2Codes, S>;
    case WeightCode::Int8:
      return zeros ? kDecoderOf<Int8Codes<true>, S> : kDecoderOf<Int8Codes<false>, S>;
    case WeightCode::Int4:
      return zeros ? kDecoderOf<Int4Codes<true>, S> : kDecoderOf<Int4Codes<false>, S>;
    case WeightCode::E2M1:
      return kDecoderOf<E2M1Codes, S>;
    case WeightCode::Planes:
      return zeros ? kDecoderOf<PlaneCodes<true>, S> : kDecoderOf<PlaneCodes<false>, S>;
  }
  return kNoDecoder<S>;
}

}  // namespace moe::inline MOE_ABI::kernel
