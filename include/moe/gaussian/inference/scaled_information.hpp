// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/core/when_used.hpp"
#include "moe/gaussian/fit/separation.hpp"
#include "moe/gaussian/pass/gram.hpp"
#include "moe/gaussian/pass/held_intercept.hpp"
#include "moe/gaussian/pass/likelihood.hpp"
#include "moe/gaussian/pass/standardise.hpp"

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
  Eigen::MatrixXd gram;         // [p, p] parameter_gram
  bool separated = false;       // is the gate better, or as good, where it is infinitely steep?
};

/// d theta / d theta~: to_data_scale is affine but for the variances, whose logarithm is shifted.
template <class = WhenUsed>
Eigen::MatrixXd data_jacobian(Standardisation by, const ParameterLayout& at, GaussianParameters shape) {
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

template <class G>
ScaledInformation scaled_information(const char* function, const GaussianMoe<G>& model, const RegressionData& all) {
  require_normal_form(function, model);
  Evaluation<G>::check(function, model, all);
  const CountedRows counted(all);
  const RegressionData& data = counted.data();
  GateForm form = model.form();
  ScaledInformation out{.at = layout(model),
                        .by = standardisation_of(function, data, keeps_origin(model), layout(model)),
                        .model = model,
                        .score = {},
                        .information = {},
                        .scores = {},
                        .to_data = {},
                        .gram = {}};
  hold_origin(out.by, out.at);
  to_standard_scale(out.by, out.model);
  if (!form.score.is_product()) form.score.unit = out.by.gate_unit;
  const RowBlocks rows(data, out.by);
  const ObjectiveOf<typename GateModel<G>::Inner> objective(rows, out.at, form);
  objective.information(out.model, out.score, out.information);
  out.scores = objective.score_covariance(out.model);
  out.to_data = data_jacobian(out.by, out.at, out.model);
  out.gram = parameter_gram(out.at, rows);
  out.separated = Separation(objective, out.model).exists();
  return out;
}

/// Largest coefficient of the gate on standardised data.
inline double steepness(const GaussianParameters& standardised) {
  return std::max(standardised.gate_slope.cwiseAbs().maxCoeff(), standardised.gate_bias.cwiseAbs().maxCoeff());
}

}  // namespace moe::inline MOE_ABI::detail
