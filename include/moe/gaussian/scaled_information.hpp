// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <vector>

#include "moe/gaussian/likelihood.hpp"
#include "moe/gaussian/standardise.hpp"

namespace moe::inline MOE_ABI::detail {

/// Score and information of a model in the parameters of standardised data, where rank does not depend on units nor on
/// how far x is from 0, and the way back.
struct ScaledInformation {
  ParameterLayout at;
  Standardisation by;
  GaussianParameters model;     // on standardised data
  Eigen::VectorXd score;        // [p]
  Eigen::MatrixXd information;  // [p, p] observed
  Eigen::MatrixXd scores;       // [p, p] sum of s_i s_i^T
  Eigen::MatrixXd to_data;      // [p, p] d theta / d theta on standardised data
};

/// d theta / d theta~: to_data_scale is affine but for the variances, whose logarithm is shifted.
inline Eigen::MatrixXd data_jacobian(Standardisation by, const ParameterLayout& at, GaussianParameters shape) {
  by.y_center = 0;
  const auto mapped = [&](const Eigen::VectorXd& theta) {
    GaussianParameters m = shape;
    m.gate_slope.setZero();
    m.gate_bias.setZero();
    unpack(theta, at, m);
    to_data_scale(by, m);
    return pack(m, at);
  };
  const Eigen::VectorXd origin = mapped(Eigen::VectorXd::Zero(at.size()));
  Eigen::MatrixXd jacobian(at.size(), at.size());
  for (Index i = 0; i < at.size(); ++i) {
    jacobian.col(i) = mapped(Eigen::VectorXd::Unit(at.size(), i)) - origin;
    const bool logarithm = i >= at.log_variance(0) || (at.free_temperature && i == at.log_temperature());
    if (logarithm) jacobian.col(i) = Eigen::VectorXd::Unit(at.size(), i);  // without the rounding of log(exp)
  }
  return jacobian;
}

template <class Gate>
ScaledInformation scaled_information(const char* function, const GaussianMoe<Gate>& model, const RegressionData& data) {
  require_normal_form(function, model);
  Evaluation<Gate>::check(function, model, data);
  const GateForm form = model.form();
  ScaledInformation out{.at = layout(model),
                        .by = standardisation_of(function, data, form.bias == BiasPlace::Outside || !form.ranks_bias),
                        .model = model,
                        .score = {},
                        .information = {},
                        .scores = {},
                        .to_data = {}};
  to_standard_scale(out.by, out.model);
  const RowBlocks rows(data, out.by);
  const ObjectiveOf<typename GateModel<Gate>::Inner> objective(rows, out.at, form);
  objective.information(out.model, out.score, out.information);
  out.scores = objective.score_covariance(out.model);
  out.to_data = data_jacobian(out.by, out.at, out.model);
  return out;
}

/// Largest coefficient of the gate on standardised data; a fit calls the gate separated above kSeparated.
inline constexpr double kSeparated = 30;
inline double steepness(const GaussianParameters& standardised) {
  return std::max(standardised.gate_slope.cwiseAbs().maxCoeff(), standardised.gate_bias.cwiseAbs().maxCoeff());
}

/// An information matrix counts as singular below this ratio of eigenvalues.
inline constexpr double kSingular = 1e-8;

/// Eigenvalues of a symmetric matrix brought to a unit diagonal. Coordinates whose diagonal is not positive are apart.
struct ScaledEigen {
  explicit ScaledEigen(const Eigen::MatrixXd& a) {
    const double largest = a.size() > 0 ? a.diagonal().cwiseAbs().maxCoeff() : 0;
    for (Index i = 0; i < a.rows(); ++i) (a(i, i) > 1e-14 * largest ? regular : flat).push_back(i);
    if (regular.empty()) return;
    scale = a(regular, regular).diagonal().cwiseSqrt().cwiseInverse();
    const Eigen::MatrixXd unit = scale.asDiagonal() * a(regular, regular) * scale.asDiagonal();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(unit);
    values = eigen.eigenvalues();
    vectors = eigen.eigenvectors();
  }

  /// Smallest over largest eigenvalue; 0 if there is a flat coordinate.
  double ratio() const { return flat.empty() && values.size() > 0 ? values(0) / values(values.size() - 1) : 0; }

  /// The inverse; every coordinate must be regular and all eigenvalues positive.
  Eigen::MatrixXd inverse() const {
    const Eigen::MatrixXd half = scale.asDiagonal() * vectors * values.cwiseSqrt().cwiseInverse().asDiagonal();
    return half * half.transpose();
  }

  std::vector<Index> regular, flat;
  Eigen::VectorXd scale, values;  // of the regular ones, ascending
  Eigen::MatrixXd vectors;
};

}  // namespace moe::inline MOE_ABI::detail
