// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/inference/estimable.hpp"
#include "moe/gaussian/predict/normal_quantile.hpp"

namespace moe::inline MOE_ABI {

enum class Sandwich {
  No,  ///< intervals from the inverse of the observed information: the model is right
  Yes  ///< from the sandwich: they hold for the best approximation if it is not
};

struct StandardErrorOptions {
  double level = 0.95;                ///< of the intervals, in (0, 1)
  Sandwich intervals = Sandwich::No;  ///< what the intervals are made of
  double largest_distance = 0.05;     ///< from the maximum that is accepted, in standard errors; > 0
  double variance_floor = 0;          ///< relative to Var(y); 0: that of the fit, of a model the default

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(const char* function) const {
    if (!(level > 0 && level < 1)) fail(function, ": level is ", level, ", expected a number in (0, 1)");
    if (!(largest_distance > 0 && std::isfinite(largest_distance)))
      fail(function, ": largest_distance is ", largest_distance, ", expected a finite number > 0");
    if (!(variance_floor >= 0 && std::isfinite(variance_floor)))
      fail(function, ": variance_floor is ", variance_floor, ", expected a finite number >= 0");
  }
};

/// Two standard errors of a parameter and a confidence interval.
struct StandardError {
  double observed = 0;          ///< from the inverse of the observed information
  double sandwich = 0;          ///< from I^-1 (sum s_i s_i^T) I^-1
  double lower = 0, upper = 0;  ///< interval at the level of the options; of variances that of their logarithm
};

/// A parameter, and its standard error where there is one.
struct ParameterEstimate {
  std::string name = {};
  double estimate = 0;
  std::optional<StandardError> error = {};
  NoStandardError reason = NoStandardError::Available;  ///< why there is none
};

/// What standard_errors() says.
struct StandardErrors {
  std::vector<ParameterEstimate> parameters = {};  ///< in the order of layout(model), then variances (and tau)
  NoStandardError reason =
      NoStandardError::Available;                ///< not Available: there is no standard error at all, because of this
  std::string explanation = {};                  ///< a sentence per reason that occurs
  double eigenvalue_ratio = 0;                   ///< smallest over largest of the scaled information
  double distance = 0;                           ///< of the estimate from the maximum, in standard errors
  std::vector<Index> coordinates = {};           ///< of theta that have standard errors, m of them
  Eigen::MatrixXd observed = {}, sandwich = {};  ///< their covariance matrices [m, m]

  bool available() const { return reason == NoStandardError::Available; }

