// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "moe/core/matrix.hpp"
#include "moe/gaussian/predict/normal_quantile.hpp"

namespace moe::inline MOE_ABI {

/// An expert, and a value drawn from it.
struct ExpertDraw {
  Index expert = 0;
  double y = 0;
};

/// Mixture of k normals on the line: p(y) = sum_j pi_j N(y; m_j, nu_j). What a GaussianMoe says about y at one x.
/// Components with weight 0 take no part in anything. A plain value, the standard normal until assigned; share freely
/// while nobody writes.
class NormalMixture {
 public:
  using Numbers = Eigen::Ref<const Eigen::RowVectorXd>;

  NormalMixture() { assign(Eigen::RowVectorXd::Ones(1), Eigen::RowVectorXd::Zero(1), Eigen::RowVectorXd::Ones(1)); }

  /// As assign().
  NormalMixture(const Numbers& weights, const Numbers& means, const Numbers& variances) {
    assign(weights, means, variances);
  }

  /// Replaces the components; no allocation if their number stays. Weights [k] are divided by their sum. Throws
  /// std::invalid_argument unless the sizes agree, weights are >= 0 with a sum > 0, variances > 0, and all are finite.
  void assign(const Numbers& weights, const Numbers& means, const Numbers& variances);

  Index size() const { return weights_.size(); }
  const Eigen::RowVectorXd& weights() const { return weights_; }      ///< pi [k]
  const Eigen::RowVectorXd& means() const { return means_; }          ///< m [k]
  const Eigen::RowVectorXd& variances() const { return variances_; }  ///< nu [k]

  double mean() const { return weights_.dot(means_); }

  /// sum_j pi_j (nu_j + (m_j - mean)^2).
  double variance() const {
    const double centre = mean();
    return sum([&](Index j) { return variances_(j) + (means_(j) - centre) * (means_(j) - centre); });
  }

  /// Natural logarithm of p(y): right where p(y) itself underflows. Throws std::invalid_argument for NaN, as do all
  /// functions of y.
  double log_density(double y) const;

  double density(double y) const { return std::exp(log_density(y)); }

  /// P(Y <= y), accurate to some ulp in the lower tail; in the upper one use survival().
  double cdf(double y) const {
    require_number("cdf", y);
    return tail(y, 1);
  }

  /// P(Y > y), accurate to some ulp in the upper tail.
  double survival(double y) const {
    require_number("survival", y);
    return tail(-y, -1);
  }

  /// y with P(Y <= y) = p to some ulp of min(p, 1 - p), or as close as the spacing of doubles allows. Throws
  /// std::invalid_argument unless 1e-300 <= p < 1. Safeguarded Newton, some 5 to 10 evaluations of the cdf.
  double quantile(double p) const {
    if (!(p >= 1e-300 && p < 1))
      fail("moe::NormalMixture::quantile: p is ", p, ", expected a number inside of (0, 1), at least 1e-300");
    return p > 0.5 ? -tail_quantile(1 - p, -1) : tail_quantile(p, 1);  // 1 - p is exact there
  }

  /// Where the density is highest: climbs from every mean, as modes lie between means; of equal peaks, the one that the
  /// lowest component climbs.
  double mode() const;

  /// argmax_j pi_j; ties go to the lower component.
  Index expert() const { return first_maximum(weights_); }

  /// argmax_j of responsibilities(y); ties go to the lower component.
  Index expert(double y) const { return first_maximum(responsibilities(y)); }

  /// P(component j | y) = pi_j N(y; m_j, nu_j) / p(y), [k]. Throws std::invalid_argument where the logarithms of all
  /// densities overflow (from 1e154 standard deviations on).
  Eigen::RowVectorXd responsibilities(double y) const;

  /// The draw that a uniform number in (0, 1) and a standard normal one make: component by inversion, then normal.
  ExpertDraw draw(double uniform, double normal) const {
    const Index j = component(uniform);
    return {j, means_(j) + deviations_(j) * normal};
  }

 private:
  struct Slope {
    double shift, newton;  // steps uphill: to the fixed point, by Newton (0 where the density is convex)
    double width;          // standard deviation of the components that count here
  };

  template <class Term>
  double sum(Term&& term) const {
    double total = 0;
    for (Index j = 0; j < size(); ++j)
      if (weights_(j) > 0) total += weights_(j) * term(j);
    return total;
  }
  static Index first_maximum(const Eigen::RowVectorXd& values) {
    return std::max_element(values.data(), values.data() + values.size()) - values.data();
  }
  static void require_number(const char* function, double y) {
    if (std::isnan(y)) fail("moe::NormalMixture::", function, ": y is NaN, expected a number");
  }

  /// log(pi_j N(y; m_j, nu_j)), -infinity for a component without weight.
  double log_term(Index j, double y) const {
    const double z = (y - means_(j)) / deviations_(j);
    return log_scales_(j) - 0.5 * z * z;
  }
  double highest_term(double y) const {
    double top = -std::numeric_limits<double>::infinity();
    for (Index j = 0; j < size(); ++j) top = std::max(top, log_term(j, y));
    return top;
  }
  Index component(double uniform) const;

  /// P(sign * Y <= t): no subtraction, hence no cancellation.
  double tail(double t, double sign) const {
    return sum(
        [&](Index j) { return 0.5 * std::erfc((sign * means_(j) - t) / (deviations_(j) * std::numbers::sqrt2)); });
  }
  double tail_quantile(double p, double sign) const;
  Slope slope(double y) const;
  double climb(double y) const;

