// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "moe/core/simd_codes.hpp"
#include "moe/core/unroll.hpp"
#include "moe/kernel/panel_source.hpp"
#include "moe/kernel/tile.hpp"
#include "moe/kernel/weight_format.hpp"

// Products with weights that are codes, and how the codes lie in memory. As in panels of scalars, a panel holds two
// registers of outputs for all inputs; group by group of inputs, first the scales (and zero points) of the group and
// then its codes, so that a panel is one stream.
namespace moe::inline MOE_ABI::kernel {

/// Where the codes of a weight matrix lie. A plain value that refers to them.
struct CodePanels {
  WeightFormat format = {};
  Index inputs = 0, panels = 0;
  Index group = 1;                                           ///< inputs of a group
  Index header_bytes = 0, group_bytes = 0, panel_bytes = 0;  ///< of scales and zero points; of whole groups; of panels
  float scale = 1;                                           ///< of the matrix, where scales are stored as E4M3
  const std::byte* data = nullptr;

  const std::byte* panel(Index p) const { return data + p * panel_bytes; }
};

namespace detail {

inline constexpr Index kCodeWidth = kPanelWidth<float>, kCodeLanes = simd::kLanes<float>;

/// Inputs that are read together: those of a word of codes, eight where codes take a byte or two.
constexpr Index inputs_per_step(WeightCode code) { return code == WeightCode::Planes ? 32 : 8; }
/// Bytes of the codes of so many inputs of a panel.
constexpr Index step_bytes(const WeightFormat& format) {
  return inputs_per_step(format.code) * kCodeWidth * format.code_bits() / 8;
}

// How the codes of a step are read: value(at, i) is the register of input i, an int or an integral constant, of the
// step at `at`, plus the bytes of a register of codes for the other half of the panel.

struct Bf16Codes {
  static constexpr bool kScaled = false, kZeros = false, kWholeSteps = false;
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;
  template <class I>
  static simd::Batch<float> value(const std::byte* at, I i) {
    const simd::Batch<float> pairs = simd::load_words(at + i / 2 * (4 * kCodeWidth));
    return i % 2 == 0 ? simd::first_of_pairs(pairs) : simd::second_of_pairs(pairs);
  }
};
struct F16Codes {
  static constexpr bool kScaled = false, kZeros = false, kWholeSteps = false;
  static constexpr Index kRegisterBytes = 2 * kCodeLanes;
  template <class I>
  static simd::Batch<float> value(const std::byte* at, I i) {
    return simd::load_halves(at + i * (2 * kCodeWidth));
  }
};
/// A byte each, which Load reads.
template <auto& Load, bool zeros = false>
struct ByteCodes {
  static constexpr bool kScaled = true, kZeros = zeros, kWholeSteps = false;
  static constexpr Index kRegisterBytes = kCodeLanes;
  template <class I>
  static simd::Batch<float> value(const std::byte* at, I i) {
    return Load(at + i * kCodeWidth);
  }
};
template <bool zeros>
struct Int4Codes {
  static constexpr bool kScaled = true, kZeros = zeros, kWholeSteps = false;
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;
  template <class I>
  static simd::Batch<float> value(const std::byte* at, I i) {
    return simd::int4_of_words(simd::load_words(at), i);
  }
};
struct E2M1Codes {
  static constexpr bool kScaled = true, kZeros = false, kWholeSteps = false;
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;
  template <class I>
  static simd::Batch<float> value(const std::byte* at, I i) {
    return simd::e2m1_of_words(simd::load_words(at), i);
  }
};
/// Planes from the highest bit down: the first ones are a matrix of fewer bits. All inputs of a step at once, to
/// memory.
template <bool zeros>
struct PlaneCodes {
  static constexpr bool kScaled = true, kZeros = zeros, kWholeSteps = true;
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;

