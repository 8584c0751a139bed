// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/core/overlap.hpp"
#include "moe/numeric/log_sum_exp.hpp"

// Long, as the peaks of a curve, the targets made of them and the losses of bags are one method.
namespace moe::inline MOE_ABI {

/// A peak of a curve: the steps [first, last], more than one on a plateau, that no step beside them exceeds.
struct Peak {
  Index first = 0, last = 0;
  double height = 0;
  double prominence = 0;  ///< height less the higher of the two valleys
  double half_width = 0;  ///< from the plateau to where the curve falls to height - prominence / 2, longer side
  Index run = 0;          ///< steps from the plateau on that do not rise, shorter side; >= 1
};

struct PeakOptions {
  double prominence = 0.2;  ///< a peak has more than that; >= 0
  Index neighbours = 2;     ///< steps on either side that a peak is not below; >= 1

  /// Throws std::invalid_argument for a number out of range.
  void validate(const char* function) const {
    if (!(prominence >= 0 && std::isfinite(prominence)))
      fail(function, ": prominence is ", prominence, ", expected a finite number of at least 0");
    if (neighbours < 1) fail(function, ": neighbours is ", neighbours, ", expected at least 1");
  }
};

/// The deviation of a kernel around a peak; d is the distance from the plateau, s the score.
///   HalfWidth  half_width / sqrt(2 ln 2), at least 0.8: that of a Gaussian as wide; over d <= 2 half_width, at least 2
///   ScoreStd   that of the scores in the window d <= run, as the paper has it, so a number of scores, not of steps:
///              the kernel is nearly the peak alone; where s >= height - deviation
///   Moment     sqrt(sum s d^2 / sum s) in the window d <= run, and over it
enum class SplatWidth { HalfWidth, ScoreStd, Moment };

struct SplatOptions {
  SplatWidth width = SplatWidth::HalfWidth;
  PeakOptions peaks = {};
};

namespace detail {

inline void require_curve(const char* function, std::span<const double> curve) {
  constexpr double kMost = std::numeric_limits<double>::max() / 4;  // so that differences are finite
  for (std::size_t t = 0; t < curve.size(); ++t)
    if (!(std::abs(curve[t]) <= kMost))
      fail(function, ": step ", t, " of the curve is ", curve[t], ", expected a number of magnitude <= ", kMost);
}

/// What lies on one side of a plateau, from step `from` on in direction `by`, -1 or 1.
class PeakSide {
 public:
  PeakSide(std::span<const double> curve, Index from, Index by) : curve_(curve), from_(from), by_(by) {}

  /// The least value before a higher one or the end; `height` itself at the end, where there is none.
  double valley(double height) const {
    double least = height;
    for (Index i = from_ + by_; inside(i) && at(i) <= height; i += by_) least = std::min(least, at(i));
    return least;
  }
  /// Steps, with a part of one, to where the curve crosses `level`; at most to where it is down at `bottom`, which it
  /// reaches and `level`, above it, may have been rounded to.
  double crossing(double level, double bottom) const {
    Index i = from_ + by_;
    while (at(i) > bottom && at(i) >= level) i += by_;
    const double inner = at(i - by_), outer = at(i);
    return static_cast<double>(std::abs(i - from_)) - std::clamp((level - outer) / (inner - outer), 0.0, 1.0);
  }
  Index run() const {
    Index steps = 0;
    for (Index i = from_ + by_; inside(i) && at(i) <= at(i - by_); i += by_) ++steps;
    return steps;
  }

 private:
  bool inside(Index i) const { return i >= 0 && i < std::ssize(curve_); }
  double at(Index i) const { return curve_[static_cast<std::size_t>(i)]; }

