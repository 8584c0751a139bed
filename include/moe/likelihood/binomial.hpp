// SPDX-License-Identifier: MIT
#pragma once

#include "moe/likelihood/expert_rows.hpp"
#include "moe/likelihood/gamma_terms.hpp"

namespace moe::inline MOE_ABI {

/// Experts of successes among trials: y ~ Binomial(n, p), log(p / (1 - p)) = eta, one linear predictor; trials n of the
/// rows are ResponseData::trials, none: 1 each (logistic regression).
///   log f = y eta - n log(1 + exp(eta)) + log C(n, y)
/// The M-step is IRLS. Where a plane separates successes from failures there is no finite maximum: coefficients end
/// where the likelihood gains nothing any more, and the fit says expert_separated.
/// McCullagh & Nelder, "Generalized linear models", 2nd ed. 1989; separation: Albert & Anderson, Biometrika 1984.
struct Binomial {
  static constexpr Index kShapes = 0;
  static constexpr bool kContinuous = false;
  static constexpr double kLargest = 500;
  static constexpr std::string_view kShapeNames[] = {""};

  Index num_predictors() const { return 1; }
  Index num_outputs() const { return 1; }

  /// Throws std::invalid_argument for y or trials that are no counts, for trials of 0 and for y beyond the trials.
  void require(const char* function, const ResponseData& data) const {
    for (Index i = 0; i < data.num_rows(); ++i) {
      const double trials = data.trials_of(i);
      detail::require_count(function, "y", data.y(i), i);
      detail::require_count(function, "trials", trials, i);
      if (trials < 1) fail(function, ": trials is 0 in row ", i, ", expected at least 1 (or a weight of 0)");
      if (data.y(i) > trials)
        fail(function, ": y is ", data.y(i), " in row ", i, ", expected at most its trials, ", trials);
    }
  }

  double log_density(Response r, const double* eta, const double*) const {
    const double n = r.trials, y = r.y;
    if (y == 0) return -n * log_one_plus(*eta);
    if (y == n) return -n * log_one_plus(-*eta);
    const double p = probability(*eta), q = probability(-*eta);
    return detail::stirling_error(n) - detail::stirling_error(y) - detail::stirling_error(n - y) -
           detail::deviance_term(y, n * p) - detail::deviance_term(n - y, n * q) - detail::kHalfLogTwoPi -
           0.5 * std::log(y * ((n - y) / n));
  }

  void derivatives(Response r, const double* eta, const double*, double* score, double* information) const {
    const double p = probability(*eta), q = probability(-*eta);
    *score = r.y * q - (r.trials - r.y) * p;
    *information = r.trials * p * q;
  }

  double link(Response r) const { return std::log((r.y + 0.5) / (r.trials - r.y + 0.5)); }
  /// The probability of a success.
  void mean(const double* eta, const double*, double* out) const { *out = probability(*eta); }
  double draw(const double* eta, const double*, double trials, const RandomField& random, Index row) const {
    const double odds = std::exp(std::clamp(*eta, -700.0, 700.0)), mean = trials * probability(*eta);
    const double mode = std::clamp(std::floor((trials + 1) * probability(*eta)), 0.0, trials);
    const double at_mode = std::exp(log_density({.y = mode, .trials = trials}, eta, nullptr));
    const auto up = [=](double i) { return (trials - i) / (i + 1) * odds; };
    return detail::draw_from_mode(detail::CountDistribution<decltype(up)>{.mean = mean,
                                                                          .variance = mean * probability(-*eta),
                                                                          .mode = mode,
                                                                          .at_mode = at_mode,
                                                                          .low = 0,
                                                                          .high = trials,
                                                                          .up = up},
                                  random, row);
  }

 private:
  static double log_one_plus(double eta) { return std::max(eta, 0.0) + std::log1p(std::exp(-std::abs(eta))); }
  /// Above 0 always, so that its logarithm is finite.
  static double probability(double eta) { return 1 / (1 + std::exp(std::clamp(-eta, -700.0, 700.0))); }
};

static_assert(ExpertFamily<Binomial>);

}  // namespace moe::inline MOE_ABI
