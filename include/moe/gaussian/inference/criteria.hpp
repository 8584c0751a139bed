// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/model/identified.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "moe/routing/balance/entropy.hpp"

namespace moe::inline MOE_ABI {

/// Information criteria of a fit; the smaller, the better.
struct Criteria {
  Index num_parameters = 0;  ///< p, identified ones
  double log_likelihood = 0;
  double aic = 0;      ///< -2 l + 2 p
  double bic = 0;      ///< -2 l + p log n, n the sum of the weights
  double icl = 0;      ///< bic + 2 entropy
  double entropy = 0;  ///< -sum_ij r_ij log r_ij, nats: how undecided the experts of the rows are
};

namespace detail {

/// Of a model with these responsibilities of the rows.
template <class = WhenUsed>
Criteria criteria_of(Index num_parameters, double log_likelihood, const Matrix<double>& responsibilities,
                     const RegressionData& data) {
  Criteria result{.num_parameters = num_parameters, .log_likelihood = log_likelihood};
  for (Index i = 0; i < responsibilities.rows(); ++i)
    result.entropy += data.weight(i) * entropy(responsibilities.row(i).data(), responsibilities.cols());
  const double p = static_cast<double>(num_parameters), deviance = -2 * log_likelihood;
  result.aic = deviance + 2 * p;
  result.bic = deviance + p * std::log(data.total_weight());
  result.icl = result.bic + 2 * result.entropy;
  return result;
}

}  // namespace detail

/// Number of identified parameters: k (d + 2) of the experts, k (d + 1) without an intercept, d what they read, and of
/// the gate its free ones, except that
///   a free temperature of a gate without or with a homogeneous activation (Identity, Relu) does not count, as
///                       (beta_1, beta_0, tau) and c (beta_1, beta_0, tau) are the same model;
///   a top-1 gate has only its boundaries: (k - 1)(d + 1) - 1, or (k - 1) d - 1 where experts are ranked without bias.
/// Throws std::invalid_argument for a bad model.
template <class G>
Index num_identified_parameters(const GaussianMoe<G>& model) {
  model.validate("moe::num_identified_parameters");
  return model.num_experts() * (layout(model).num_coefficients() + 1) + detail::num_identified_gate(model);
}

/// AIC, BIC and ICL of a fitted model on the data it was fitted to.
/// They assume that the model is the maximum of the likelihood (not of a penalised one, nor a point at the variance
/// floor) and that its information has full rank. With more experts than the truth it has not: BIC then penalises more
/// than the local dimension asks for, and yet finds the true k in the limit, while AIC tends to choose too many. The
/// boundaries of sparse gates are change points, to which the expansions behind AIC and BIC do not apply.
/// O(n k (d + 30)); errors as for log_likelihood.
/// Akaike 1974; Schwarz, Ann. Statist. 1978; ICL: Biernacki, Celeux & Govaert, IEEE PAMI 2000, with the probabilities
/// r_ij in place of hard labels.
template <class G>
Criteria criteria(const GaussianMoe<G>& model, const RegressionData& data) {
  return detail::criteria_of(num_identified_parameters(model), log_likelihood(model, data),
                             responsibilities(model, data), data);
}

template <class G>
Criteria criteria(const GaussianFit<G>& fit, const RegressionData& data) {
  return criteria(fit.model, data);
}

}  // namespace moe::inline MOE_ABI
