// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "moe/gaussian/inference/criteria.hpp"
#include "moe/likelihood/mixture_pass.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

template <class F, class G>
void check_mixture(const char* function, const MixtureRegression<F, G>& model, const ResponseData& data) {
  model.validate(function);
  data.validate(function);
  if (data.input_dim() != model.input_dim())
    fail(function, ": x has ", data.input_dim(), " columns, expected input_dim = ", model.input_dim());
  require_outputs<F>(function, data);
  model.family.require(function, data);
}

template <class F, class G>
void require_normal_mixture(const char* function, const MixtureRegression<F, G>& model) {
  model.validate(function);
  require_normal_form(function, model.gate_model());
}

/// The gate's view of the rows: their y and offset play no part.
inline RegressionData gate_rows_of(const ResponseData& data) {
  RegressionData rows = data;
  rows.y.setZero();
  rows.offset.resize(0);
  return rows;
}

/// A model and some rows, ready.
template <class F, class G>
struct MixtureEvaluation {
  MixtureEvaluation(const MixtureRegression<F, G>& model, const ResponseData& data, const Standardisation& by)
      : family(model.family),
        numbers(to_standard(model, by)),
        blocks(gate_rows_of(data), by),
        experts(with_inputs(model, data), by),
        gate(blocks, mixture_layout(model).gate, model.gate_model().form()),
        pass(family, experts, gate, mixture_layout(model)) {}

  MixtureEvaluation(const MixtureRegression<F, G>& model, const ResponseData& data)
      : MixtureEvaluation(model, data, Standardisation::none(data.input_dim())) {}
  MixtureEvaluation(const MixtureEvaluation&) = delete;
  MixtureEvaluation& operator=(const MixtureEvaluation&) = delete;

  static ResponseData with_inputs(const MixtureRegression<F, G>& model, ResponseData data) {
    data.expert_inputs = model.expert_inputs;
    return data;
  }

  F family;
  MixtureNumbers numbers;
  RowBlocks blocks;
  ExpertRows experts;
  GateObjectiveOf<typename GateModel<G>::Inner> gate;
  MixturePass<F> pass;
};

/// Of the log-likelihood in the free parameters.
struct MixtureDerivatives {
  Eigen::VectorXd score;
  Eigen::MatrixXd information;
};

template <class F, class G>
MixtureDerivatives derivatives(const char* function, const MixtureRegression<F, G>& model, const ResponseData& data) {
  require_normal_mixture(function, model);
  check_mixture(function, model, data);
  MixtureEvaluation<F, G> at(model, counted_rows(data));
  MixtureDerivatives out;
  at.pass.information(at.numbers, out.score, out.information);
  return out;
}

}  // namespace detail

/// log p(y | x), summed over the rows with their weights, natural logarithm: probabilities, where y is a count or a
/// class. O(n k (C d + 30)), some copies of the data; the same bits for any number of threads. Throws
/// std::invalid_argument for a bad model, data that are not finite, shapes that do not agree, and y that the family
/// does not have.
template <class F, class G>
double log_likelihood(const MixtureRegression<F, G>& model, const ResponseData& data) {
  detail::check_mixture("moe::log_likelihood", model, data);
  detail::MixtureEvaluation<F, G> at(model, detail::counted_rows(data));
  return at.pass.value(at.numbers);
}

/// log p(y_i | x_i) [n], whatever the weights. Cost and errors as for log_likelihood.
template <class F, class G>
Eigen::VectorXd log_density(const MixtureRegression<F, G>& model, const ResponseData& data) {
  detail::check_mixture("moe::log_density", model, data);
  detail::MixtureEvaluation<F, G> at(model, data);
  at.pass.set_densities(at.numbers);
  return at.gate.log_density(at.numbers.gate);
}

/// Posterior probabilities r_ij [n, components] of the components given (x_i, y_i), that of noise last; rows sum to 1,
/// whatever the weights. Cost and errors as for log_likelihood.
template <class F, class G>
Matrix<double> responsibilities(const MixtureRegression<F, G>& model, const ResponseData& data) {
  detail::check_mixture("moe::responsibilities", model, data);
  detail::MixtureEvaluation<F, G> at(model, data);
  at.pass.set_densities(at.numbers);
  return at.pass.responsibilities(at.numbers.gate);
}

