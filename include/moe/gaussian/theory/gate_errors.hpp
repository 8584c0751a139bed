// SPDX-License-Identifier: MIT
#pragma once

#include <limits>

#include <Eigen/Cholesky>

#include "moe/gaussian/inference/relabel.hpp"
#include "moe/gaussian/model/identified.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "moe/gaussian/theory/known_slopes.hpp"

// How far a gate is from the true one, in what data can tell of it.
namespace moe::inline MOE_ABI::detail {

/// Moves a fitted gate of cosines to where it is next to the true one among those of the same weights; false where
/// there is none of that kind.
template <class G>
bool move_next_to(const GaussianMoe<G>& truth, GaussianMoe<G>& fitted) {
  const GateScore score = truth.form().score;
  if (score.kind != GateScoreKind::Cosine) return true;
  if (score.ignores_length()) {
    for (Index j = 0; j < truth.num_experts(); ++j) {
      const double length = fitted.gate_slope.row(j).norm();
      if (length > 0) fitted.gate_slope.row(j) *= truth.gate_slope.row(j).norm() / length;
    }
    return true;
  }
  if (GateModel<G>::kFreeTemperature) return false;  // which multiplies gamma, too
  const Matrix<double> wanted = known_slopes(truth);
  Matrix<double> gamma = known_slopes(fitted);
  gamma.rowwise() -= Eigen::RowVectorXd((gamma - wanted).colwise().mean());
  for (Index j = 0; j < gamma.rows(); ++j) {
    const double length = gamma.row(j).norm();
    if (!(length < 1)) return false;
    fitted.gate_slope.row(j) = gamma.row(j) * (score.weight_shift / (1 - length));
  }
  return true;
}

/// Do maxima of the likelihood have the usual limits? Not with surplus experts, nor where parameters move a border at
/// which the density jumps: that of ranks of inner products with one input is at 0, whatever they are.
template <class G>
bool has_regular_maximum(const GaussianMoe<G>& truth, Index fitted, Index active) {
  const GateForm form = truth.form();
  if (fitted != truth.num_experts() || (active != 0 && active != form.active)) return false;
  if (form.active == truth.num_experts()) return true;
  return form.active > 1 && !form.ranks_bias && layout(truth).gate_dim() == 1;
}

/// e^T S e, e the error of the gate's free parameters and S what the observed information has of them once the
/// experts' are estimated, too: the Schur complement. Directions without information, in which e may be anything, are
/// not in it, so that it is chi-squared with as many degrees of freedom as the gate has identified parameters. NaN
/// where the information of the experts is not positive definite, or the gate cannot be moved next to the true one.
/// O(n k^2 d^2).
template <class G>
double gate_wald(const GaussianMoe<G>& fit, GaussianMoe<G> truth, const RegressionData& data) {
  constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
  GaussianMoe<G> fitted = relabelled(truth, fit, data.x);
  normalise(truth);
  if (has_temperature_ray(truth)) {
    to_unit_temperature(fitted);
    to_unit_temperature(truth);
  }
  if (!move_next_to(truth, fitted)) return kMissing;
  const ParameterLayout at = layout(truth);
  const Index gate = at.num_gate(), experts = at.size() - gate;
  const Eigen::MatrixXd information = observed_information(fitted, data);
  const Eigen::LLT<Eigen::MatrixXd> of_experts(information.bottomRightCorner(experts, experts));
  if (of_experts.info() != Eigen::Success) return kMissing;
  const Eigen::VectorXd error = (pack(fitted, at) - pack(truth, at)).head(gate);
  const Eigen::VectorXd moved = information.bottomLeftCorner(experts, gate) * error;
  return error.dot(information.topLeftCorner(gate, gate) * error) - moved.dot(of_experts.solve(moved));
}

}  // namespace moe::inline MOE_ABI::detail
