// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/likelihood/fit.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// d theta / d theta on standardised inputs [P, P].
template <class F, class G>
Eigen::MatrixXd mixture_jacobian(const MixtureRegression<F, G>& model, const Standardisation& by,
                                 const MixtureNumbers& numbers) {
  const MixtureLayout at = mixture_layout(model);
  Eigen::MatrixXd jacobian = Eigen::MatrixXd::Identity(at.size(), at.size());
  const Index g = at.num_gate(), p = at.expert.features;
  jacobian.topLeftCorner(g, g) = data_jacobian(by, at.gate, numbers.gate).topLeftCorner(g, g);
  ParameterLayout columns = at.gate;
  columns.expert_inputs = model.expert_inputs;
  for (Index j = 0; j < at.num_experts; ++j)
    for (Index c = 0; c < at.expert.predictors; ++c)
      for (Index f = 0; f + 1 < p; ++f) {
        const Index column = columns.expert_input(f), slope = at.at(j) + c * p + f, constant = at.at(j) + c * p + p - 1;
        jacobian(slope, slope) = 1 / by.x_scale(column);
        jacobian(constant, slope) = -by.x_center(column) / by.x_scale(column);
      }
  return jacobian;
}

/// Mean squares of what parameters move, as parameter_gram().
template <class = WhenUsed>
Eigen::MatrixXd mixture_gram(const MixtureLayout& at, const RowBlocks& blocks, const ExpertRows& rows) {
  Eigen::MatrixXd out = Eigen::MatrixXd::Identity(at.size(), at.size());
  const Index g = at.num_gate(), p = at.expert.features;
  out.topLeftCorner(g, g) = parameter_gram(at.gate, blocks).topLeftCorner(g, g);
  const Eigen::MatrixXd gram = rows.gram(rows.weight) / rows.weight.sum();
  for (Index j = 0; j < at.num_experts; ++j)
    for (Index c = 0; c < at.expert.predictors; ++c) out.block(at.at(j) + c * p, at.at(j) + c * p, p, p) = gram;
  return out;
}

/// Which parameters may have standard errors, by reason.
template <class F, class G>
std::vector<NoStandardError> mixture_reasons(const MixtureRegression<F, G>& model, const MixtureFlags& known,
                                             MixtureEvaluation<F, G>& at) {
  const MixtureLayout& layout = at.pass.layout();
  std::vector<NoStandardError> reasons(static_cast<std::size_t>(layout.size()), NoStandardError::Available);
  const auto none = [&](Index first, Index count, NoStandardError reason) {
    std::fill_n(reasons.begin() + first, count, reason);
  };
  const GaussianMoe<G> gate = model.gate_model();
  if (is_hard(gate) && gate.num_experts() > 1)
    none(0, layout.num_gate(), NoStandardError::HardGate);
  else if (known.separated || Separation(at.gate, at.numbers.gate).exists())
    none(0, layout.num_gate(), NoStandardError::SeparatedGate);
  else if (has_temperature_ray(gate))
    none(layout.gate.log_temperature(), 1, NoStandardError::TemperatureRay);
  const Index coefficients = layout.expert.predictors * layout.expert.features;
  const Matrix<double> r = at.pass.responsibilities(at.numbers.gate);
  for (Index j = 0; j < layout.num_experts; ++j) {
    const ExpertNumbers& expert = at.numbers.experts[static_cast<std::size_t>(j)];
    if constexpr (requires { model.family.most_degrees; })
      if (expert.shape(1) <= model.family.least_degrees * (1 + 1e-9) ||
          expert.shape(1) >= std::min(1e6, model.family.most_degrees * (1 - 1e-9)))
        none(layout.at(j) + coefficients + 1, 1, NoStandardError::ShapeAtBound);
    if (is_separated(model.family, at.experts, at.experts.weight.cwiseProduct(r.col(j)), expert))
      none(layout.at(j), layout.expert.size(), NoStandardError::Singular);
  }
  return reasons;
}

template <class F, class G>
StandardErrors mixture_errors(MixtureRegression<F, G> model, const ResponseData& all, const MixtureFlags& known,
                              const StandardErrorOptions& options) {
  constexpr const char* kName = "moe::standard_errors";
  options.validate(kName);
  require_normal_mixture(kName, model);
  check_mixture(kName, model, all);
  GaussianMoe<G> gate = model.gate_model();
  const double tau = model.temperature;
  const bool ray = has_temperature_ray(gate);
  if (ray) {
    to_unit_temperature(gate);
    model.gate_slope = gate.gate_slope, model.gate_bias = gate.gate_bias, model.temperature = gate.temperature;
  }
  const ResponseData data = counted_rows(all);
  ParameterLayout both = mixture_layout(model).gate;
  both.expert_inputs = model.expert_inputs;
  Standardisation by = standardisation_of(kName, data, keeps_origin(gate), both);
  by.y_center = 0, by.y_scale = 1;
  MixtureEvaluation<F, G> evaluation(model, data, by);
  ScaledInformation at{.at = both,
                       .by = by,
                       .model = evaluation.numbers.gate,
                       .score = {},
                       .information = {},
                       .scores = {},
                       .to_data = {},
                       .gram = {}};
  evaluation.pass.information(evaluation.numbers, at.score, at.information);
  at.scores = evaluation.pass.score_covariance(evaluation.numbers);
  at.to_data = mixture_jacobian(model, by, evaluation.numbers);
  at.gram = mixture_gram(evaluation.pass.layout(), evaluation.blocks, evaluation.experts);
  const std::vector<NoStandardError> reasons = mixture_reasons(model, known, evaluation);
  StandardErrors out{.reason = known.at_floor ? NoStandardError::VarianceAtFloor : NoStandardError::Available};
  for (std::size_t i = 0; i < reasons.size(); ++i)
    if (reasons[i] == NoStandardError::Available) out.coordinates.push_back(static_cast<Index>(i));
  if (out.available()) invert(at, options, out);

  model.temperature = tau;
  const Eigen::VectorXd theta = free_parameters(model);
  const std::vector<std::string> names = parameter_names(model);
  fill_estimates(names, reasons, theta, options, out);
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i].starts_with("log ")) out.parameters.push_back(exponential(out.parameters[i], names[i].substr(4)));
  explain(out);
  return out;
}

}  // namespace detail

/// Standard errors of the free parameters of a mixture of any family at the maximum of its likelihood, where they
/// exist: as standard_errors(GaussianMoe), from the observed information of the whole mixture and from the sandwich,
/// under the names of parameter_names(), then of shapes themselves ("variance[0]", "degrees of freedom[1]"; of a
/// free temperature, "tau"). Experts whose coefficients have no finite maximum have none, nor have degrees of freedom
/// at a bound; the range of noise is taken as known. Errors as for score. O(n P^2 + P^3).
/// White, "Maximum likelihood estimation of misspecified models", Econometrica 1982; Louis, JRSS B 1982.
template <class F, class G>
StandardErrors standard_errors(const MixtureRegression<F, G>& model, const ResponseData& data,
                               const StandardErrorOptions& options = {}) {
  return detail::mixture_errors(model, data, MixtureFlags{}, options);
}

/// The same for a fit, which also says if its gate is separated or a variance is at its floor.
template <class F, class G>
StandardErrors standard_errors(const MixtureFit<F, G>& fit, const ResponseData& data,
                               const StandardErrorOptions& options = {}) {
  return detail::mixture_errors(fit.model, data, fit.flags, options);
}

}  // namespace moe::inline MOE_ABI
