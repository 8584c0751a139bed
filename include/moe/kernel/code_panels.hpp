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
#include "moe/kernel/weight_format.hpp"

// How codes of weights lie in memory, and how they are read. As in panels of scalars, a panel holds two
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
/// What planes stand for: code - (2^bits - 1) / 2, which for more than four bits is the sum of what the first ones and
/// the last four stand for.
inline constexpr auto kPlaneValues = [] {
  const auto of_first = [](int bits) {
    return simd::EvenlySpaced(-0.5f * static_cast<float>((1 << bits) - 1), bits > 4 ? 16.0f : 1.0f);
  };
  return std::array{of_first(1), of_first(2), of_first(3), of_first(4),
                    of_first(5), of_first(6), of_first(7), of_first(8)};
}();
inline constexpr simd::EvenlySpaced kLastPlanes(0.0f, 1.0f);

/// Planes from the highest bit down: the first ones are a matrix of fewer bits. All inputs of a step at once, to
/// memory.
template <bool zeros>
struct PlaneCodes {
  static constexpr bool kScaled = true, kZeros = zeros, kWholeSteps = true;
  static constexpr Index kRegisterBytes = 4 * kCodeLanes;

  /// to[i] = the register of input i, for the 32 of a step. One or two planes are added up bit by bit. Bits of more,
  /// four at a time, become codes of four bits, eight to a word, of every fourth input, which are looked up: 4 planes
  /// take half the time (1 row, AVX-512, Zen 5, 2026-12-01), 2 would take longer.
  static void read_step(const CodePanels& of, const std::byte* at, float* to) {
    if (of.format.bits <= 2)
      add_planes(of.format.bits, at, to);
    else
      look_planes_up(of.format.bits, at, to);
  }

 private:
  static constexpr Index kPlaneBytes = 4 * kCodeWidth;

  static void add_planes(int bits, const std::byte* at, float* to) {
    constexpr int kAtOnce = simd::kRegisters / 2;
    const simd::Batch<float> least(-0.5f * static_cast<float>((1 << bits) - 1));
    simd::unroll<32 / kAtOnce>([&](auto part) {
      simd::Batch<float> sum[kAtOnce];
      simd::unroll<kAtOnce>([&](auto i) { sum[i] = least; });
      for (int p = 0; p < bits; ++p) {
        const simd::Batch<float> words = simd::load_words(at + p * kPlaneBytes);
        const simd::Batch<float> value(static_cast<float>(1 << (bits - 1 - p)));
        simd::unroll<kAtOnce>([&](auto i) { sum[i] = simd::add_where_bit<part * kAtOnce + i>(sum[i], words, value); });
      }
      simd::unroll<kAtOnce>([&](auto i) { simd::store(to + (part * kAtOnce + i) * kCodeLanes, sum[i]); });
    });
  }

  static void look_planes_up(int bits, const std::byte* at, float* to) {
    const int first = bits > 4 ? bits - 4 : bits;
    const simd::EvenlySpaced& values = kPlaneValues[static_cast<std::size_t>(bits - 1)];
    simd::unroll<4>([&](auto k) {
      const auto put = [&](const auto& value_of) __attribute__((always_inline)) {
        simd::unroll<8>([&](auto j) { simd::store(to + (4 * j + k) * kCodeLanes, value_of(j)); });
      };
      const simd::Batch<float> codes = codes_of<k>(at, first);
      if (bits == first) return put([&](auto j) { return simd::value_of_words(codes, j, values); });
      const simd::Batch<float> rest = codes_of<k>(at + first * kPlaneBytes, 4);
      put([&](auto j) { return simd::value_of_words(codes, j, values) + simd::value_of_words(rest, j, kLastPlanes); });
    });
  }

  /// The codes of inputs k, k + 4, ... by `count` planes.
  template <int k>
  static simd::Batch<float> codes_of(const std::byte* at, int count) {
    simd::Batch<float> codes(0.0f);
    for (int p = 0; p < count; ++p)
      codes = simd::add_plane<k>(codes, simd::load_words(at + p * kPlaneBytes), count - 1 - p);
    return codes;
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
    case ScaleType::Unscaled:
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

}  // namespace detail

}  // namespace moe::inline MOE_ABI::kernel
