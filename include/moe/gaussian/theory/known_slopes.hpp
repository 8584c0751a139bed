// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "moe/gaussian/model/model.hpp"

namespace moe::inline MOE_ABI::detail {

/// What the weights know of beta_1j: of cosines gamma_j = beta_1j / (|beta_1j| + weight_shift), the direction alone
/// without a weight_shift; else all of it.
template <class G>
Matrix<double> known_slopes(const GaussianMoe<G>& model) {
  Matrix<double> known = model.gate_slope;
  const GateScore score = model.form().score;
  if (score.kind != GateScoreKind::Cosine) return known;
  for (Index j = 0; j < known.rows(); ++j) {
    const double length = known.row(j).norm();
    if (length > 0) known.row(j) /= length + score.weight_shift;
  }
  return known;
}

/// Is beta_0 inside of an activation? Then it is a coefficient as beta_1 is, and exp(beta_0) no mass.
template <class G>
bool bias_in_slope(const GaussianMoe<G>& model) {
  return !std::is_same_v<typename GateModel<G>::Inner, Identity> && model.form().bias == BiasPlace::Inside;
}

/// Are those known up to a common shift alone? Inner products with x, or with another function of it, are.
template <class G>
bool slopes_shift(const GaussianMoe<G>& model) {
  const GateScore score = model.form().score;
  if (score.kind == GateScoreKind::Cosine) return !score.ignores_length();
  return std::is_same_v<typename GateModel<G>::Inner, Identity>;
}

}  // namespace moe::inline MOE_ABI::detail
