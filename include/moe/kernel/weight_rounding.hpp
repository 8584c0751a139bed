// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "moe/core/small_float.hpp"
#include "moe/kernel/weight_format.hpp"

// Codes and scales of a group of weights, each weight rounded to the nearest that its scale allows.
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
    case ScaleType::None:
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
    case ScaleType::None:
      break;
  }
  return 0;
}
inline float stored_scale(ScaleType type, double scale) { return scale_of_bits(type, bits_of_scale(type, scale)); }

/// The number that a code stands for, before its scale.
inline float value_of_code(const WeightFormat& format, std::uint32_t code) {
  switch (format.code) {
    case WeightCode::Bf16:
      return bfloat_to_float(static_cast<std::uint16_t>(code));
    case WeightCode::F16:
      return half_to_float(static_cast<std::uint16_t>(code));
    case WeightCode::E4M3:
      return kFloatOfCode<E4M3>[code];
    case WeightCode::E5M2:
      return kFloatOfCode<E5M2>[code];
    case WeightCode::Int8:
      return static_cast<float>(static_cast<std::int8_t>(code));
    case WeightCode::Int4:
      return static_cast<float>(code < 8 ? static_cast<int>(code) : static_cast<int>(code) - 16);
    case WeightCode::E2M1:
      return kFloatOfE2M1[code];
    case WeightCode::Planes:
      return static_cast<float>(code) - 0.5f * static_cast<float>((1 << format.bits) - 1);
    case WeightCode::None:
      break;
  }
  return 0;
}

/// The code whose value is nearest to `x`, ties to even; what is too large gets the largest.
inline std::uint32_t nearest_code(const WeightFormat& format, double x) {
  const auto small = [&]<class F>(F) {
    constexpr auto kLargest = static_cast<double>(small_to_float<F>(F::kOverflow - 1));
    return double_to_small<F>(std::isnan(x) ? x : std::clamp(x, -kLargest, kLargest));
  };
  const auto integer = [&](int bits) {
    const double limit = std::ldexp(1.0, bits - 1);
    const auto q = static_cast<int>(std::clamp(std::nearbyint(x), -limit, limit - 1));
    return static_cast<std::uint32_t>(q) & ((1u << bits) - 1);
  };
  switch (format.code) {
    case WeightCode::Bf16:
      return double_to_small<Bfloat>(x);
    case WeightCode::F16:
      return double_to_small<Half>(x);
    case WeightCode::E4M3:
      return small(E4M3{});
    case WeightCode::E5M2:
      return small(E5M2{});
    case WeightCode::Int8:
      return integer(8);
    case WeightCode::Int4:
      return integer(4);
    case WeightCode::E2M1: {
      std::uint32_t code = 0;
      const double magnitude = std::abs(x);
      // Halfway the even code wins: the upper one where that is even.
      for (std::uint32_t next = 1; next < 8; ++next) {
        const double middle =
            0.5 * (static_cast<double>(kFloatOfE2M1[next - 1]) + static_cast<double>(kFloatOfE2M1[next]));
        if (magnitude > middle || (magnitude == middle && next % 2 == 0)) code = next;
      }
      return std::signbit(x) ? code | 8u : code;
    }
    case WeightCode::Planes: {
      const double most = static_cast<double>((1 << format.bits) - 1);
      return static_cast<std::uint32_t>(std::clamp(std::nearbyint(x + 0.5 * most), 0.0, most));
    }
    case WeightCode::None:
      break;
  }
  return 0;
}

/// The largest value of a code.
inline double largest_code(WeightCode code) {
  return code == WeightCode::E4M3 ? 448 : code == WeightCode::E5M2 ? 57344 : code == WeightCode::E2M1 ? 6 : 1;
}

