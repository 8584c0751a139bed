// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/likelihood/expert_rows.hpp"
#include "moe/likelihood/gamma_terms.hpp"
#include "moe/likelihood/normal.hpp"

namespace moe::inline MOE_ABI {

/// Robust experts: Student's t about one linear predictor, shape (squared scale s2, degrees of freedom nu). With
/// q = (y - eta)^2 / s2,
///   log f = log Gamma((nu + 1) / 2) - log Gamma(nu / 2) - log(pi nu s2) / 2 - (nu + 1) / 2 log(1 + q / nu)
/// An outlier counts with weight (nu + 1) / (nu + q). The degrees of freedom of every expert are estimated within their
/// bounds; at `most_degrees` an expert is normal to all digits that matter; equal bounds hold nu. The M-step is that of
/// EM for given nu, then nu by its own likelihood (ECME). Lange, Little & Taylor, "Robust statistical modeling using
/// the t distribution", JASA 1989; Liu & Rubin, "ML estimation of the t distribution using EM and its extensions, ECM
/// and ECME", Statistica Sinica 1995; as experts: Chamroukhi, "Robust mixture of experts modeling using the t
/// distribution", Neural Networks 2016.
struct StudentT {
  double least_degrees =
      1;  ///< >= 0.1: the smaller, the more a point may be interpolated (the likelihood is unbounded)
  double most_degrees = 1e10;  ///< least_degrees to 1e10

  /// Where degrees of freedom end: a fit starts from the best such mixture, too, so that it is never below it.
  using Limit = Normal;
  static constexpr Index kShapes = 2;
  static constexpr bool kContinuous = true;
  static constexpr double kLargest = std::numeric_limits<double>::infinity();
  static constexpr std::string_view kShapeNames[] = {"squared scale", "degrees of freedom"};

  Index num_predictors() const { return 1; }
  Index num_outputs() const { return 1; }

  /// Throws std::invalid_argument for bounds that are none.
  void require(const char* function, const ResponseData&) const {
    if (!(least_degrees >= 0.1 && most_degrees >= least_degrees && most_degrees <= 1e10))
      fail(function, ": StudentT has degrees of freedom from ", least_degrees, " to ", most_degrees,
           ", expected 0.1 <= least_degrees <= most_degrees <= 1e10");
  }

  double log_density(Response r, const double* eta, const double* shape) const {
    const double e = r.y - *eta, nu = shape[1];
    return density_of(e * e / shape[0], nu, detail::GammaRatio(nu).value) - 0.5 * std::log(shape[0]);
  }

  void derivatives(Response r, const double* eta, const double* shape, double* score, double* information) const {
    const double e = r.y - *eta, s2 = shape[0], nu = shape[1], q = e * e / s2;
    const detail::GammaRatio c(nu);
    const double w = (nu + 1) / (nu + q), share = q / (nu + q), rest = nu / (nu + q);
    const double bend = 0.5 * (nu + 1) * share * rest;
    score[0] = w * e / s2;
    score[1] = 0.5 * (w * q - 1);
    score[2] = c.first + degrees_term(q, nu);
    information[0] = w / s2 * (1 - 2 * share);
    information[1] = information[3] = w * e / s2 * rest;
    information[2] = information[6] = e / s2 * rest * (1 - q) / (nu + q);
    information[4] = bend;
    information[5] = information[7] = 0.5 * share * (1 - (nu + 1) * share);
    information[8] = -(c.second + degrees_bend(q, nu));
  }

  double link(Response r) const { return r.y; }
  /// The location, which is the mean from nu > 1 on.
  void mean(const double* eta, const double*, double* out) const { *out = *eta; }

  /// Bailey, "Polar generation of random variates with the t-distribution", Math. of Computation 1994.
  double draw(const double* eta, const double* shape, double, const RandomField& random, Index row) const {
    const double nu = shape[1], square = nu * std::expm1(-2 / nu * std::log(random.uniform(row, 1)));
    return *eta + std::sqrt(shape[0] * square) * std::cos(2 * std::numbers::pi * random.uniform(row, 2));
  }