  /// to[i] = the register of input i, for the 32 of a step.
  static void read_step(const CodePanels& of, const std::byte* at, float* to) {
    constexpr int kAtOnce = simd::kRegisters / 2;
    const int bits = of.format.bits;
    const simd::Batch<float> least(-0.5f * static_cast<float>((1 << bits) - 1));
    simd::unroll<32 / kAtOnce>([&](auto part) {
      simd::Batch<float> sum[kAtOnce];
      simd::unroll<kAtOnce>([&](auto i) { sum[i] = least; });
      for (int p = 0; p < bits; ++p) {
        const simd::Batch<float> words = simd::load_words(at + p * (4 * kCodeWidth));
        const simd::Batch<float> value(static_cast<float>(1 << (bits - 1 - p)));
        simd::unroll<kAtOnce>([&](auto i) { sum[i] = simd::add_where_bit<part * kAtOnce + i>(sum[i], words, value); });
      }
      simd::unroll<kAtOnce>([&](auto i) { simd::store(to + (part * kAtOnce + i) * kCodeLanes, sum[i]); });
    });
  }
};

using E4M3Codes = ByteCodes<simd::load_e4m3_as_halves>;
using ExactE4M3Codes = ByteCodes<simd::load_e4m3>;
using E5M2Codes = ByteCodes<simd::load_e5m2>;
template <bool zeros>
using Int8Codes = ByteCodes<simd::load_int8, zeros>;

template <class Codes>
inline constexpr bool kIsPlanes = Codes::kWholeSteps;
template <class Codes>
inline constexpr int kInputsPerStep = kIsPlanes<Codes> ? 32 : 8;
/// What scales are multiplied with, as the codes read that much too small.
template <class Codes>
inline constexpr float kScaleFactor = std::is_same_v<Codes, E4M3Codes> ? 256.0f : 1.0f;

/// Scales of a register of outputs, as they are stored.
inline simd::Batch<float> load_scales(ScaleType type, const std::byte* from, float of_matrix) {
  switch (type) {
    case ScaleType::None:
      return simd::Batch<float>(1.0f);
    case ScaleType::F32:
      return simd::load_words(from);
    case ScaleType::F16:
      return simd::load_halves(from);
    case ScaleType::Bf16:
      return simd::load_bfloats(from);
    case ScaleType::E8M0:
      return simd::load_e8m0(from);
    case ScaleType::E4M3:
      return simd::load_e4m3(from) * simd::Batch<float>(of_matrix);
  }
  return simd::Batch<float>(1.0f);
}

/// Scales and zero points of one register of a group, and what they make of codes.
template <class Codes>
struct GroupScales {
  GroupScales() = default;
  /// `half` of the panel whose group begins at `at`.
  GroupScales(const CodePanels& of, const std::byte* at, Index half) {
    if constexpr (Codes::kScaled) {
      const ScaleType type = of.format.scale;
      const Index bytes = of.format.scale_bits() / 8;
      scale = load_scales(type, at + half * kCodeLanes * bytes, of.scale);
      if constexpr (kScaleFactor<Codes> != 1) scale = scale * simd::Batch<float>(kScaleFactor<Codes>);
      if constexpr (Codes::kZeros && kIsPlanes<Codes>)
        zero = load_scales(type, at + (kCodeWidth + half * kCodeLanes) * bytes, 1);
      else if constexpr (Codes::kZeros)
        zero = simd::load_int8(at + kCodeWidth * bytes + half * kCodeLanes);
    }
  }
  simd::Batch<float> operator()(const simd::Batch<float>& code) const {
    if constexpr (!Codes::kScaled)
      return code;
    else if constexpr (!Codes::kZeros)
      return code * scale;
    else if constexpr (kIsPlanes<Codes>)
      return simd::fma(code, scale, zero);
    else
      return (code - zero) * scale;
  }

  simd::Batch<float> scale, zero;
};

/// How far ahead of its use a line of codes is fetched: decoding stalls the hardware's prefetching (int8: 23 -> 30
/// GB/s; Zen 5, 2026-11-29).
inline constexpr Index kCodeBytesAhead = 4096, kLine = static_cast<Index>(kCacheLine);

/// An address, as nothing may lie there.
[[gnu::always_inline]] inline const void* ahead_of(const std::byte* at, Index offset) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) +
                                       static_cast<std::uintptr_t>(offset + kCodeBytesAhead));
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
    const auto fetch = [&]() __attribute__((always_inline)) {
      for (Index line = 0; line < bytes; line += kLine)
        for (const std::byte* const panel : panels) __builtin_prefetch(ahead_of(panel, place + line));
    };
    if constexpr (kIsPlanes<Codes>) {
      alignas(kCacheLine) float step[2 * Streams][kStep * kCodeLanes];
      for (; input < end; input += kStep, place += bytes) {
        fetch();
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
        fetch();
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
      for (Index line = 0; line < bytes; line += kLine) __builtin_prefetch(ahead_of(codes, line));
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

inline void decode_none(const void*, Index, Index begin, Index end, float* to) {
  std::fill_n(to, (end - begin) * kCodeWidth, 0.0f);
}

template <class Codes>
inline constexpr PanelDecoder<float> kDecoderOf{.decode = &decode_codes<Codes>, .multiply = &multiply_coded<Codes>};
/// Without a product for few rows: what is rare is not worth its code.
inline constexpr PanelDecoder<float> kExactE4M3Decoder{.decode = &decode_codes<ExactE4M3Codes>};
inline constexpr PanelDecoder<float> kNoDecoder{.decode = &decode_none};

}  // namespace detail

/// Whether codes E4M3 may be NaN, which takes as long as the rest of decoding.
enum class NanCodes { Absent, Present };

/// How matrices of a format are read.
inline const PanelDecoder<float>& decoder_of(const WeightFormat& format, NanCodes nan = NanCodes::Absent) {
  using namespace detail;
  const bool zeros = format.has_zero_points;
  switch (format.code) {
    case WeightCode::None:
      break;
    case WeightCode::Bf16:
      return kDecoderOf<Bf16Codes>;
    case WeightCode::F16:
      return kDecoderOf<F16Codes>;
    case WeightCode::E4M3:
      return nan == NanCodes::Present ? kExactE4M3Decoder : kDecoderOf<E4M3Codes>;
    case WeightCode::E5M2:
      return kDecoderOf<E5M2Codes>;
    case WeightCode::Int8:
      return zeros ? kDecoderOf<Int8Codes<true>> : kDecoderOf<Int8Codes<false>>;
    case WeightCode::Int4:
      return zeros ? kDecoderOf<Int4Codes<true>> : kDecoderOf<Int4Codes<false>>;
    case WeightCode::E2M1:
      return kDecoderOf<E2M1Codes>;
    case WeightCode::Planes:
      return zeros ? kDecoderOf<PlaneCodes<true>> : kDecoderOf<PlaneCodes<false>>;
  }
  return kNoDecoder;
}

}  // namespace moe::inline MOE_ABI::kernel