  std::span<const double> curve_;
  Index from_, by_;
};

}  // namespace detail

/// Peaks of a curve in their order: plateaus (mostly of one step) that are not exceeded within `neighbours` steps and
/// whose topographic prominence is above that of the options: their height less the higher of the least values that one
/// meets on either side before a higher step or the end. A plateau at an end has no valley there and is none.
///   curve  [T], of magnitudes up to a quarter of the largest finite number; T >= 0
/// Throws std::invalid_argument for other numbers. O(T) per plateau. A pure function.
inline std::vector<Peak> find_peaks(std::span<const double> curve, const PeakOptions& options = {}) {
  constexpr const char* kName = "moe::find_peaks";
  options.validate(kName);
  detail::require_curve(kName, curve);
  const auto at = [&](Index t) { return curve[static_cast<std::size_t>(t)]; };
  const Index reach = std::min<Index>(options.neighbours, std::ssize(curve));
  std::vector<Peak> peaks;
  for (Index first = 0, last = 0; first < std::ssize(curve); first = last + 1) {
    for (last = first; last + 1 < std::ssize(curve) && at(last + 1) == at(first);) ++last;
    const double height = at(first);
    bool highest = true;
    for (Index t = std::max<Index>(0, first - reach); t < std::min<Index>(std::ssize(curve), last + reach + 1); ++t)
      highest = highest && at(t) <= height;
    if (!highest) continue;
    const detail::PeakSide left(curve, first, -1), right(curve, last, 1);
    const double valley = std::max(left.valley(height), right.valley(height)), prominence = height - valley;
    if (!(prominence > options.prominence)) continue;
    const double half = valley + (height / 2 - valley / 2);
    peaks.push_back({.first = first,
                     .last = last,
                     .height = height,
                     .prominence = prominence,
                     .half_width = std::max(left.crossing(half, valley), right.crossing(half, valley)),
                     .run = std::min(left.run(), right.run())});
  }
  return peaks;
}

namespace detail {

/// Deviation, reach and least score of the kernel of a peak.
struct SplatKernel {
  double deviation = 0, reach = 0, least = -1;

  SplatKernel(std::span<const double> scores, const Peak& peak, SplatWidth width) {
    if (width == SplatWidth::HalfWidth) {
      deviation = std::max(0.8, peak.half_width / std::sqrt(2 * std::log(2.0)));
      reach = 2 * std::max(1.0, peak.half_width);
      return;
    }
    reach = static_cast<double>(peak.run);
    double count = 0, sum = 0, moment = 0, squares = 0;
    const auto in_window = [&](const auto& use) {
      for (Index t = std::max<Index>(0, peak.first - peak.run);
           t < std::min<Index>(std::ssize(scores), peak.last + peak.run + 1); ++t)
        use(scores[static_cast<std::size_t>(t)], distance(peak, t));
    };
    in_window([&](double s, double d) { count += 1, sum += s, moment += s * d * d; });
    in_window([&](double s, double) { squares += (s - sum / count) * (s - sum / count); });
    deviation = std::sqrt(width == SplatWidth::Moment ? moment / sum : squares / (count - 1));
    if (width == SplatWidth::ScoreStd) least = peak.height - deviation;
  }

  static double distance(const Peak& peak, Index t) {
    return static_cast<double>(std::max<Index>({peak.first - t, t - peak.last, 0}));
  }
  double operator()(const Peak& peak, Index t, double score) const {
    const double d = distance(peak, t);
    if (d == 0) return 1;
    return d > reach || score < least || deviation == 0 ? 0 : std::exp(-d * d / (2 * deviation * deviation));
  }
};

}  // namespace detail

/// Soft targets of the steps of a positive bag: a Gaussian kernel around each peak of its scores, added up and cut
/// at 1. 1 at every peak, and the more of its flanks the wider it is: what a loss over the k best steps never teaches.
///   scores  [T], in [0, 1]      result  [T], in [0, 1]; empty where there is no peak, and so nothing to say
/// Symmetric in time; with HalfWidth a constant added to the scores changes nothing. Throws std::invalid_argument for
/// other numbers. O(T) per peak. D'Amicantonio et al., "Mixture of experts guided by Gaussian splatters matters: a new
/// approach to weakly-supervised video anomaly detection", ICCV 2025 (arXiv:2508.06318), eq. 4 to 6 with ScoreStd.
inline std::vector<double> splat_scores(std::span<const double> scores, const SplatOptions& options = {}) {
  constexpr const char* kName = "moe::splat_scores";
  for (std::size_t t = 0; t < scores.size(); ++t)
    if (!(scores[t] >= 0 && scores[t] <= 1))
      fail(kName, ": score of step ", t, " is ", scores[t], ", expected a number in [0, 1]");
  const std::vector<Peak> peaks = find_peaks(scores, options.peaks);
  std::vector<double> targets(peaks.empty() ? 0 : scores.size());
  for (const Peak& peak : peaks) {
    const detail::SplatKernel kernel(scores, peak, options.width);
    for (std::size_t t = 0; t < targets.size(); ++t)
      targets[t] = std::min(1.0, targets[t] + kernel(peak, static_cast<Index>(t), scores[t]));
  }
  return targets;
}

/// Which rows of a batch are the steps of which bag, one bag after the other, and which bags have something in them.
struct Bags {
  std::span<const Index> sizes;          ///< >= 0, their sum is the number of rows
  std::span<const std::uint8_t> labels;  ///< as many: 1 where some step is positive, 0 where none is