  void shape_bounds(double variance, double floor, double* lower, double* first, double* upper) const {
    lower[0] = floor * variance;
    first[0] = variance;
    upper[0] = 1e8 * variance;
    first[1] = std::clamp(4.0, least_degrees, most_degrees);
    lower[1] = least_degrees;
    upper[1] = most_degrees;
  }

  void improve(const detail::ExpertRows& rows, const Eigen::VectorXd& weight, const detail::ShapeBounds& bounds,
               detail::ExpertNumbers& expert) const {
    const double total = weight.sum();
    if (!(total > 0)) return;
    Eigen::VectorXd e = detail::residuals(rows, expert);
    const double nu = expert.shape(1), s2 = expert.shape(0);
    const Eigen::VectorXd robust =
        weight.array() * (nu + 1) / (nu + e.array().square() / s2);  // E[precision] of the complete data
    e = detail::least_squares(rows, robust, expert);
    expert.shape(0) = bounds.clamp(0, robust.dot(e.cwiseProduct(e)) / total);
    improve_degrees(weight, e.array().square() / expert.shape(0), bounds, expert.shape(1));
  }

 private:
  static double density_of(double q, double nu, double c) {
    return c - detail::kHalfLogTwoPi - 0.5 * (nu + 1) * std::log1p(q / nu);
  }

  /// d/d(log nu) of -(nu + 1) / 2 log(1 + q / nu); O(1 / nu), where its terms are O(1).
  static double degrees_term(double q, double nu) {
    const double a = q / nu;
    if (a < 1e-4)  // log1p(a) / a and 1 / (1 + a) by their series
      return 0.5 * q * ((1 / nu) / (1 + a) - a * (0.5 - a * (2.0 / 3 - a * 0.75)));
    return 0.5 * (-nu * std::log1p(a) + (nu + 1) * a / (1 + a));
  }

  /// Its derivative.
  static double degrees_bend(double q, double nu) {
    const double share = q / (nu + q);
    return degrees_term(q, nu) + 0.5 * share * ((nu + 1) * share - 2);
  }

  /// One step of Newton's method in log nu for given q, never downhill; far out also the limit and back from it.
  static void improve_degrees(const Eigen::VectorXd& weight, const Eigen::VectorXd& q,
                              const detail::ShapeBounds& bounds, double& nu) {
    if (!(bounds.upper(1) > bounds.lower(1))) return;
    const double total = weight.sum();
    const auto value = [&](double at) {
      double sum = 0;
      for (Index i = 0; i < q.size(); ++i) sum += weight(i) * std::log1p(q(i) / at);
      return total * detail::GammaRatio(at).value - 0.5 * (at + 1) * sum;
    };
    const detail::GammaRatio c(nu);
    double first = total * c.first, second = total * c.second;
    for (Index i = 0; i < q.size(); ++i) {
      first += weight(i) * degrees_term(q(i), nu);
      second += weight(i) * degrees_bend(q(i), nu);
    }
    const double before = value(nu), newton = second < 0 ? -first / second : (first > 0 ? 1.0 : -1.0);
    double best = before, best_nu = nu;
    const auto attempt = [&](double at) {
      at = bounds.clamp(1, at);
      const double found = value(at);
      if (!(found > best)) return false;
      best = found;
      best_nu = at;
      return true;
    };
    double step = std::clamp(newton, -2.0, 2.0);
    for (int halving = 0; halving < 20 && !attempt(nu * std::exp(step)); ++halving) step *= 0.5;
    if (nu > kFar)
      for (const double at : {bounds.upper(1), 3.0, 10.0, 30.0}) attempt(at);
    nu = best_nu;
  }

  static constexpr double kFar = 100;
};

static_assert(ExpertFamily<StudentT>);

}  // namespace moe::inline MOE_ABI
