// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "moe/core/matrix.hpp"
#include "moe/numeric/log_sum_exp.hpp"
#include "moe/numeric/softmax.hpp"

// What is made of the logits that one token has in several passes. See UncertainRouter.
namespace moe::inline MOE_ABI {

/// What the gate sees of passes with logits l_m and p_m = softmax(l_m):
///   LogitMoment      mean_m l / sqrt(1 + pi/8 var_m l), expert by expert: those of which passes disagree shrink to 0
///   MeanProbability  log mean_m p, whose softmax is the mean
///   Whitened         S^-1 (r - mean p) / its norm, S the covariance of the p_m with a ridge and r the p of one pass
///                    more: directions without sign, of mean 0, for study
enum class RouterCalibration { LogitMoment, MeanProbability, Whitened };

/// Whether passes are made at inference, too.
enum class DropoutPhase { All, Training };

struct RouterDropout {
  Index passes = 5;   ///< at least 2, as variances need; 1 with MeanProbability
  double rate = 0.1;  ///< share of features that is dropped, 0 <= rate < 1; above 0 with Whitened
  RouterCalibration calibration = RouterCalibration::LogitMoment;
  DropoutPhase phase = DropoutPhase::All;
  double ridge = 1e-5;  ///< of Whitened, > 0

  friend bool operator==(const RouterDropout&, const RouterDropout&) = default;

  /// Passes that are made, with that of Whitened.
  Index num_passes() const { return passes + (calibration == RouterCalibration::Whitened ? 1 : 0); }

  /// Throws std::invalid_argument for numbers out of range.
  void validate() const {
    const Index least = calibration == RouterCalibration::MeanProbability ? 1 : 2;
    detail::checked_size("moe::UncertainRouter", "passes", passes, least);
    if (!(rate >= 0 && rate < 1)) fail("moe::UncertainRouter: rate is ", rate, ", expected 0 <= rate < 1");
    if (calibration == RouterCalibration::Whitened && rate == 0)
      fail("moe::UncertainRouter: rate is 0, expected > 0 with Whitened: equal passes have no covariance");
    if (!(ridge > 0 && std::isfinite(ridge)))
      fail("moe::UncertainRouter: ridge is ", ridge, ", expected a finite number > 0");
  }
};

/// How unsure a router is of each token, from probabilities p_m of several passes, in nats. [num_tokens] each.
struct RouterUncertainty {
  std::vector<double> predictive_entropy;  ///< H(mean p)
  std::vector<double> mutual_information;  ///< H(mean p) - mean H(p_m), >= 0: what passes disagree about
  std::vector<double> variance;            ///< trace of the covariance of the p_m; 0 of one pass

  void resize(Index num_tokens) {
    for (auto* values : {&predictive_entropy, &mutual_information, &variance})
      values->resize(static_cast<std::size_t>(num_tokens));
  }
};

namespace detail {

/// The passes of one token in working memory of size(). In double.
class CalibratedToken {
 public:
  static Index size(Index passes, Index experts) { return (3 * passes + 6 + experts) * experts; }
  CalibratedToken(double* work, Index passes, Index experts) : work_(work), passes_(passes), experts_(experts) {}

  double* logits(Index pass) { return row(pass); }
  double* dlogits(Index pass) { return row(passes_ + pass); }
  double* out() { return row(3 * passes_); }
  double* dout() { return row(3 * passes_ + 1); }

  void calibrate(const RouterDropout& how) {
    switch (how.calibration) {
      case RouterCalibration::LogitMoment:
        return logit_moment([&](Index e, double mean, double deviation) {
          out()[e] = deviation == 0 ? mean : mean * shrink(deviation);
        });
      case RouterCalibration::MeanProbability:
        return log_mean_probability();
      case RouterCalibration::Whitened:
        if (const double norm = whiten(how.ridge); norm > 0)
          for (Index e = 0; e < experts_; ++e) out()[e] = white()[e] / norm;
        else
          std::fill_n(out(), experts_, 0.0);
    }
  }

