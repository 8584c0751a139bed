// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include "moe/core/simd_batch.hpp"
#include "moe/core/small_float.hpp"
#include "moe/kernel/weight_format.hpp"

// Codes and scales of a group of weights, each weight rounded to the nearest that its scale allows.
// Long, as what a code stands for, the nearest code and the scale of a group belong to each format together.
namespace moe::inline MOE_ABI {

namespace detail {

/// A stored scale as a float, and the nearest stored one.
inline float scale_of_bits(ScaleType type, std::uint32_t bits) {
  switch (type) {
    case ScaleType::F32:
      return std::bit_cast<float>(bits);
    case ScaleType::F16:
      return half_to_float(static_cast<std::uint16_t>(bits));
    case ScaleType::Bf16:
      return bfloat_to_float(static_cast<std::uint16_t>(bits));
    case ScaleType::E8M0:
      return e8m0_to_float(static_cast<std::uint8_t>(bits));
    case ScaleType::E4M3:
      return kFloatOfCode<E4M3>[bits];
    case ScaleType::Unscaled:
      break;
  }
  return 1;
}
inline std::uint32_t bits_of_scale(ScaleType type, double scale) {
  switch (type) {
    case ScaleType::F32:
      return std::bit_cast<std::uint32_t>(static_cast<float>(scale));
    case ScaleType::F16:
      return double_to_small<Half>(scale);
    case ScaleType::Bf16:
      return double_to_small<Bfloat>(scale);
    case ScaleType::E8M0:
      if (!(scale >= 0) || std::isinf(scale)) return 255;
      if (scale == 0) return 0;
      return static_cast<std::uint32_t>(std::clamp(127 + static_cast<int>(std::lround(std::log2(scale))), 0, 254));
    case ScaleType::E4M3:
      return double_to_small<E4M3>(scale);
    case ScaleType::Unscaled:
      break;
  }
  return 0;
}
inline float stored_scale(ScaleType type, double scale) { return scale_of_bits(type, bits_of_scale(type, scale)); }

/// f(std::integral_constant<WeightCode, code>{}): loops over weights are compiled for a kind of code.
template <class F>
auto with_code(WeightCode code, const F& f) {
  switch (code) {
    case WeightCode::Bf16:
      return f(std::integral_constant<WeightCode, WeightCode::Bf16>{});
    case WeightCode::F16:
      return f(std::integral_constant<WeightCode, WeightCode::F16>{});
    case WeightCode::E4M3:
      return f(std::integral_constant<WeightCode, WeightCode::E4M3>{});
    case WeightCode::E5M2:
      return f(std::integral_constant<WeightCode, WeightCode::E5M2>{});
    case WeightCode::Int8:
      return f(std::integral_constant<WeightCode, WeightCode::Int8>{});
    case WeightCode::Int4:
      return f(std::integral_constant<WeightCode, WeightCode::Int4>{});
    case WeightCode::E2M1:
      return f(std::integral_constant<WeightCode, WeightCode::E2M1>{});
    case WeightCode::Planes:
      return f(std::integral_constant<WeightCode, WeightCode::Planes>{});
    case WeightCode::Zeros:
      break;
  }
  return f(std::integral_constant<WeightCode, WeightCode::Zeros>{});
}

/// The number that a code stands for, before its scale; `bits` are WeightFormat::bits.
template <WeightCode kCode>
float value_as(int bits, std::uint32_t code) {
  if constexpr (kCode == WeightCode::Bf16) return bfloat_to_float(static_cast<std::uint16_t>(code));
  if constexpr (kCode == WeightCode::F16) return half_to_float(static_cast<std::uint16_t>(code));
  if constexpr (kCode == WeightCode::E4M3) return kFloatOfCode<E4M3>[code];
  if constexpr (kCode == WeightCode::E5M2) return kFloatOfCode<E5M2>[code];
  if constexpr (kCode == WeightCode::Int8) return static_cast<float>(static_cast<std::int8_t>(code));
  if constexpr (kCode == WeightCode::Int4)
    return static_cast<float>(code < 8 ? static_cast<int>(code) : static_cast<int>(code) - 16);
  if constexpr (kCode == WeightCode::E2M1) return kFloatOfE2M1[code];
  if constexpr (kCode == WeightCode::Planes)
    return static_cast<float>(code) - 0.5f * static_cast<float>((1 << bits) - 1);
  return 0;
}
inline float value_of_code(const WeightFormat& format, std::uint32_t code) {
  return with_code(format.code, [&](auto kind) { return value_as<kind>(format.bits, code); });
}

/// The nearest integer from `least` to `most`, ties to even; |x| < 2^51, or what is nearest to it in the range.
inline int nearest_integer(double x, double least, double most) {
  constexpr double kMagic = 0x1.8p52;  // whose unit is 1: adding it rounds, without a call
  const double rounded = std::clamp(x, least, most) + kMagic;
  return static_cast<int>(rounded - kMagic);
}

/// The code whose value is nearest to `x`, ties to even; what is too large gets the largest.
template <WeightCode kCode>
std::uint32_t nearest_as(int bits, double x) {
  const auto within = [&]<class F>(F) {
    constexpr auto kLargest = static_cast<double>(small_to_float<F>(F::kOverflow - 1));
    return double_to_small<F>(std::isnan(x) ? x : std::clamp(x, -kLargest, kLargest));
  };
  if constexpr (kCode == WeightCode::Bf16) return double_to_small<Bfloat>(x);
  if constexpr (kCode == WeightCode::F16) return double_to_small<Half>(x);
  if constexpr (kCode == WeightCode::E4M3) return within(E4M3{});
  if constexpr (kCode == WeightCode::E5M2) return within(E5M2{});
  if constexpr (kCode == WeightCode::Int8) {
    const double half = bits == 0 ? 128 : static_cast<double>(1 << (bits - 1));
    return static_cast<std::uint32_t>(nearest_integer(x, -half, half - 1)) & 255u;
  }
  if constexpr (kCode == WeightCode::Int4) return static_cast<std::uint32_t>(nearest_integer(x, -8, 7)) & 15u;
  if constexpr (kCode == WeightCode::E2M1) {
    // Twice the value is an integer up to 4; above, 6, 8 and 12. Halfway the even code wins.
    const double magnitude = std::abs(x);
    std::uint32_t code = 7;
    if (magnitude <= 1.75)
      code = static_cast<std::uint32_t>(nearest_integer(2 * magnitude, 0, 4));
    else if (magnitude <= 3.5)
      code = magnitude <= 2.5 ? 4 : magnitude < 3.5 ? 5 : 6;
    else if (magnitude <= 5)
      code = 6;
    return std::signbit(x) ? code | 8u : code;
  }
  if constexpr (kCode == WeightCode::Planes) {
    const double most = static_cast<double>((1 << bits) - 1);
    return static_cast<std::uint32_t>(nearest_integer(x + 0.5 * most, 0, most));
  }
  return 0;
}
inline std::uint32_t nearest_code(const WeightFormat& format, double x) {
  return with_code(format.code, [&](auto kind) { return nearest_as<kind>(format.bits, x); });
}

/// The largest value of a code.
inline double largest_code(const WeightFormat& format) {
  switch (format.code) {
    case WeightCode::E4M3:
      return 448;
    case WeightCode::E5M2:
      return 57344;
    case WeightCode::E2M1:
      return 6;
    case WeightCode::Int8:
      return std::max(1.0, std::ldexp(1.0, format.value_bits() - 1) - 1);  // of one bit: -1 and 0
    case WeightCode::Int4:
      return 7;
    case WeightCode::Planes:
      return 0.5 * (std::ldexp(1.0, format.bits) - 1);
    default:
      return 1;
  }
}

/// A scale and a zero point as they are stored.
struct GroupParameters {
  float scale = 1, zero = 0;
};

/// What a code is as a weight: its value, scale and zero point as PanelMatrix<Quantised> has them, rounded once.
inline float weight_of_value(const WeightFormat& format, float value, float scale, float zero) {
  if (format.scale == ScaleType::Unscaled) return value;
  if (!format.has_zero_points) return value * scale;
  if (format.code == WeightCode::Planes) return simd::fma(value, scale, zero);
  return (value - zero) * scale;
}

/// What all scales are multiplied with where they are stored as E4M3, by the largest weight of the matrix: the largest
/// scale of a group becomes the largest E4M3. Else 1.
inline float matrix_scale_of(const WeightFormat& format, float largest) {
  if (format.scale != ScaleType::E4M3) return 1;
  const double scale = static_cast<double>(largest) / (448 * largest_code(format));
  return scale > 0 ? std::max(static_cast<float>(scale), 0x1p-126f) : 1;
}

/// The codes of a group with given parameters, and the weights that they are.
class GroupRounding {
 public:
  GroupRounding(const WeightFormat& format, float matrix_scale, const GroupParameters& parameters)
      : format_(format), parameters_(parameters) {
    if (format.scale != ScaleType::E4M3) return;
    scale_ = static_cast<double>(parameters.scale) * static_cast<double>(matrix_scale);
    parameters_.scale = parameters.scale * matrix_scale;
  }