/// Names of the free parameters, in the order of score(): the gate's as those of GaussianMoe, then, expert by expert,
/// "a[0,2]" and "b[0]" (of predictor c > 0 of several: "a[0,2|c]", "b[0|c]"), and "log variance[0]", say (of
/// output c of several "log variance[0|c]").
template <class F, class G>
std::vector<std::string> parameter_names(const MixtureRegression<F, G>& model) {
  detail::MixtureLayout at = detail::mixture_layout(model);
  std::vector<std::string> names = detail::identified_names(model.gate_model());
  names.resize(static_cast<std::size_t>(at.num_gate()));
  at.gate.expert_inputs = model.expert_inputs;
  for (Index j = 0; j < at.num_experts; ++j) {
    const std::string expert = std::to_string(j);
    for (Index c = 0; c < at.expert.predictors; ++c) {
      const std::string end = (at.expert.predictors > 1 ? '|' + std::to_string(c) : std::string()) + ']';
      for (Index f = 0; f + 1 < at.expert.features; ++f)
        names.push_back("a[" + expert + ',' + std::to_string(at.gate.expert_input(f)) + end);
      names.push_back("b[" + expert + end);
    }
    for (Index s = 0; s < F::kShapes; ++s)
      names.push_back("log " + std::string(F::kShapeNames[static_cast<std::size_t>(s)]) + '[' + expert +
                      (detail::num_outputs_of<F>() > 1 ? '|' + std::to_string(s) : std::string()) + ']');
  }
  return names;
}

/// The free parameters in that order, of a model whose gate is in normal form.
template <class F, class G>
Eigen::VectorXd free_parameters(const MixtureRegression<F, G>& model) {
  detail::require_normal_mixture("moe::free_parameters", model);
  return detail::pack(detail::to_standard(model, detail::Standardisation::none(model.input_dim())),
                      detail::mixture_layout(model));
}

/// The model with other free parameters.
template <class F, class G>
MixtureRegression<F, G> with_free_parameters(MixtureRegression<F, G> model, const Eigen::VectorXd& theta) {
  const auto none = detail::Standardisation::none(model.input_dim());
  const detail::MixtureLayout at = detail::mixture_layout(model);
  if (theta.size() != at.size())
    fail("moe::with_free_parameters: theta has ", theta.size(), " numbers, expected ", at.size());
  detail::MixtureNumbers numbers = detail::to_standard(model, none);
  detail::unpack(theta, at, numbers);
  detail::to_data(numbers, none, model);
  return model;
}

/// Derivative of the log-likelihood in the free parameters, in the order of parameter_names(): shapes by their
/// logarithms, of the last component of a linear gate none. Top-K: the active components are held. O(n P^2); errors as
/// for log_likelihood, and for a gate that is not in normal form.
template <class F, class G>
Eigen::VectorXd score(const MixtureRegression<F, G>& model, const ResponseData& data) {
  return detail::derivatives("moe::score", model, data).score;
}

/// Minus the second derivatives of the log-likelihood in the free parameters [P, P], symmetric. Top-K: the active
/// components are held. O(n P^2); errors as for score.
/// Louis, "Finding the observed information matrix when using the EM algorithm", JRSS B 1982.
template <class F, class G>
Eigen::MatrixXd observed_information(const MixtureRegression<F, G>& model, const ResponseData& data) {
  return detail::derivatives("moe::observed_information", model, data).information;
}

/// Number of identified parameters: those of k experts, C (d + 1) + E each, d what they read, and of the gate as
/// num_identified_parameters(GaussianMoe) has it.
template <class F, class G>
Index num_identified_parameters(const MixtureRegression<F, G>& model) {
  model.validate("moe::num_identified_parameters");
  const detail::MixtureLayout at = detail::mixture_layout(model);
  return at.num_experts * at.expert.size() + detail::num_identified_gate(model.gate_model());
}

/// AIC, BIC and ICL of a fitted model on the data it was fitted to; what they assume, says criteria(GaussianMoe).
template <class F, class G>
Criteria criteria(const MixtureRegression<F, G>& model, const ResponseData& data) {
  return detail::criteria_of(num_identified_parameters(model), log_likelihood(model, data),
                             responsibilities(model, data), data);
}

}  // namespace moe::inline MOE_ABI