  Eigen::RowVectorXd weights_, means_, variances_, deviations_, log_scales_;
};

inline void NormalMixture::assign(const Numbers& weights, const Numbers& means, const Numbers& variances) {
  constexpr const char* kName = "moe::NormalMixture";
  const Index k = weights.size();
  if (k < 1) fail(kName, ": weights is empty, expected at least one component");
  detail::require_shape(kName, "means", means, 1, k);
  detail::require_shape(kName, "variances", variances, 1, k);
  for (Index j = 0; j < k; ++j) {
    if (!(weights(j) >= 0 && std::isfinite(weights(j))))
      fail(kName, ": weight ", j, " is ", weights(j), ", expected a finite number >= 0");
    if (!std::isfinite(means(j))) fail(kName, ": mean ", j, " is ", means(j), ", expected a finite number");
    if (!(variances(j) > 0 && std::isfinite(variances(j))))
      fail(kName, ": variance ", j, " is ", variances(j), ", expected a finite number > 0");
  }
  const double total = weights.sum();
  if (!(total > 0 && std::isfinite(total))) fail(kName, ": the weights add up to ", total, ", expected a sum > 0");
  weights_ = weights / total;
  means_ = means;
  variances_ = variances;
  deviations_ = variances_.cwiseSqrt();
  log_scales_ = weights_.array().log() - deviations_.array().log() - 0.5 * std::log(2 * std::numbers::pi);
}

inline double NormalMixture::log_density(double y) const {
  require_number("log_density", y);
  const double top = highest_term(y);
  if (std::isinf(top)) return -std::numeric_limits<double>::infinity();
  double total = 0;
  for (Index j = 0; j < size(); ++j) total += std::exp(log_term(j, y) - top);
  return top + std::log(total);
}

inline Eigen::RowVectorXd NormalMixture::responsibilities(double y) const {
  const double top = highest_term(y);
  if (!std::isfinite(top))
    fail("moe::NormalMixture::responsibilities: y is ", y, ", expected a number where some log-density is finite");
  Eigen::RowVectorXd r(size());
  for (Index j = 0; j < size(); ++j) r(j) = std::exp(log_term(j, y) - top);
  return r / r.sum();
}

inline Index NormalMixture::component(double uniform) const {
  double cumulative = 0;
  Index last = 0;
  for (Index j = 0; j < size(); ++j) {
    if (!(weights_(j) > 0)) continue;
    cumulative += weights_(j);
    last = j;
    if (uniform < cumulative) break;
  }
  return last;
}

/// t with tail(t, sign) = p. It lies between the least and the largest of the components' own quantiles.
inline double NormalMixture::tail_quantile(double p, double sign) const {
  const double z = detail::normal_quantile(p);
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (Index j = 0; j < size(); ++j) {
    if (!(weights_(j) > 0)) continue;
    const double own = sign * means_(j) + deviations_(j) * z;
    const double rounding = 8 * detail::kUlp * (std::abs(means_(j)) + deviations_(j) * std::abs(z));
    low = std::min(low, own - rounding);
    high = std::max(high, own + rounding);
  }
  const double start = sum([&](Index j) { return sign * means_(j) + deviations_(j) * z; });
  return detail::solve_tail(
      p, {low, std::clamp(start, low, high), high}, [&](double t) { return tail(t, sign); },
      [&](double t) { return density(sign * t); });
}

inline NormalMixture::Slope NormalMixture::slope(double y) const {
  const double top = highest_term(y);
  double gradient = 0, precision = 0, curvature = 0, total = 0;
  for (Index j = 0; j < size(); ++j) {
    const double w = std::exp(log_term(j, y) - top), z = (means_(j) - y) / deviations_(j);
    if (!(w > 0)) continue;
    total += w;
    gradient += w * z / deviations_(j);
    precision += w / variances_(j);
    curvature += w * (1 - z * z) / variances_(j);
  }
  return {gradient / precision, curvature > 0 ? gradient / curvature : 0, std::sqrt(total / precision)};
}

/// The fixed point y = sum_j w_j m_j / nu_j / sum_j w_j / nu_j, w_j = pi_j N(y; m_j, nu_j): a step towards it never
/// goes down (it is EM's), and a Newton step replaces it where that climbs at least as high. A triple root of the
/// slope, two peaks about to merge, is the slowest: Newton then gains a factor 2/3 a step, and 100 are enough.
inline double NormalMixture::climb(double y) const {
  constexpr int kSteps = 200;
  for (int i = 0; i < kSteps; ++i) {
    const Slope up = slope(y);
    const double fixed = y + up.shift, newton = y + up.newton;
    const bool quick = up.newton != 0 && log_density(newton) >= log_density(fixed);
    y = quick ? newton : fixed;
    if (std::abs(quick ? up.newton : up.shift) <= 1e-15 * (std::abs(y) + up.width)) break;
  }
  return y;
}

inline double NormalMixture::mode() const {
  double best = means_(expert()), highest = -std::numeric_limits<double>::infinity();
  for (Index j = 0; j < size(); ++j) {
    if (!(weights_(j) > 0)) continue;
    const double y = climb(means_(j)), height = log_density(y);
    if (height > highest) best = y, highest = height;
  }
  return best;
}

}  // namespace moe::inline MOE_ABI