  bool is_finite() const { return std::isfinite(scale_) && std::isfinite(parameters_.zero); }
  /// The step between weights of neighbouring codes, where codes are integers.
  double scale() const { return scale_; }
  double zero() const { return static_cast<double>(parameters_.zero); }

  /// The code that is nearest to a weight.
  template <WeightCode kCode>
  std::uint32_t code_as(double w) const {
    if (format_.scale == ScaleType::Unscaled) return nearest_as<kCode>(format_.bits, w);
    if (scale_ == 0) return nearest_as<kCode>(format_.bits, 0);
    if constexpr (kCode == WeightCode::Planes) return nearest_as<kCode>(format_.bits, (w - zero()) / scale_);
    return nearest_as<kCode>(format_.bits, w / scale_ + zero());
  }
  std::uint32_t code(double w) const {
    return with_code(format_.code, [&](auto kind) { return code_as<kind>(w); });
  }
  /// What PanelMatrix<Quantised>::get() makes of it.
  float weight(std::uint32_t code) const {
    return weight_of_value(format_, value_of_code(format_, code), parameters_.scale, parameters_.zero);
  }

 private:
  WeightFormat format_;
  GroupParameters parameters_;
  double scale_ = static_cast<double>(parameters_.scale);
};

/// Which scale a group gets, by the range of its weights: of candidates the one with the least squared error.
class GroupFit {
 public:
  GroupFit(const WeightFormat& format, float matrix_scale, std::span<const float> weights)
      : format_(format), matrix_scale_(matrix_scale), weights_(weights) {
    for (const float w : weights) {
      lo_ = std::min(lo_, static_cast<double>(w));
      hi_ = std::max(hi_, static_cast<double>(w));
      sum_ += w;
    }
  }

