// SPDX-License-Identifier: MIT
#pragma once

#include "moe/likelihood/expert_rows.hpp"
#include "moe/likelihood/gamma_terms.hpp"

namespace moe::inline MOE_ABI {

/// Normal experts, y ~ N(eta, nu) with one linear predictor and shape (variance nu): those of moe/gaussian, by the EM
/// of all families.
///   log f = -(log(2 pi nu) + (y - eta)^2 / nu) / 2
/// The M-step is weighted least squares, then the mean square; nu stays above the floor of the fit.
struct Normal {
  static constexpr Index kShapes = 1;
  static constexpr bool kContinuous = true;
  static constexpr double kLargest = std::numeric_limits<double>::infinity();
  static constexpr std::string_view kShapeNames[] = {"variance"};

  Index num_predictors() const { return 1; }
  Index num_outputs() const { return 1; }
  void require(const char*, const ResponseData&) const {}

  double log_density(Response r, const double* eta, const double* shape) const {
    const double e = r.y - *eta;
    return -detail::kHalfLogTwoPi - 0.5 * (std::log(*shape) + e * e / *shape);
  }

  void derivatives(Response r, const double* eta, const double* shape, double* score, double* information) const {
    const double e = r.y - *eta, precision = 1 / *shape, q = e * e * precision;
    score[0] = e * precision;
    score[1] = 0.5 * (q - 1);
    information[0] = precision;
    information[1] = information[2] = e * precision;
    information[3] = 0.5 * q;
  }

  double link(Response r) const { return r.y; }
  void mean(const double* eta, const double*, double* out) const { *out = *eta; }
  double draw(const double* eta, const double* shape, double, const RandomField& random, Index row) const {
    return *eta + std::sqrt(*shape) * random.normal(row, 1);
  }

  void shape_bounds(double variance, double floor, double* lower, double* first, double* upper) const {
    *lower = floor * variance;
    *first = variance;
    *upper = 1e8 * variance;
  }

  void improve(const detail::ExpertRows& rows, const Eigen::VectorXd& weight, const detail::ShapeBounds& bounds,
               detail::ExpertNumbers& expert) const {
    const Eigen::VectorXd e = detail::least_squares(rows, weight, expert);
    const double total = weight.sum();
    if (total > 0) expert.shape(0) = bounds.clamp(0, weight.dot(e.cwiseProduct(e)) / total);
  }
};

static_assert(ExpertFamily<Normal>);

}  // namespace moe::inline MOE_ABI