  /// dlogits of every pass from dout.
  void calibrate_backward(const RouterDropout& how) {
    for (Index m = 0; m < passes_; ++m) std::fill_n(dlogits(m), experts_, 0.0);
    switch (how.calibration) {
      case RouterCalibration::LogitMoment:
        return logit_moment([&](Index e, double mean, double deviation) {
          if (!std::isfinite(mean)) return;  // masked
          const double factor = shrink(deviation), dmean = dout()[e] * factor;
          for (Index m = 0; m < passes_; ++m)
            dlogits(m)[e] =
                dmean / count() - dmean * kSlope * (mean * factor) * ((logits(m)[e] - mean) * factor) / (count() - 1);
        });
      case RouterCalibration::MeanProbability:
        log_mean_probability();
        for (Index m = 0; m < passes_; ++m) {
          double sum = 0;
          for (Index e = 0; e < experts_; ++e) {
            if (!(out()[e] > kMasked)) continue;
            dlogits(m)[e] = dout()[e] * std::exp(p(m)[e] - out()[e]) / count();
            sum += dlogits(m)[e];
          }
          for (Index e = 0; e < experts_; ++e) dlogits(m)[e] -= sum * std::exp(p(m)[e]);
        }
        return;
      case RouterCalibration::Whitened:
        return whiten_backward(how.ridge);
    }
  }

  void measure(Index t, RouterUncertainty& out) {
    mean_probability(passes_);
    double entropy = 0, information = 0, variance = 0;
    for (Index e = 0; e < experts_; ++e) {
      if (mean()[e] > 0) entropy -= mean()[e] * std::log(mean()[e]);
      for (Index m = 0; m < passes_; ++m) {
        const double probability = p(m)[e];
        if (probability > 0) information += probability * std::log(probability / mean()[e]);
        variance += (probability - mean()[e]) * (probability - mean()[e]);
      }
    }
    const auto at = static_cast<std::size_t>(t);
    out.predictive_entropy[at] = entropy;
    out.mutual_information[at] = passes_ > 1 ? std::max(0.0, information / count()) : 0.0;
    out.variance[at] = passes_ > 1 ? variance / (count() - 1) : 0.0;
  }

 private:
  static constexpr double kSlope = std::numbers::pi / 8;  // a probit for a sigmoid
  static constexpr double kMasked = -std::numeric_limits<double>::infinity();

  /// 1 / sqrt(1 + pi/8 deviation^2), for any deviation.
  static double shrink(double deviation) {
    return deviation < 1e100 ? 1 / std::sqrt(1 + kSlope * deviation * deviation) : 1 / (std::sqrt(kSlope) * deviation);
  }

  double* row(Index i) { return work_ + i * experts_; }
  double* p(Index pass) { return row(2 * passes_ + pass); }
  double* mean() { return row(3 * passes_ + 2); }
  double* white() { return row(3 * passes_ + 3); }  // S^-1 (r - mean)
  double* turned() { return row(3 * passes_ + 4); }
  double* factor(Index e) { return row(3 * passes_ + 6 + e); }  // of Cholesky
  double count() const { return static_cast<double>(passes_); }

  /// body(e, mean and deviation of its logits).
  template <class Body>
  void logit_moment(const Body& body) {
    for (Index e = 0; e < experts_; ++e) {
      double average = 0, most = 0, squares = 0;
      for (Index m = 0; m < passes_; ++m) average += logits(m)[e] / count();
      if (std::isfinite(average))
        for (Index m = 0; m < passes_; ++m) most = std::max(most, std::abs(logits(m)[e] - average));
      const double unit = most < 1e100 ? 1 : most;  // whose square would be infinite
      for (Index m = 0; m < passes_ && most > 0; ++m) {
        const double off = (logits(m)[e] - average) / unit;
        squares += off * off;
      }
      body(e, average, unit * std::sqrt(squares / (count() - 1)));
    }
  }