  GroupParameters best() const {
    if (weights_.empty()) return {};
    const bool is_int = format_.code == WeightCode::Int8 || format_.code == WeightCode::Int4;
    // There are two candidates, or more.
    const bool compares = (is_int && !format_.has_zero_points) || format_.scale == ScaleType::E8M0;
    GroupParameters best{.scale = 0};
    double least = std::numeric_limits<double>::infinity();
    bool is_first = true;
    // zero_of(scale) for the scale as it is, before it is stored.
    const auto consider_one = [&](double scale, const auto& zero_of) {
      const double zero = zero_of(scale);
      const bool is_offset = format_.code == WeightCode::Planes && format_.has_zero_points;
      const GroupParameters stored{stored_scale(format_.scale, scale / static_cast<double>(matrix_scale_)),
                                   is_offset ? stored_scale(format_.scale, zero) : static_cast<float>(zero)};
      const double error = compares ? squared_error(stored) : 0;
      if (error < least || is_first) best = stored, least = error;
      is_first = false;
    };
    const auto consider = [&](double scale, const auto& zero_of) {
      if (format_.scale != ScaleType::E8M0) return consider_one(scale, zero_of);
      const double below = std::exp2(std::floor(std::log2(std::max(std::abs(scale), 0x1p-127))));
      consider_one(below, zero_of);  // the powers of two around it
      consider_one(2 * below, zero_of);
    };
    candidates(consider);
    return best;
  }

