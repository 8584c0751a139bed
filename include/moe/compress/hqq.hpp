// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include "moe/compress/round_groups.hpp"
#include "moe/compress/round_to_nearest.hpp"

namespace moe::inline MOE_ABI {

/// Half-quadratic quantisation as a Quantiser, without data: of every group the scale s stays and the zero point (the
/// offset of Planes) moves, so that sum |w - v|^p falls, p < 1: a few large errors count less than many. In units of s,
///   e = shrink((w - v) / s),  shrink(x) = sign(x) max(0, |x| - |x|^(p - 1) / beta)
/// is what counts as an outlier, and the zero point that of least squares for w - s e; beta grows by `growth` each
/// time. Without zero points the scale takes its place, also where zero points are integers and stay. What had the
/// least sum is kept, rounding to nearest among it: never worse than that. Two powers for each
/// weight and iteration, in parallel. Badri & Shaji, "Half-quadratic quantization of large machine learning models",
/// 2023 (mobiusml.github.io/hqq_blog).
struct Hqq {
  double p = 0.7;  ///< in (0, 2)
  double beta = 10, growth = 1.01;
  int iterations = 20;  ///< >= 0

  /// Throws std::invalid_argument for numbers out of range.
  void validate() const {
    constexpr const char* kFunction = "moe::Hqq";
    if (!(p > 0 && p < 2)) fail(kFunction, ": p is ", p, ", expected one between 0 and 2");
    if (!(beta > 0) || !(growth > 0) || std::isinf(beta) || std::isinf(growth))
      fail(kFunction, ": beta is ", beta, " and growth ", growth, ", expected finite numbers above 0");
    if (iterations < 0) fail(kFunction, ": iterations is ", iterations, ", expected at least 0");
  }
  /// Throws std::invalid_argument for numbers out of range, and as round_to_nearest().
  PanelMatrix<Quantised> operator()(const PanelMatrix<F32>& weights, const WeightFormat& format) const {
    validate();
    return detail::round_groups(weights, round_to_nearest(weights, format),
                                [&](const auto& group, const auto& start) { return best(group, start); });
  }

 private:
  double error(const detail::WeightGroup& group, const detail::GroupRounding& rounding) const {
    double sum = 0;
    for (const float w : group.weights)
      sum += std::pow(std::abs(static_cast<double>(w) - static_cast<double>(rounding.weight(rounding.code(w)))), p);
    return std::isfinite(sum) ? sum : std::numeric_limits<double>::infinity();
  }

  detail::GroupParameters best(const detail::WeightGroup& group, const detail::GroupParameters& start) const {
    detail::GroupParameters at = start, result = start;
    double least = error(group, group.rounding(start)), weight = beta;
    for (int i = 0; i < iterations && least > 0; ++i, weight *= growth) {
      const detail::GroupParameters next = moved(group, at, weight);
      if (next.scale == at.scale && next.zero == at.zero) break;
      at = next;
      const detail::GroupRounding rounding = group.rounding(at);
      if (!rounding.is_finite()) break;
      if (const double sum = error(group, rounding); sum < least) least = sum, result = at;
    }
    return result;
  }

  /// One step: outliers, then the parameters of least squares without them.
  detail::GroupParameters moved(const detail::WeightGroup& group, const detail::GroupParameters& at,
                                double weight) const {
    const WeightFormat& format = group.format;
    const detail::GroupRounding rounding = group.rounding(at);
    const double scale = rounding.scale();
    if (scale == 0) return at;
    double zero = 0, values = 0, squares = 0;
    for (const float w : group.weights) {
      const std::uint32_t code = rounding.code(w);
      const double x = (static_cast<double>(w) - static_cast<double>(rounding.weight(code))) / scale;
      const double shrunk = std::max(0.0, std::abs(x) - std::pow(std::abs(x), p - 1) / weight);
      const double kept = static_cast<double>(w) - scale * std::copysign(shrunk, x);
      const double value = static_cast<double>(detail::value_of_code(format, code));
      const double centred = format.code == WeightCode::Planes ? value : value - rounding.zero();
      zero += format.code == WeightCode::Planes ? kept - value * scale : value - kept / scale;
      const double reached = format.code == WeightCode::Planes ? kept - rounding.zero() : kept;
      values += centred * reached;
      squares += centred * centred;
    }
    detail::GroupParameters result = at;
    if (format.has_zero_points) {
      const double mean = zero / static_cast<double>(group.weights.size());
      const double half = std::ldexp(1.0, format.value_bits() - 1);  // zero points are such as the codes are
      result.zero = format.code == WeightCode::Planes
                        ? detail::stored_scale(format.scale, mean)
                        : static_cast<float>(std::clamp(std::nearbyint(mean), -half, half - 1));
      if (result.zero != at.zero) return result;
    }
    if (format.code != WeightCode::Planes || !format.has_zero_points)
      if (squares > 0)
        result.scale = detail::stored_scale(format.scale, values / squares / static_cast<double>(group.matrix_scale));
    return result;
  }
};

}  // namespace moe::inline MOE_ABI
