// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

#include "moe/core/error.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// What a code of a weight stands for, before its scale.
enum class WeightCode : std::uint8_t {
  Zeros,   ///< no codes: every weight is 0
  Bf16,    ///< the upper half of a float
  F16,     ///< IEEE half precision
  E4M3,    ///< 8 bits without infinities, largest value 448; arXiv:2209.05433
  E5M2,    ///< 8 bits, the upper half of F16
  Int8,    ///< -128 to 127, or those of fewer bits, a byte each
  Int4,    ///< -8 to 7
  E2M1,    ///< 4 bits: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives
  Planes,  ///< 1 to 8 bits, q - (2^bits - 1) / 2 for q from 0 to 2^bits - 1, a plane of memory for each bit
};

/// How the scales beside codes are stored.
enum class ScaleType : std::uint8_t {
  Unscaled,
  F32,
  F16,
  Bf16,
  E8M0,  ///< a power of two from 2^-127 to 2^127; OCP Microscaling Formats 1.0
  E4M3,
};

/// How weights are stored in few bits. A weight is what its code, its group and its matrix say,
///   w = code * scale                 Bf16, F16 without a scale: w = code
///   w = (code - zero) * scale        with zero points, of Int8 and Int4
///   w = code * scale + offset        with zero points, of Planes (fused, one rounding)
/// rounded once to float; scale is that of the `group` consecutive inputs of its output, where stored as E4M3 times a
/// float of the matrix (rounded to float). A plain value: two matrices of one pool may differ in it.
struct WeightFormat {
  WeightCode code = WeightCode::Zeros;
  ScaleType scale = ScaleType::Unscaled;
  Index group = 0;  ///< inputs that share a scale; 0: all inputs of an output
  int bits = 0;     ///< of Planes; of Int8 the bits of its integers, 0 for all 8
  bool has_zero_points = false;

  static constexpr WeightFormat none() { return {}; }
  static constexpr WeightFormat bf16() { return {.code = WeightCode::Bf16}; }
  static constexpr WeightFormat f16() { return {.code = WeightCode::F16}; }
  static constexpr WeightFormat fp8(Index group = 128, ScaleType scale = ScaleType::F32) {
    return {.code = WeightCode::E4M3, .scale = scale, .group = group};
  }
  static constexpr WeightFormat fp8_e5m2(Index group = 128, ScaleType scale = ScaleType::F32) {
    return {.code = WeightCode::E5M2, .scale = scale, .group = group};
  }
  static constexpr WeightFormat int8(Index group = 32, ScaleType scale = ScaleType::F16) {
    return {.code = WeightCode::Int8, .scale = scale, .group = group};
  }
  static constexpr WeightFormat int4(Index group = 32, ScaleType scale = ScaleType::F16) {
    return {.code = WeightCode::Int4, .scale = scale, .group = group};
  }
  /// Of 1 to 8 bits: int4(), int8() or, of other numbers, Int8 whose codes are -2^(bits-1) to 2^(bits-1) - 1. Those
  /// take a byte each in memory, and their bits alone in checkpoints of packed integers (PackedIntsWriter).
  static constexpr WeightFormat integers(int bits, Index group = 32, ScaleType scale = ScaleType::F16) {
    if (bits == 4) return int4(group, scale);
    WeightFormat result = int8(group, scale);
    if (bits != 8) result.bits = bits;
    return result;
  }
  /// OCP Microscaling Formats 1.0.
  static constexpr WeightFormat mxfp4() { return {.code = WeightCode::E2M1, .scale = ScaleType::E8M0, .group = 32}; }
  /// NVIDIA's: scales E4M3 per 16 weights, and a float per matrix.
  static constexpr WeightFormat nvfp4() { return {.code = WeightCode::E2M1, .scale = ScaleType::E4M3, .group = 16}; }
  static constexpr WeightFormat planes(int bits, Index group = 64, ScaleType scale = ScaleType::F16) {
    return {.code = WeightCode::Planes, .scale = scale, .group = group, .bits = bits, .has_zero_points = true};
  }
  /// The same with zero points, for groups whose weights do not lie around 0; or without.
  constexpr WeightFormat with_zero_points() const {
    WeightFormat result = *this;
    result.has_zero_points = true;
    return result;
  }
  constexpr WeightFormat without_zero_points() const {
    WeightFormat result = *this;
    result.has_zero_points = false;
    return result;
  }
  constexpr WeightFormat with_group(Index inputs) const {
    WeightFormat result = *this;
    result.group = inputs;
    return result;
  }

