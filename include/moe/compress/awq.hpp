// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <vector>

#include "moe/compress/calibration.hpp"
#include "moe/compress/quantisation_report.hpp"
#include "moe/compress/round_groups.hpp"
#include "moe/compress/scale_hidden.hpp"
#include "moe/core/when_used.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Experts whose hidden unit i is t times as large where row i of what makes it is, bias included, for t > 0.
template <class E>
inline constexpr bool kScalesHidden = false;
template <class Act>
inline constexpr bool kScalesHidden<BasicGlu<F32, GatedBy<Act>>> = true;
template <>
inline constexpr bool kScalesHidden<BasicMlp<F32, Relu>> = true;
template <>
inline constexpr bool kScalesHidden<BasicMlp<F32, Identity>> = true;

}  // namespace detail

/// AWQ as a CalibratedQuantiser: weights that meet large inputs are to err less. Two halves:
/// * Scales. Hidden unit i becomes h_i / t_i and its column of `down` t_i times as large, t_i = (root mean square of
///   h_i)^alpha, alpha from a grid in [0, 1) by the error of the outputs of `down`. Of GLUs whose product is Act(g) u,
///   where the rows of the up projection are divided, and of MLPs with Relu. Here t_i is a power of two, so that the
///   expert of floats computes the same bits and its first matrix is rounded as before; without that, where a format
///   has no scales or they leave their range, nothing is scaled. (Before the first matrix stands, outside of the layer,
///   a norm that this library does not see.)
/// * Clipping. In each group of every matrix the largest weights may be cut, to the part of the range in `clip_steps`
///   steps down to `least_range` that errs least on what the group reads; an output that loses by it keeps its codes.
/// So on the calibration no matrix is worse than rounded to nearest. `grid` products of down with its inputs, and one
/// of every matrix. Lin et al., "AWQ: activation-aware weight quantization", MLSys 2024 (arXiv:2306.00978).
struct Awq {
  int grid = 20;             ///< exponents that are tried, >= 1: 0, 1 / grid, ...
  int clip_steps = 10;       ///< >= 0; 0: no clipping
  double least_range = 0.5;  ///< in (0, 1)

  /// Throws std::invalid_argument for numbers out of range.
  void validate() const {
    if (grid < 1 || clip_steps < 0 || !(least_range > 0 && least_range < 1))
      fail("moe::Awq: grid ", grid, ", clip_steps ", clip_steps, ", least_range ", least_range,
           ", expected at least 1, at least 0, and a number between 0 and 1");
  }

  /// Clipping. Throws std::invalid_argument as Gptq.
  template <class = detail::WhenUsed>
  PanelMatrix<Quantised> operator()(const PanelMatrix<F32>& weights, const WeightFormat& format,
                                    const SecondMoment& moment, MatrixReport&) const {
    validate();
    detail::require_calibrated("moe::Awq", weights, moment);
    const PanelMatrix<Quantised> nearest = round_to_nearest(weights, format);
    if (clip_steps == 0 || nearest.num_groups() == 0) return nearest;
    PanelMatrix<Quantised> clipped = detail::round_groups(
        weights, nearest, [&](const auto& group, const auto& start) { return clip(group, start, moment); });
    const std::vector<double> before = errors(weights, nearest, moment), after = errors(weights, clipped, moment);
    for (Index o = 0; o < weights.outputs(); ++o)
      if (!(after[static_cast<std::size_t>(o)] < before[static_cast<std::size_t>(o)])) copy_output(nearest, o, clipped);
    return clipped;
  }
  template <class = detail::WhenUsed>
  PanelMatrix<Quantised> operator()(const PanelMatrix<F32>& weights, const WeightFormat& format,
                                    const SecondMoment& moment) const {
    MatrixReport report;
    return (*this)(weights, format, moment, report);
  }