/// A scale and a zero point as they are stored.
struct GroupParameters {
  float scale = 1, zero = 0;
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
    const double most = std::max(std::abs(lo_), std::abs(hi_));
    GroupParameters best{.scale = 0};
    double least = std::numeric_limits<double>::infinity();
    const auto consider = [&](double scale, double zero = 0) {
      const ScaleType type = format_.scale;
      const GroupParameters stored{stored_scale(type, scale / static_cast<double>(matrix_scale_)),
                                   format_.code == WeightCode::Planes && format_.has_zero_points
                                       ? stored_scale(type, zero)
                                       : static_cast<float>(zero)};
      const double error = squared_error(stored);
      if (error < least || least == std::numeric_limits<double>::infinity()) best = stored, least = error;
    };
    const int bits = format_.code_bits();
    const double levels = std::ldexp(1.0, bits) - 1;
    switch (format_.code) {
      case WeightCode::Int8:
      case WeightCode::Int4:
        if (format_.has_zero_points) {  // the range holds 0
          const double lo = std::min(0.0, lo_), hi = std::max(0.0, hi_), scale = hi > lo ? (hi - lo) / levels : 1;
          consider(scale, std::clamp(std::nearbyint(-lo / scale), 0.0, levels) - std::ldexp(1.0, bits - 1));
        } else {  // the largest becomes the most negative code, or both ends count the same
          consider(most / std::ldexp(1.0, bits - 1) * (hi_ == most ? -1 : 1));
          consider(most / (std::ldexp(1.0, bits - 1) - 1));
        }
        break;
      case WeightCode::Planes:
        planes(consider, most, levels);
        break;
      case WeightCode::E4M3:
      case WeightCode::E5M2:
      case WeightCode::E2M1: {
        const double scale = most / largest_code(format_.code);
        if (format_.scale == ScaleType::E8M0) {  // the powers of two around it
          const double below = std::exp2(std::floor(std::log2(std::max(scale, 0x1p-127))));
          consider(below);
          consider(2 * below);
        } else {
          consider(scale);
        }
        break;
      }
      default:
        consider(1);
    }
    return best;
  }

  /// Of a weight with such parameters.
  std::uint32_t code(float weight, const GroupParameters& parameters) const {
    const double scale = whole_scale(parameters), zero = static_cast<double>(parameters.zero);
    const double w = static_cast<double>(weight);
    if (format_.scale == ScaleType::None) return nearest_code(format_, w);
    if (scale == 0) return nearest_code(format_, 0);
    if (format_.code == WeightCode::Planes) return nearest_code(format_, (w - zero) / scale);
    return nearest_code(format_, w / scale + zero);
  }

 private:
  double whole_scale(const GroupParameters& parameters) const {
    return static_cast<double>(parameters.scale) *
           (format_.scale == ScaleType::E4M3 ? static_cast<double>(matrix_scale_) : 1.0);
  }

  template <class Consider>
  void planes(const Consider& consider, double most, double levels) const {
    const auto count = static_cast<double>(weights_.size());
    const bool has_offset = format_.has_zero_points;
    if (format_.bits == 1) {  // w = offset +- scale / 2: the mean, and twice the mean distance from it
      const double offset = has_offset ? sum_ / count : 0;
      double distance = 0;
      for (const float w : weights_) distance += std::abs(static_cast<double>(w) - offset);
      consider(2 * distance / count, offset);
    } else if (has_offset) {
      consider((hi_ - lo_) / levels, 0.5 * (lo_ + hi_));
    } else {
      consider(2 * most / levels);
    }
  }

  double squared_error(const GroupParameters& parameters) const {
    const double scale = whole_scale(parameters), zero = static_cast<double>(parameters.zero);
    if (!std::isfinite(scale)) return std::numeric_limits<double>::infinity();
    double error = 0;
    for (const float w : weights_) {
      const double value = static_cast<double>(value_of_code(format_, code(w, parameters)));
      const double rounded = format_.code == WeightCode::Planes ? value * scale + zero : (value - zero) * scale;
      error += (rounded - static_cast<double>(w)) * (rounded - static_cast<double>(w));
    }
    return error;
  }

  const WeightFormat& format_;
  float matrix_scale_;
  std::span<const float> weights_;
  double lo_ = std::numeric_limits<double>::infinity(), hi_ = -std::numeric_limits<double>::infinity(), sum_ = 0;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