  /// The parameter with that name, "beta1[0,0]/tau" say. Throws std::invalid_argument if there is none.
  const ParameterEstimate& operator[](const std::string& name) const {
    for (const ParameterEstimate& p : parameters)
      if (p.name == name) return p;
    fail("moe::StandardErrors: there is no parameter \"", name, "\", expected one of `parameters`");
  }
};

namespace detail {

/// A parameter counts as determined if what moving it by the directions without information does is at most this share
/// of what all directions do: eigenvectors that belong to ratios of 1e-16 and of kSingular are told apart to 1e-8.
inline constexpr double kDetermined = 1e-6;

/// Covariances of what is estimable, or the reason why there are none. Directions of the parameters without information
/// cost those parameters their standard errors that they move, and no others.
template <class = WhenUsed>
void invert(const ScaledInformation& at, const StandardErrorOptions& options, StandardErrors& out) {
  const std::vector<Index> free = std::exchange(out.coordinates, {});
  if (free.empty()) return;
  const Eigen::MatrixXd information = at.information(free, free);
  const ScaledEigen eigen(information, at.gram(free, free));
  out.eigenvalue_ratio = eigen.ratio();
  const Eigen::VectorXd& values = eigen.values;
  const double largest = values.size() > 0 ? values(values.size() - 1) : 0;
  if (information.diagonal().minCoeff() < 0 || (values.size() > 0 && values(0) < -kSingular * largest)) {
    out.reason = NoStandardError::NotAMaximum;
    return;
  }
  const Index empty = std::count_if(values.begin(), values.end(), [&](double v) { return v < kSingular * largest; });
  const Index full = values.size() - empty;
  std::vector<Index> regular;
  for (const Index r : eigen.regular) regular.push_back(free[static_cast<std::size_t>(r)]);
  const Eigen::MatrixXd along = at.to_data(free, regular) * eigen.vectors;  // how far directions move parameters
  std::vector<Index> kept;                                                  // rows of it
  for (Index i = 0; i < along.rows(); ++i) {
    const Index own = free[static_cast<std::size_t>(i)];
    const bool flat = std::any_of(eigen.flat.begin(), eigen.flat.end(), [&](Index f) {
      return std::abs(at.to_data(own, free[static_cast<std::size_t>(f)])) > 0;
    });
    if (flat || along.row(i).head(empty).norm() > kDetermined * along.row(i).norm()) continue;
    kept.push_back(i);
    out.coordinates.push_back(own);
  }
  if (kept.empty()) {
    out.reason = NoStandardError::Singular;
    return;
  }
  const Eigen::VectorXd root = values.tail(full).cwiseSqrt().cwiseInverse();
  const Eigen::MatrixXd directions = eigen.vectors.rightCols(full) * root.asDiagonal();
  out.distance = (directions.transpose() * at.score(regular)).norm();
  if (!(out.distance <= options.largest_distance)) {
    out.reason = NoStandardError::NotAMaximum;
    return;
  }
  const Eigen::MatrixXd moved = along.rightCols(full) * root.asDiagonal(), half = moved(kept, Eigen::seqN(0, full));
  const Eigen::MatrixXd back = half * directions.transpose();
  out.observed = half * half.transpose();
  out.sandwich = back * at.scores(regular, regular) * back.transpose();
}

inline StandardError error_of(double estimate, double observed, double sandwich, const StandardErrorOptions& options) {
  const double quantile = -normal_quantile((1 - options.level) / 2);
  const double half = quantile * (options.intervals == Sandwich::Yes ? sandwich : observed);
  return {.observed = observed, .sandwich = sandwich, .lower = estimate - half, .upper = estimate + half};
}

/// exp of a parameter: the delta method, and the ends of the interval, which stay positive.
inline ParameterEstimate exponential(ParameterEstimate p, std::string name) {
  p.name = std::move(name);
  p.estimate = std::exp(p.estimate);
  if (p.error)
    p.error = StandardError{.observed = p.estimate * p.error->observed,
                            .sandwich = p.estimate * p.error->sandwich,
                            .lower = std::exp(p.error->lower),
                            .upper = std::exp(p.error->upper)};
  return p;
}

/// Parameters with the errors that the matrices of `out` say, or the reason why there are none.
template <class = WhenUsed>
void fill_estimates(const std::vector<std::string>& names, const std::vector<NoStandardError>& reasons,
                    const Eigen::VectorXd& theta, const StandardErrorOptions& options, StandardErrors& out) {
  for (Index i = 0; i < theta.size(); ++i) {
    const auto s = static_cast<std::size_t>(i);
    const NoStandardError reason = out.available() ? reasons[s] : out.reason;
    out.parameters.push_back({.name = names[s], .estimate = theta(i), .error = {}, .reason = reason});
  }
  for (std::size_t s = 0; out.available() && s < out.coordinates.size(); ++s) {
    ParameterEstimate& p = out.parameters[static_cast<std::size_t>(out.coordinates[s])];
    const auto i = static_cast<Index>(s);
    p.error = error_of(p.estimate, std::sqrt(out.observed(i, i)), std::sqrt(out.sandwich(i, i)), options);
  }
  for (ParameterEstimate& p : out.parameters)
    if (!p.error && p.reason == NoStandardError::Available) p.reason = NoStandardError::Singular;
}

/// What is left to say when all parameters are there.
template <class = WhenUsed>
void explain(StandardErrors& out) {
  if (!out.available()) out.coordinates.clear();
  for (const NoStandardError reason : kReasons)
    if (std::any_of(out.parameters.begin(), out.parameters.end(), [&](const auto& p) { return p.reason == reason; }))
      out.explanation += (out.explanation.empty() ? "" : "\n") + std::string(sentence(reason));
}

template <class = WhenUsed>
void fill_parameters(const Estimable& estimable, const Eigen::VectorXd& theta, const ParameterLayout& at,
                     const StandardErrorOptions& options, StandardErrors& out) {
  fill_estimates(estimable.names, estimable.reasons, theta, options, out);
  for (Index j = 0; j < at.num_experts; ++j)
    out.parameters.push_back(exponential(out.parameters[static_cast<std::size_t>(at.log_variance(j))],
                                         "variance[" + std::to_string(j) + ']'));
  if (at.free_temperature)
    out.parameters.push_back(exponential(out.parameters[static_cast<std::size_t>(at.log_temperature())], "tau"));
}

template <class G>
StandardErrors standard_errors(const char* function, GaussianMoe<G> model, const RegressionData& data,
                               const FitFlags& known, const StandardErrorOptions& options) {
  options.validate(function);
  require_normal_form(function, model);
  const double tau = model.temperature;
  const bool ray = has_temperature_ray(model);
  if (ray) to_unit_temperature(model);
  const ScaledInformation at = scaled_information(function, model, data);
  const Estimable estimable(model, at, known, variance_floor_of(options.variance_floor, data.total_weight()));
  StandardErrors out{.reason = estimable.whole, .coordinates = estimable.coordinates()};
  if (out.available()) invert(at, options, out);
  if (ray) model.temperature = tau;
  fill_parameters(estimable, pack(model, at.at), at.at, options, out);
  explain(out);
  return out;
}

}  // namespace detail

/// Standard errors of the free parameters of a model at the maximum of its likelihood, where they exist: from the
/// inverse of the observed information, I^-1 (where it is singular, of the part with information, for the parameters
/// that this part alone determines), and from the sandwich I^-1 (sum s_i s_i^T) I^-1, which stays valid if the model is
/// wrong; of variances, and of an identified temperature, by the delta method. Elsewhere `reason` says why not: see
/// NoStandardError. They assume independent rows, and that the number of experts is right: with more than the truth the
/// information need not be numerically singular, but estimates are neither normal nor of rate n^-1/2, and these numbers
/// are invalid (see dendrogram() and bootstrap()). Sparse gates: the active experts are held, so that the errors do not
/// speak of the boundaries between them, nor of what coefficients gain from those. A separated gate is taken as known.
/// A free temperature without a nonlinear activation: the parameters are ratios, named beta1[j,c]/tau.
///   model  in normal form, a maximum without penalties: one with ridge or variance_penalty is NotAMaximum unless they
///          move it by less than options.largest_distance standard errors
/// Throws std::invalid_argument for bad models, data or options, and constant columns of x. O(n k^2 d^2 + p^3).
/// White, "Maximum likelihood estimation of misspecified models", Econometrica 1982; Louis, JRSS B 1982.
template <class G>
StandardErrors standard_errors(const GaussianMoe<G>& model, const RegressionData& data,
                               const StandardErrorOptions& options = {}) {
  return detail::standard_errors("moe::standard_errors", model, data, FitFlags{}, options);
}

/// The same for a fit, which also says if its gate is separated or a variance is at its floor, and which that was.
template <class G>
StandardErrors standard_errors(const GaussianFit<G>& fit, const RegressionData& data,
                               StandardErrorOptions options = {}) {
  if (options.variance_floor == 0) options.variance_floor = fit.variance_floor;
  return detail::standard_errors("moe::standard_errors", fit.model, data, fit.flags, options);
}

}  // namespace moe::inline MOE_ABI
