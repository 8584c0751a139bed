// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <optional>
#include <string>
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
  double variance_floor = 0;          ///< that of the fit, relative to Var(y); 0: its default

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

/// Covariances of what is estimable, or the reason why there are none.
template <class = WhenUsed>
void invert(const ScaledInformation& at, const StandardErrorOptions& options, StandardErrors& out) {
  const std::vector<Index>& free = out.coordinates;
  const Eigen::MatrixXd information = at.information(free, free);
  const ScaledEigen eigen(information, at.gram(free, free));
  out.eigenvalue_ratio = eigen.ratio();
  const bool negative = information.size() > 0 && information.diagonal().minCoeff() < 0;
  if (negative || out.eigenvalue_ratio < -kSingular) {
    out.reason = NoStandardError::NotAMaximum;
  } else if (out.eigenvalue_ratio < kSingular) {
    out.reason = NoStandardError::Singular;
  } else {
    const Eigen::MatrixXd inverse = eigen.inverse();
    const Eigen::VectorXd score = at.score(free);
    out.distance = std::sqrt(score.dot(inverse * score));
    if (!(out.distance <= options.largest_distance)) {
      out.reason = NoStandardError::NotAMaximum;
      return;
    }
    const Eigen::MatrixXd back = at.to_data(free, free) * inverse;
    out.observed = back * at.to_data(free, free).transpose();
    out.sandwich = back * at.scores(free, free) * back.transpose();
  }
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

template <class = WhenUsed>
void fill_parameters(const Estimable& estimable, const Eigen::VectorXd& theta, const ParameterLayout& at,
                     const StandardErrorOptions& options, StandardErrors& out) {
  for (Index i = 0; i < at.size(); ++i) {
    const auto s = static_cast<std::size_t>(i);
    const NoStandardError reason = out.available() ? estimable.reasons[s] : out.reason;
    out.parameters.push_back({.name = estimable.names[s], .estimate = theta(i), .error = {}, .reason = reason});
  }
  for (std::size_t s = 0; out.available() && s < out.coordinates.size(); ++s) {
    ParameterEstimate& p = out.parameters[static_cast<std::size_t>(out.coordinates[s])];
    const auto i = static_cast<Index>(s);
    p.error = error_of(p.estimate, std::sqrt(out.observed(i, i)), std::sqrt(out.sandwich(i, i)), options);
  }
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
  const Estimable estimable(model, at, known, variance_floor_of(options.variance_floor, data.num_rows()));
  StandardErrors out{.reason = estimable.whole, .coordinates = estimable.coordinates()};
  if (out.available()) invert(at, options, out);
  if (ray) model.temperature = tau;
  fill_parameters(estimable, pack(model, at.at), at.at, options, out);
  if (!out.available()) out.coordinates.clear();
  for (const NoStandardError reason : kReasons)
    if (std::any_of(out.parameters.begin(), out.parameters.end(), [&](const auto& p) { return p.reason == reason; }))
      out.explanation += (out.explanation.empty() ? "" : "\n") + std::string(sentence(reason));
  return out;
}

}  // namespace detail

/// Standard errors of the free parameters of a model at the maximum of its likelihood, where they exist: from the
/// inverse of the observed information, I^-1, and from the sandwich I^-1 (sum s_i s_i^T) I^-1, which stays valid if the
/// model is wrong; of variances, and of an identified temperature, by the delta method. Elsewhere `reason` says why
/// not: see NoStandardError. They assume independent rows, and that the number of experts is right: with more than the
/// truth the information need not be numerically singular, but estimates are neither normal nor of rate n^-1/2, and
/// these numbers are invalid (see dendrogram() and bootstrap()). Sparse gates: the active experts are held, so that the
/// errors do not speak of the boundaries between them, nor of what coefficients gain from those. A separated gate is
/// taken as known. A free temperature without a nonlinear activation: the parameters are ratios, named beta1[j,c]/tau.
///   model  in normal form, a maximum without penalties: one with ridge or variance_penalty is NotAMaximum unless they
///          move it by less than options.largest_distance standard errors
/// Throws std::invalid_argument for bad models, data or options, and constant columns of x. O(n k^2 d^2 + p^3).
/// White, "Maximum likelihood estimation of misspecified models", Econometrica 1982; Louis, JRSS B 1982.
template <class G>
StandardErrors standard_errors(const GaussianMoe<G>& model, const RegressionData& data,
                               const StandardErrorOptions& options = {}) {
  return detail::standard_errors("moe::standard_errors", model, data, FitFlags{}, options);
}

/// The same for a fit, which also says if its gate is separated or a variance is at its floor.
template <class G>
StandardErrors standard_errors(const GaussianFit<G>& fit, const RegressionData& data,
                               const StandardErrorOptions& options = {}) {
  return detail::standard_errors("moe::standard_errors", fit.model, data, fit.flags, options);
}

}  // namespace moe::inline MOE_ABI