  /// The codes of all weights with such parameters.
  void codes(const GroupParameters& parameters, std::uint32_t* to) const {
    const GroupRounding rounding(format_, matrix_scale_, parameters);
    with_code(format_.code, [&](auto kind) {
      for (const float w : weights_) *to++ = rounding.code_as<kind>(static_cast<double>(w));
    });
  }

 private:
  /// Calls consider(scale, zero_of) with the scales that the range of the weights suggests.
  template <class Consider>
  void candidates(const Consider& consider) const {
    const auto no_zero = [](double) { return 0.0; };
    const double most = std::max(std::abs(lo_), std::abs(hi_));
    const int bits = format_.value_bits();
    const double levels = std::ldexp(1.0, bits) - 1, half = std::ldexp(1.0, bits - 1);
    switch (format_.code) {
      case WeightCode::Int8:
      case WeightCode::Int4:
        if (format_.has_zero_points) {  // the range holds 0
          const double lo = std::min(0.0, lo_), hi = std::max(0.0, hi_);
          return consider(hi > lo ? (hi - lo) / levels : 1,
                          [&](double scale) { return std::clamp(std::nearbyint(-lo / scale), 0.0, levels) - half; });
        }
        // The largest becomes the most negative code, or both ends count the same.
        consider(most / half * (hi_ == most ? -1 : 1), no_zero);
        if (half > 1) consider(most / (half - 1), no_zero);
        return;
      case WeightCode::Planes:
        return planes(consider, most, levels);
      case WeightCode::E4M3:
      case WeightCode::E5M2:
      case WeightCode::E2M1:
        return consider(most / largest_code(format_), no_zero);
      default:
        return consider(1, no_zero);
    }
  }

  template <class Consider>
  void planes(const Consider& consider, double most, double levels) const {
    const auto count = static_cast<double>(weights_.size());
    const bool has_offset = format_.has_zero_points;
    if (format_.bits == 1) {  // w = offset +- scale / 2: the mean, and twice the mean distance from it
      const double offset = has_offset ? sum_ / count : 0;
      double distance = 0;
      for (const float w : weights_) distance += std::abs(static_cast<double>(w) - offset);
      consider(2 * distance / count, [&](double) { return offset; });
    } else if (has_offset) {
      consider((hi_ - lo_) / levels, [&](double) { return 0.5 * (lo_ + hi_); });
    } else {
      consider(2 * most / levels, [](double) { return 0.0; });
    }
  }

  double squared_error(const GroupParameters& parameters) const {
    const GroupRounding rounding(format_, matrix_scale_, parameters);
    const double scale = rounding.scale(), zero = rounding.zero();
    if (!std::isfinite(scale)) return std::numeric_limits<double>::infinity();
    return with_code(format_.code, [&](auto kind) {
      double error = 0;
      for (const float w : weights_) {
        const auto value =
            static_cast<double>(value_as<kind>(format_.bits, rounding.code_as<kind>(static_cast<double>(w))));
        const double rounded = kind == WeightCode::Planes ? value * scale + zero : (value - zero) * scale;
        error += (rounded - static_cast<double>(w)) * (rounded - static_cast<double>(w));
      }
      return error;
    });
  }

  const WeightFormat& format_;
  float matrix_scale_;
  std::span<const float> weights_;
  double lo_ = std::numeric_limits<double>::infinity(), hi_ = -std::numeric_limits<double>::infinity(), sum_ = 0;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