  /// The t of all hidden units of an expert, none where nothing is scaled; the exponent goes to `report`, that of down.
  template <class E>
  std::vector<float> hidden_scales(const E& expert, const WeightFormat& first_format, const WeightFormat& down_format,
                                   const ExpertStatistics& statistics, MatrixReport& report) const {
    if constexpr (!detail::kScalesHidden<E>) {
      return {};
    } else {
      validate();
      const SecondMoment& moment = statistics.hidden;
      detail::require_calibrated("moe::Awq", expert.down(), moment);
      double least = std::numeric_limits<double>::infinity();
      std::vector<float> best, last;
      for (int step = 0; step < grid; ++step) {
        std::vector<float> scales = powers_of_two(moment, static_cast<double>(step) / grid);
        if (scales == last) continue;
        const double error = error_of(expert.down(), down_format, moment, scales);
        if (error < least) least = error, best = scales, report.scaling = static_cast<double>(step) / grid;
        last = std::move(scales);
      }
      if (report.scaling > 0 && keeps_codes(detail::first_weight(expert), first_format, best)) return best;
      report.scaling = 0;
      return {};
    }
  }

 private:
  static constexpr Index kFullMoment = 128;  // groups up to here err by their whole moment, larger ones by its diagonal

  template <class = detail::WhenUsed>
  static std::vector<double> errors(const PanelMatrix<F32>& weights, const PanelMatrix<Quantised>& rounded,
                                    const SecondMoment& moment) {
    const PanelMatrix<F32> decoded = rounded.decoded();
    return detail::output_errors(weights.outputs(), moment, [&](Index o, Index i) {
      return static_cast<double>(weights(o, i)) - static_cast<double>(decoded(o, i));
    });
  }

  static void copy_output(const PanelMatrix<Quantised>& from, Index o, PanelMatrix<Quantised>& to) {
    for (Index g = 0; g < from.num_groups(); ++g) {
      to.set_scale(o, g, from.scale(o, g));
      if (from.format().has_zero_points) to.set_zero_point(o, g, from.zero_point(o, g));
    }
    for (Index i = 0; i < from.inputs(); ++i) to.set_code(o, i, from.code(o, i));
  }

  /// Error of the outputs of a group with given parameters.
  static double group_error(const detail::WeightGroup& group, const detail::GroupParameters& parameters,
                            const SecondMoment& moment, std::vector<double>& difference) {
    const detail::GroupRounding rounding = group.rounding(parameters);
    if (!rounding.is_finite()) return std::numeric_limits<double>::infinity();
    difference.clear();
    for (const float w : group.weights)
      difference.push_back(static_cast<double>(w) - static_cast<double>(rounding.weight(rounding.code(w))));
    const Index size = std::ssize(group.weights);
    double error = 0;
    for (Index i = 0; i < size; ++i) {
      double sum = 0;
      if (size <= kFullMoment)
        for (Index j = 0; j < i; ++j)
          sum += static_cast<double>(moment(group.first_input + i, group.first_input + j)) *
                 difference[static_cast<std::size_t>(j)];
      const double own = difference[static_cast<std::size_t>(i)];
      error += own * (2 * sum + static_cast<double>(moment(group.first_input + i, group.first_input + i)) * own);
    }
    return error;
  }

