// SPDX-License-Identifier: MIT
#pragma once

#include "moe/gaussian/inference/identifiability_checks.hpp"

namespace moe::inline MOE_ABI {

/// What stands against telling the parameters of a model from these data:
///   temperature ray       a free tau without or with a homogeneous activation; the scores of the rows are checked
///   partition only        one active expert per row
///   weak activation       2 / (sigma sqrt(n)) > 1/2, sigma the smallest singular value of the first-order family of
///                         independence() on u_i = beta_1j . x_i: a row says at most 1/4 of the squared change of a
///                         score about it (pi (1 - pi)), so that is a lower bound of the standard error of the
///                         combination that the family depends on, in units in which its terms are 1
///   sign symmetry         an activation that is even, or odd up to a constant with two experts and both slopes free
///   coinciding experts    D^2 = mean (m_i - m_j)^2 / nu + (log nu_i - log nu_j)^2 / 2 below 4 times its mean under
///                         equality, (d + 2)(1 / n_i + 1 / n_j), nu the average of both
///   separated gate        an infinitely steep gate, that keeps what data know of it, costs less than 1e-3 of the
///                         log-likelihood
///   never active, never together      experts and pairs that a sparse gate selects in no row
///   rank deficient        null directions of sum s_i s_i^T, which is singular at every model, maximum or not, where no
///                         row changes along a direction (to first order)
///   not a maximum         an eigenvalue of the observed information below 1e-8 of the largest, where that sum is
///   regular
/// Ranks are judged at 1e-8 of the largest eigenvalue, in coordinates in which the inputs are uncorrelated, with a unit
/// diagonal.
/// It looks at one model on these data: nothing found is no proof that all is well, and too many experts show only
/// where two of them come close. A model far from the maximum may well be found fault with.
///   model  in normal form
/// Throws std::invalid_argument for bad models or data and constant columns of x. O(n k^2 d^2 + p^3).
/// Nguyen, Nguyen & Ho (arXiv:2305.03288); Nguyen et al. (arXiv:2309.13850); Nguyen, Akbarian & Ho (arXiv:2401.13875).
template <class Gate>
IdentifiabilityReport identifiability(const GaussianMoe<Gate>& model, const RegressionData& data) {
  const detail::ScaledInformation at = detail::scaled_information("moe::identifiability", model, data);
  IdentifiabilityReport report{.names = at.at.names()};
  detail::IdentifiabilityChecks<Gate> checks(model, data, at, report);
  checks.temperature();
  checks.symmetry();
  checks.sparse();
  checks.separation();
  checks.coincidence();
  checks.rank();
  return report;
}

}  // namespace moe::inline MOE_ABI