  /// Throws std::invalid_argument unless this fits so many rows.
  void validate(const char* function, Index num_rows) const {
    if (labels.size() != sizes.size())
      fail(function, ": bags have ", labels.size(), " labels, expected ", sizes.size(), " as there are sizes");
    Index sum = 0;
    for (std::size_t b = 0; b < sizes.size(); ++b) {
      if (sizes[b] < 0) fail(function, ": size of bag ", b, " is ", sizes[b], ", expected at least 0");
      if (labels[b] > 1) fail(function, ": label of bag ", b, " is ", int{labels[b]}, ", expected 0 or 1");
      if (sizes[b] > num_rows - sum)
        fail(function, ": sizes of bags sum to more at bag ", b, ", expected the number of rows = ", num_rows);
      sum += sizes[b];
    }
    if (sum != num_rows) fail(function, ": sizes of bags sum to ", sum, ", expected the number of rows = ", num_rows);
  }
  /// Bags that are not empty.
  Index num_filled() const { return std::ssize(sizes) - std::ranges::count(sizes, Index{0}); }
};

namespace detail {

/// log(1 / (1 + exp(-z))).
inline double log_sigmoid(double z) { return z < 0 ? z - std::log1p(std::exp(z)) : -std::log1p(std::exp(-z)); }

template <class S>
void require_bags(const char* function, const ConstMatrixRef<S>& logits, const Bags& bags) {
  require_shape(function, "logits", logits, logits.rows(), 1);
  bags.validate(function, logits.rows());
  for (Index t = 0; t < logits.rows(); ++t)
    if (!std::isfinite(logits(t, 0)))
      fail(function, ": logit of row ", t, " is ", logits(t, 0), ", expected finite numbers");
}

/// use(first row, bag) for the bags that are not empty.
template <class Use>
void for_each_bag(const Bags& bags, const Use& use) {
  Index first = 0;
  for (std::size_t b = 0; b < bags.sizes.size(); first += bags.sizes[b++])
    if (bags.sizes[b] > 0) use(first, b);
}

}  // namespace detail

/// Loss of multiple-instance learning, of which only the labels of whole bags are known: mean over the bags of
///   -log p where the label is 1, -log(1 - p) where it is 0,   p = mean of the k largest sigmoid(logit) of the bag
/// with k = max(1, size / steps_per_instance); of equal logits the first count. Empty bags do not count; no bag: 0.
///   logits   [rows, 1], finite      dlogits  [rows, 1], overwritten (resized), zero but for the k of each bag
/// Finite however large the logits, as it is summed in logarithms. Throws std::invalid_argument, and writes nothing,
/// for other logits, bags that do not fit, steps_per_instance < 1, and one matrix given as both. O(rows log rows).
/// Sultani, Chen & Shah, "Real-world anomaly detection in surveillance videos", CVPR 2018 (arXiv:1801.04264).
template <class S>
double mil_top_k_loss(const MatrixView<S>& logits, const Bags& bags, Index steps_per_instance, Matrix<S>& dlogits) {
  constexpr const char* kName = "moe::mil_top_k_loss";
  detail::require_bags<S>(kName, logits, bags);
  if (steps_per_instance < 1) fail(kName, ": steps_per_instance is ", steps_per_instance, ", expected at least 1");
  detail::require_apart(kName, "dlogits", dlogits, "logits", logits);
  dlogits.setZero(logits.rows(), 1);
  const double weight = 1 / static_cast<double>(std::max<Index>(1, bags.num_filled()));
  double total = 0;
  std::vector<Index> order;
  std::vector<double> log_p, shares;
  detail::for_each_bag(bags, [&](Index first, std::size_t b) {
    const Index k = std::max<Index>(1, bags.sizes[b] / steps_per_instance);
    order.resize(static_cast<std::size_t>(bags.sizes[b]));
    std::iota(order.begin(), order.end(), first);
    std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](Index a, Index c) {
      return logits(a, 0) > logits(c, 0) || (logits(a, 0) == logits(c, 0) && a < c);
    });
    const double sign = bags.labels[b] == 1 ? 1 : -1;  // of the logits whose sigmoid is to be large
    log_p.clear();
    for (Index i = 0; i < k; ++i)
      log_p.push_back(detail::log_sigmoid(sign * static_cast<double>(logits(order[static_cast<std::size_t>(i)], 0))));
    total -= log_sum_exp(log_p.data(), k) - std::log(static_cast<double>(k));
    shares.resize(log_p.size());
    softmax(log_p.data(), k, shares.data());
    for (Index i = 0; i < k; ++i) {
      const auto row = order[static_cast<std::size_t>(i)];
      const double rest = std::exp(detail::log_sigmoid(-sign * static_cast<double>(logits(row, 0))));
      dlogits(row, 0) = static_cast<S>(-sign * weight * shares[static_cast<std::size_t>(i)] * rest);
    }
  });
  return weight * total;
}

