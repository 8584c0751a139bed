// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Eigenvalues>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/random.hpp"
#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/predict/predict.hpp"

namespace moe::inline MOE_ABI {

/// Do intervals know that parameters are estimates?
enum class ParameterUncertainty {
  Ignored,  ///< quantiles of the fitted model, as if it were the truth
  Included  ///< of its mean over what the parameters may be
};

struct PredictionIntervalOptions {
  double level = 0.95;  ///< that y is inside, in (0, 1)
  ParameterUncertainty parameters = ParameterUncertainty::Included;
  Index draws = 400;  ///< of the parameters, >= 2 and even; bounds differ between seeds by some sd / sqrt(draws)
  std::uint64_t seed = 1;
  StandardErrorOptions errors = {};  ///< intervals = Sandwich::Yes draws from the sandwich

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate(const char* function) const {
    if (!(level > 0 && level < 1)) fail(function, ": level is ", level, ", expected a number in (0, 1)");
    if (draws < 2 || draws % 2 != 0) fail(function, ": draws is ", draws, ", expected an even number from 2 on");
    errors.validate(function);
  }
};

/// Where y will be.
struct PredictionIntervals {
  Eigen::VectorXd lower = {}, upper = {};  ///< [n], with (1 - level) / 2 beyond each
  /// How many parameters were drawn; the others, which have no standard error, are taken as known.
  Index drawn = 0;
  std::string explanation = {};  ///< why, a sentence per reason; empty if all were drawn, or none was to be
};

namespace detail {

/// A square root of a symmetric positive semidefinite matrix.
template <class = WhenUsed>
Eigen::MatrixXd square_root(const Eigen::MatrixXd& a) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(a);
  return eigen.eigenvectors() * eigen.eigenvalues().cwiseMax(0).cwiseSqrt().asDiagonal();
}

/// Models whose parameters are drawn from the normal distribution of the estimates, in pairs on both sides of them.
template <class G>
std::vector<GaussianMoe<G>> drawn_models(GaussianMoe<G> model, const StandardErrors& errors,
                                         const PredictionIntervalOptions& options) {
  if (has_temperature_ray(model)) to_unit_temperature(model);  // as standard_errors() does
  const ParameterLayout at = layout(model);
  const Eigen::VectorXd theta = pack(model, at);
  const bool sandwich = options.errors.intervals == Sandwich::Yes;
  const Eigen::MatrixXd root = square_root(sandwich ? errors.sandwich : errors.observed);
  const RandomField random(Purpose::User, options.seed, 0x64726177);
  std::vector<GaussianMoe<G>> models;
  for (Index s = 0; s < options.draws / 2; ++s) {
    Eigen::VectorXd z(root.cols());
    for (Index i = 0; i < z.size(); ++i) z(i) = random.normal(s, i);
    const Eigen::VectorXd step = root * z;
    for (const double sign : {1.0, -1.0}) {
      Eigen::VectorXd moved = theta;
      moved(errors.coordinates) += sign * step;
      models.push_back(model);
      unpack(moved, at, models.back());
    }
  }
  return models;
}

/// Calls body(i, mixture), in parallel, with the mean of the distributions that some models of one size have at row i.
template <class G, class Body>
void for_each_mean(const std::vector<GaussianMoe<G>>& models, const InputRows& rows, Body&& body) {
  const Index k = models.front().num_experts(), count = std::ssize(models);
  parallel_ranges(rows.num_rows(), /*grain=*/1, [&](Index begin, Index end, Index) {
    std::vector<GateRow<G>> gates(models.begin(), models.end());
    Eigen::RowVectorXd weights(count * k), means(count * k), variances(count * k);
    NormalMixture mixture;
    for (Index i = begin; i < end; ++i) {
      for (Index s = 0; s < count; ++s) {
        const GaussianMoe<G>& model = models[static_cast<std::size_t>(s)];
        gates[static_cast<std::size_t>(s)](rows.x().row(i), weights.segment(s * k, k));
        means.segment(s * k, k) = model.intercept + rows.x().row(i) * model.slope.transpose();
        variances.segment(s * k, k) = model.variance / rows.precision(i);
      }
      means.array() += rows.offset(i);
      mixture.assign(weights, means, variances);
      body(i, std::as_const(mixture));
    }
  });
}

}  // namespace detail

/// Intervals for y at rows x [n, d], or RegressionData with their offsets and precisions, from a fit to `data`. With
/// ParameterUncertainty::Included they are quantiles of the mean, over parameters drawn from the normal approximation
/// of their estimates, of the distributions that the model has there: so they grow where x is far from the data and as
/// these are few. Only as good as that approximation: it asks for some 10 rows per parameter, and as a variance of
/// maximum likelihood is too small by (n_j - d - 1) / n_j on average, intervals of small n still cover less than
/// `level`. What has no standard error (standard_errors() says why) is taken as known; `drawn` and `explanation` say
/// so. Depends on arguments alone, not on the number of threads. Throws std::invalid_argument as standard_errors()
/// does, for rows of another number of columns, numbers that are not finite, and options out of range. O(draws n k (d +
/// 20)) beside the standard errors. Aitchison & Dunsmore, "Statistical prediction analysis", 1975.
template <class G>
PredictionIntervals prediction_intervals(const GaussianFit<G>& fit, const RegressionData& data, const InputRows& rows,
                                         const PredictionIntervalOptions& options = {}) {
  constexpr const char* kName = "moe::prediction_intervals";
  options.validate(kName);
  fit.model.validate(kName);
  rows.validate(kName, fit.model.input_dim());
  PredictionIntervals out{Eigen::VectorXd(rows.num_rows()), Eigen::VectorXd(rows.num_rows())};
  std::vector<GaussianMoe<G>> models = {fit.model};
  if (options.parameters == ParameterUncertainty::Included) {
    const StandardErrors errors = standard_errors(fit, data, options.errors);
    out.drawn = std::ssize(errors.coordinates);
    out.explanation = errors.explanation;
    if (out.drawn > 0) models = detail::drawn_models(fit.model, errors, options);
  }
  detail::for_each_mean(models, rows, [&](Index i, const NormalMixture& at) {
    out.lower(i) = at.quantile((1 - options.level) / 2);
    out.upper(i) = at.quantile((1 + options.level) / 2);
  });
  return out;
}

}  // namespace moe::inline MOE_ABI