  /// Of a code.
  constexpr int code_bits() const {
    switch (code) {
      case WeightCode::Zeros:
        return 0;
      case WeightCode::Bf16:
      case WeightCode::F16:
        return 16;
      case WeightCode::E4M3:
      case WeightCode::E5M2:
      case WeightCode::Int8:
        return 8;
      case WeightCode::Int4:
      case WeightCode::E2M1:
        return 4;
      case WeightCode::Planes:
        return bits;
    }
    return 0;
  }
  /// Of the values that codes may have: fewer than code_bits() of integers that take more than their bits.
  constexpr int value_bits() const { return code == WeightCode::Int8 && bits != 0 ? bits : code_bits(); }
  /// Of a stored scale.
  constexpr int scale_bits() const {
    switch (scale) {
      case ScaleType::Unscaled:
        return 0;
      case ScaleType::F32:
        return 32;
      case ScaleType::F16:
      case ScaleType::Bf16:
        return 16;
      case ScaleType::E8M0:
      case ScaleType::E4M3:
        return 8;
    }
    return 0;
  }
  /// Of a stored zero point, or of an offset of Planes.
  constexpr int zero_bits() const {
    if (!has_zero_points) return 0;
    return code == WeightCode::Planes ? scale_bits() : 8;
  }
  /// Inputs that share a scale in a matrix with so many.
  constexpr Index group_of(Index inputs) const { return group == 0 ? std::max<Index>(1, inputs) : group; }
  /// Scales of an output with so many inputs.
  constexpr Index num_groups(Index inputs) const {
    if (scale == ScaleType::Unscaled || code == WeightCode::Zeros) return 0;
    return inputs / group_of(inputs) + (inputs % group_of(inputs) != 0 ? 1 : 0);
  }
  /// Bits that a weight takes with its share of scales and zero points.
  constexpr double bits_per_weight(Index inputs) const {
    const double groups = inputs == 0 ? 0 : static_cast<double>(num_groups(inputs)) / static_cast<double>(inputs);
    return code_bits() + groups * (scale_bits() + zero_bits());
  }

  /// Throws std::invalid_argument for a combination that says nothing.
  void validate() const {
    constexpr const char* kFunction = "moe::WeightFormat";
    const bool is_plane = code == WeightCode::Planes, is_int = code == WeightCode::Int8 || code == WeightCode::Int4;
    const bool is_byte = code == WeightCode::Int8;
    if (is_plane ? bits < 1 || bits > 8 : is_byte ? bits < 0 || bits > 7 || bits == 4 : bits != 0)
      fail(kFunction, ": bits is ", bits, ", expected ",
           is_plane  ? "1 to 8 of planes"
           : is_byte ? "0 for all 8 of Int8, or 1 to 7 but for 4, which are Int4"
                     : "0, as there are no planes");
    if (has_zero_points && !is_int && !is_plane) fail(kFunction, ": zero points of floats, expected them of integers");
    const bool is_plain = code == WeightCode::Zeros || code == WeightCode::Bf16 || code == WeightCode::F16;
    const bool needs_scale = is_int || is_plane || code == WeightCode::E2M1;
    if (is_plain && scale != ScaleType::Unscaled) fail(kFunction, ": a scale of codes of 16 bits, expected none");
    if (needs_scale && scale == ScaleType::Unscaled)
      fail(kFunction, ": no scale, expected one for codes of 8 bits and fewer");
    if (group < 0 || group % 8 != 0 || (is_plane && group % 32 != 0))
      fail(kFunction, ": group is ", group, ", expected 0 or a positive multiple of ", is_plane ? 32 : 8);
    if (scale == ScaleType::Unscaled && group != 0)
      fail(kFunction, ": group is ", group, " without a scale, expected 0");
    if (is_plane && has_zero_points && (scale == ScaleType::E8M0 || scale == ScaleType::E4M3))
      fail(kFunction, ": offsets of 8 bits, expected scales of 16 bits or more");
  }