  detail::GroupParameters clip(const detail::WeightGroup& group, const detail::GroupParameters& start,
                               const SecondMoment& moment) const {
    std::vector<double> difference;
    std::vector<float> cut(group.weights.begin(), group.weights.end());
    const auto [least_weight, largest_weight] = std::ranges::minmax(group.weights);
    const auto [lo, hi] = range_of(group.format, least_weight, largest_weight);
    const double middle = 0.5 * (lo + hi), half = 0.5 * (hi - lo);
    const bool is_around_middle = group.format.code == WeightCode::Planes;
    detail::GroupParameters result = start;
    double least = group_error(group, start, moment, difference);
    for (int step = 1; step <= clip_steps; ++step) {
      const double part = 1 - (1 - least_range) * step / clip_steps;
      const double from = is_around_middle ? middle - part * half : part * lo;
      const double to = is_around_middle ? middle + part * half : part * hi;
      for (std::size_t i = 0; i < cut.size(); ++i)
        cut[i] = static_cast<float>(std::clamp(static_cast<double>(group.weights[i]), from, to));
      const detail::GroupParameters parameters = detail::GroupFit(group.format, group.matrix_scale, cut).best();
      if (const double error = group_error(group, parameters, moment, difference); error < least)
        least = error, result = parameters;
    }
    return result;
  }
  /// What the codes of a group span: around 0 without zero points, else with 0 in it, Planes as the weights do.
  static std::pair<double, double> range_of(const WeightFormat& format, float least, float largest) {
    const double lo = static_cast<double>(least), hi = static_cast<double>(largest);
    if (!format.has_zero_points) return {-std::max(std::abs(lo), std::abs(hi)), std::max(std::abs(lo), std::abs(hi))};
    if (format.code == WeightCode::Planes) return {lo, hi};
    return {std::min(0.0, lo), std::max(0.0, hi)};
  }

  /// (Root mean square)^alpha, around 1 and as powers of two; 1 for units that were always 0.
  static std::vector<float> powers_of_two(const SecondMoment& moment, double alpha) {
    double sum = 0;
    Index live = 0;
    for (Index i = 0; i < moment.dim(); ++i)
      if (moment.mean_square(i) > 0) sum += 0.5 * std::log2(moment.mean_square(i)), ++live;
    std::vector<float> scales(static_cast<std::size_t>(moment.dim()), 1);
    for (Index i = 0; i < moment.dim(); ++i)
      if (moment.mean_square(i) > 0) {
        const double exponent = alpha * (0.5 * std::log2(moment.mean_square(i)) - sum / static_cast<double>(live));
        scales[static_cast<std::size_t>(i)] =
            std::ldexp(1.0f, static_cast<int>(std::clamp(std::round(exponent), -8.0, 8.0)));
      }
    return scales;
  }

  /// Rounded to nearest, if the format can hold it.
  static std::optional<PanelMatrix<Quantised>> stored(const PanelMatrix<F32>& weights, const WeightFormat& format) {
    try {
      return round_to_nearest(weights, format);
    } catch (const std::invalid_argument&) {
      return std::nullopt;
    }
  }

  /// Infinite where the scaled matrix cannot be stored.
  template <class = detail::WhenUsed>
  static double error_of(const PanelMatrix<F32>& down, const WeightFormat& format, const SecondMoment& moment,
                         const std::vector<float>& scales) {
    PanelMatrix<F32> scaled = down;
    detail::scale_inputs(scaled, scales);
    const std::optional<PanelMatrix<Quantised>> rounded = stored(scaled, format);
    if (!rounded) return std::numeric_limits<double>::infinity();
    const std::vector<double> of_outputs = errors(scaled, *rounded, moment.scaled(detail::reciprocals(scales)));
    return std::accumulate(of_outputs.begin(), of_outputs.end(), 0.0);
  }

  /// Whether the first matrix rounds as before where the rows of its hidden units are divided.
  template <class = detail::WhenUsed>
  static bool keeps_codes(const PanelMatrix<F32>& first, const WeightFormat& format, const std::vector<float>& scales) {
    PanelMatrix<F32> scaled = first;
    detail::scale_outputs(scaled, detail::reciprocals(scales));
    const std::optional<PanelMatrix<Quantised>> before = stored(first, format), after = stored(scaled, format);
    if (!before || !after) return false;
    PanelMatrix<F32> rounded = after->decoded();
    detail::scale_outputs(rounded, scales);
    return std::ranges::equal(rounded.span(), before->decoded().span());
  }
};

}  // namespace moe::inline MOE_ABI