/// Targets of rows, and of which there are some.
struct SplatTargets {
  std::vector<double> values = {};       ///< [rows], in [0, 1]
  std::vector<std::uint8_t> known = {};  ///< [rows], 0 where there is none, as in a positive bag without a peak
};

/// What splat_scores() makes of the sigmoids of the logits of each positive bag, and zeros for negative ones: numbers,
/// through which no gradient goes. Throws std::invalid_argument for logits as mil_top_k_loss().
template <class S>
SplatTargets splat_targets(const MatrixView<S>& logits, const Bags& bags, const SplatOptions& options = {}) {
  detail::require_bags<S>("moe::splat_targets", logits, bags);
  const auto rows = static_cast<std::size_t>(logits.rows());
  SplatTargets targets{std::vector<double>(rows), std::vector<std::uint8_t>(rows)};
  std::vector<double> scores;
  detail::for_each_bag(bags, [&](Index first, std::size_t b) {
    if (bags.labels[b] == 1) {
      scores.clear();
      for (Index t = 0; t < bags.sizes[b]; ++t)
        scores.push_back(std::exp(detail::log_sigmoid(static_cast<double>(logits(first + t, 0)))));
      const std::vector<double> splats = splat_scores(scores, options);
      if (splats.empty()) return;
      std::ranges::copy(splats, targets.values.begin() + first);
    }
    std::fill_n(targets.known.begin() + first, bags.sizes[b], std::uint8_t{1});
  });
  return targets;
}

/// Cross-entropy of every step with its splatted target y: mean over the bags that are not empty of
///   mean over steps of -y log sigmoid(logit) - (1 - y) log sigmoid(-logit)
/// where bags without targets count 0; adds weight (sigmoid(logit) - y) / (size * bags) to dlogits. Beside
/// mil_top_k_loss(), once that has made peaks to begin with:
///   double loss = moe::mil_top_k_loss<float>(logits, bags, 16, dlogits);
///   loss += moe::splatting_loss<float>(logits, moe::splat_targets<float>(logits, bags), bags, 1.0, dlogits);
///   logits, dlogits  [rows, 1], finite      result  the loss, before its weight
/// Throws std::invalid_argument, and writes nothing, for other shapes, targets outside of [0, 1], and a weight that is
/// not finite. O(rows).
template <class S>
double splatting_loss(const MatrixView<S>& logits, const SplatTargets& targets, const Bags& bags, double weight,
                      Matrix<S>& dlogits) {
  constexpr const char* kName = "moe::splatting_loss";
  detail::require_bags<S>(kName, logits, bags);
  detail::require_shape(kName, "dlogits", dlogits, logits.rows(), 1);
  if (std::ssize(targets.values) != logits.rows() || std::ssize(targets.known) != logits.rows())
    fail(kName, ": targets are of ", targets.values.size(), " rows, expected ", logits.rows());
  for (std::size_t t = 0; t < targets.values.size(); ++t)
    if (!(targets.values[t] >= 0 && targets.values[t] <= 1))
      fail(kName, ": target of row ", t, " is ", targets.values[t], ", expected a number in [0, 1]");
  if (!std::isfinite(weight)) fail(kName, ": weight is ", weight, ", expected a finite number");
  detail::require_apart(kName, "dlogits", dlogits, "logits", logits);
  const auto filled = static_cast<double>(bags.num_filled());
  double total = 0;
  detail::for_each_bag(bags, [&](Index first, std::size_t b) {
    const double share = 1 / (static_cast<double>(bags.sizes[b]) * filled);
    for (Index t = first; t < first + bags.sizes[b]; ++t) {
      if (targets.known[static_cast<std::size_t>(t)] == 0) continue;
      const double z = static_cast<double>(logits(t, 0)), y = targets.values[static_cast<std::size_t>(t)];
      total -= share * (y * detail::log_sigmoid(z) + (1 - y) * detail::log_sigmoid(-z));
      dlogits(t, 0) += static_cast<S>(weight * share * (std::exp(detail::log_sigmoid(z)) - y));
    }
  });
  return total;
}

}  // namespace moe::inline MOE_ABI
