// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/likelihood/expert_rows.hpp"
#include "moe/likelihood/gamma_terms.hpp"

namespace moe::inline MOE_ABI {

/// Experts of counts: y ~ Poisson(m), log m = eta, one linear predictor (the log of an exposure: ResponseData::offset).
///   log f = y eta - exp(eta) - log y!
/// summed so that no digits cancel up to y = 2^53. The M-step is IRLS. An expert whose counts are all 0 has no finite
/// maximum: its coefficients end where the likelihood gains nothing any more, and the fit says expert_separated.
/// McCullagh & Nelder, "Generalized linear models", 2nd ed. 1989; as mixtures: Wedel & DeSarbo, "A mixture likelihood
/// approach for generalized linear models", J. of Classification 1995.
struct Poisson {
  static constexpr Index kShapes = 0;
  static constexpr bool kContinuous = false;
  static constexpr double kLargest = 500;
  static constexpr std::string_view kShapeNames[] = {""};

  Index num_predictors() const { return 1; }
  Index num_outputs() const { return 1; }

  /// Throws std::invalid_argument for y that is no count.
  void require(const char* function, const ResponseData& data) const {
    for (Index i = 0; i < data.num_rows(); ++i) detail::require_count(function, "y", data.y(i), i);
  }

  double log_density(Response r, const double* eta, const double*) const {
    const double m = mean_of(*eta);
    if (r.y == 0) return -m;
    return -detail::kHalfLogTwoPi - 0.5 * std::log(r.y) - detail::stirling_error(r.y) - detail::deviance_term(r.y, m);
  }

  void derivatives(Response r, const double* eta, const double*, double* score, double* information) const {
    *information = mean_of(*eta);
    *score = r.y - *information;
  }

  double link(Response r) const { return std::log(r.y + 0.5); }
  void mean(const double* eta, const double*, double* out) const { *out = mean_of(*eta); }
  double draw(const double* eta, const double*, double, const RandomField& random, Index row) const {
    const double m = mean_of(*eta), mode = std::floor(m);
    const double at_mode = std::exp(log_density({.y = mode}, eta, nullptr));
    const auto up = [m](double i) { return m / (i + 1); };
    return detail::draw_from_mode(
        detail::CountDistribution<decltype(up)>{.mean = m,
                                                .variance = m,
                                                .mode = mode,
                                                .at_mode = at_mode,
                                                .low = 0,
                                                .high = std::numeric_limits<double>::infinity(),
                                                .up = up},
        random, row);
  }

 private:
  static double mean_of(double eta) { return std::exp(std::clamp(eta, -700.0, 700.0)); }
};

static_assert(ExpertFamily<Poisson>);

}  // namespace moe::inline MOE_ABI