  /// log p of all passes in p(), and out() = log mean p: finite where p itself is rounded to zero.
  void log_mean_probability() {
    for (Index m = 0; m < passes_; ++m) {
      const double norm = log_sum_exp(logits(m), experts_);
      for (Index e = 0; e < experts_; ++e) p(m)[e] = norm == kMasked ? kMasked : logits(m)[e] - norm;
    }
    for (Index e = 0; e < experts_; ++e) {
      double most = kMasked, sum = 0;
      for (Index m = 0; m < passes_; ++m) most = std::isnan(p(m)[e]) ? p(m)[e] : std::max(most, p(m)[e]);
      for (Index m = 0; m < passes_ && most != kMasked; ++m) sum += std::exp(p(m)[e] - most);
      out()[e] = most == kMasked ? kMasked : most + std::log(sum / count());
    }
  }

  /// p of all passes, and the mean of the first `passes`.
  void mean_probability(Index passes) {
    std::fill_n(mean(), experts_, 0.0);
    for (Index m = 0; m < passes_; ++m) softmax(logits(m), experts_, p(m));
    for (Index e = 0; e < experts_; ++e) {
      for (Index m = 0; m < passes; ++m) mean()[e] += p(m)[e];
      mean()[e] /= static_cast<double>(passes);
    }
  }

  /// white() from the last pass and the covariance of those before it; returns its norm.
  double whiten(double ridge) {
    const Index passes = passes_ - 1;
    mean_probability(passes);
    for (Index i = 0; i < experts_; ++i)
      for (Index j = 0; j <= i; ++j) {
        double sum = 0;
        for (Index m = 0; m < passes; ++m) sum += (p(m)[i] - mean()[i]) * (p(m)[j] - mean()[j]);
        factor(i)[j] = sum / static_cast<double>(passes - 1) + (i == j ? ridge : 0.0);
      }
    for (Index i = 0; i < experts_; ++i)  // L L^T, in place; at least the ridge is on the diagonal
      for (Index j = 0; j <= i; ++j) {
        for (Index k = 0; k < j; ++k) factor(i)[j] -= factor(i)[k] * factor(j)[k];
        factor(i)[j] = i == j ? std::sqrt(std::max(factor(i)[i], 0.5 * ridge)) : factor(i)[j] / factor(j)[j];
      }
    for (Index e = 0; e < experts_; ++e) white()[e] = p(passes)[e] - mean()[e];
    solve(white());
    double square = 0;
    for (Index e = 0; e < experts_; ++e) square += white()[e] * white()[e];
    return std::sqrt(square);
  }

  /// x = S^-1 x.
  void solve(double* x) {
    for (Index i = 0; i < experts_; ++i) {
      for (Index k = 0; k < i; ++k) x[i] -= factor(i)[k] * x[k];
      x[i] /= factor(i)[i];
    }
    for (Index i = experts_ - 1; i >= 0; --i) {
      for (Index k = i + 1; k < experts_; ++k) x[i] -= factor(k)[i] * x[k];
      x[i] /= factor(i)[i];
    }
  }

  /// With u = S^-1 (r - mean) and v = S^-1 du: dr = v, dmean = -v, dS = -v u^T.
  void whiten_backward(double ridge) {
    const double norm = whiten(ridge);
    if (!(norm > 0)) return;
    double along = 0;
    for (Index e = 0; e < experts_; ++e) along += dout()[e] * white()[e] / norm;
    for (Index e = 0; e < experts_; ++e) turned()[e] = (dout()[e] - along * white()[e] / norm) / norm;
    solve(turned());
    const Index passes = passes_ - 1;
    for (Index m = 0; m < passes; ++m) {
      double of_white = 0, of_turned = 0;  // <p - mean, u> and <p - mean, v>
      for (Index e = 0; e < experts_; ++e) {
        of_white += (p(m)[e] - mean()[e]) * white()[e];
        of_turned += (p(m)[e] - mean()[e]) * turned()[e];
      }
      for (Index e = 0; e < experts_; ++e)
        dlogits(m)[e] = -turned()[e] / static_cast<double>(passes) -
                        (turned()[e] * of_white + white()[e] * of_turned) / static_cast<double>(passes - 1);
    }
    std::copy_n(turned(), experts_, dlogits(passes));
    for (Index m = 0; m < passes_; ++m) softmax_backward(p(m), dlogits(m), experts_, dlogits(m));
  }

  double* work_;
  Index passes_, experts_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