  /// "bf16", "int4-g32", "int3-zero-g128", "mxfp4", "fp8-g128", "fp8-plain" (no scale), "3bit-g64"; what named() reads.
  /// The type of the scale is not in it.
  std::string name() const {
    if (*this == mxfp4()) return "mxfp4";
    if (*this == nvfp4()) return "nvfp4";
    std::string result;
    switch (code) {
      case WeightCode::Zeros:
        return "none";
      case WeightCode::Bf16:
        return "bf16";
      case WeightCode::F16:
        return "f16";
      case WeightCode::E4M3:
        result = "fp8";
        break;
      case WeightCode::E5M2:
        result = "fp8-e5m2";
        break;
      case WeightCode::Int8:
        result = "int" + std::to_string(value_bits());
        break;
      case WeightCode::Int4:
        result = "int4";
        break;
      case WeightCode::E2M1:
        result = "e2m1";
        break;
      case WeightCode::Planes:
        result = std::to_string(bits) + "bit";
        break;
    }
    if (has_zero_points && code != WeightCode::Planes) result += "-zero";
    if (!has_zero_points && code == WeightCode::Planes) result += "-symmetric";
    return result + (scale == ScaleType::Unscaled ? "-plain" : "-g" + std::to_string(group));
  }

  /// The format of a name, with the defaults above for what it does not say: "int8", "fp8-g0" (a scale per output),
  /// "int4-zero-g128", "2bit". Throws std::invalid_argument for others.
  static WeightFormat named(std::string_view name) {
    const std::string_view whole = name;
    Index group = -1;
    if (const std::size_t at = name.rfind("-g"); at != name.npos) {
      const std::string_view digits = name.substr(at + 2);
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), group);
      if (error != std::errc{} || end != digits.data() + digits.size() || group < 0) unknown(whole);
      name = name.substr(0, at);
    }
    WeightFormat result = base(name, whole);
    if (group >= 0) result.group = group;
    result.validate();
    return result;
  }

  friend bool operator==(const WeightFormat&, const WeightFormat&) = default;

 private:
  [[noreturn]] static void unknown(std::string_view name) {
    fail("moe::WeightFormat::named: '", name,
         "', expected none, bf16, f16, fp8, fp8-e5m2, both also -plain, int1 to int8, each also -zero, mxfp4, "
         "nvfp4, or 1bit to 8bit "
         "with or without -symmetric, each with or without a group as in int4-g128");
  }
  static WeightFormat base(std::string_view name, std::string_view whole) {
    if (name == "none") return none();
    if (name == "bf16") return bf16();
    if (name == "f16") return f16();
    if (name == "fp8") return fp8();
    if (name == "fp8-e5m2") return fp8_e5m2();
    if (name == "fp8-plain") return fp8(0, ScaleType::Unscaled);
    if (name == "fp8-e5m2-plain") return fp8_e5m2(0, ScaleType::Unscaled);
    if (name.size() >= 4 && name.substr(0, 3) == "int" && name[3] >= '1' && name[3] <= '8') {
      if (name.size() == 4) return integers(name[3] - '0');
      if (name.substr(4) == "-zero") return integers(name[3] - '0').with_zero_points();
    }
    if (name == "mxfp4") return mxfp4();
    if (name == "nvfp4") return nvfp4();
    if (name == "e2m1") return {.code = WeightCode::E2M1, .scale = ScaleType::F16, .group = 32};
    if (name.size() >= 4 && name[0] >= '1' && name[0] <= '8' && name.substr(1, 3) == "bit") {
      if (name.size() == 4) return planes(name[0] - '0');
      if (name.substr(4) == "-symmetric") return planes(name[0] - '0').without_zero_points();
    }
    unknown(whole);
  }
};

}  // namespace moe::inline MOE_ABI
