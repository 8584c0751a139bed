// SPDX-License-Identifier: MIT
#pragma once

#include "moe/gaussian/pass/scored_objective.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Which rows are looked at: those of weight above 0, for sums, or each.
enum class Rows { Counted, All };

/// A model and data on the data's own scale, checked and ready.
template <class G>
struct Evaluation {
  Evaluation(const char* function, const GaussianMoe<G>& model, const RegressionData& data, Rows which = Rows::Counted)
      : rows((check(function, model, data), which == Rows::All ? data : CountedRows(data).data()),
             Standardisation::none(data.input_dim())),
        objective(rows, layout(model), model.form()) {}

  static void check(const char* function, const GaussianMoe<G>& model, const RegressionData& data) {
    model.validate(function);
    data.validate(function);
    if (data.input_dim() != model.input_dim())
      fail(function, ": x has ", data.input_dim(), " columns, expected input_dim = ", model.input_dim());
  }

  RowBlocks rows;
  ObjectiveOf<typename GateModel<G>::Inner> objective;
};

template <class G>
void require_normal_form(const char* function, const GaussianMoe<G>& model) {
  model.validate(function);
  const ParameterLayout at = layout(model);
  const Index last = model.num_experts() - 1;
  if ((at.free_biases == last && model.gate_bias(last) != 0) ||
      (at.free_slopes == last && (model.gate_slope.row(last).array() != 0).any()))
    fail(function, ": the gate of the last expert is not 0, expected a model in normal form (moe::normalise)");
}

}  // namespace detail

/// log p(y | x), summed over the rows with their weights, natural logarithm. O(n k (d + 30)), one copy of the data; the
/// same bits for any number of threads. Throws std::invalid_argument for a bad model, non-finite data or shapes that do
/// not agree.
template <class G>
double log_likelihood(const GaussianMoe<G>& model, const RegressionData& data) {
  return detail::Evaluation<G>("moe::log_likelihood", model, data).objective.value(model);
}

/// log p(y_i | x_i) [n], whatever the weights. Cost and errors as for log_likelihood.
template <class G>
Eigen::VectorXd log_density(const GaussianMoe<G>& model, const RegressionData& data) {
  return detail::Evaluation<G>("moe::log_density", model, data, detail::Rows::All).objective.log_density(model);
}

/// Posterior probabilities r_ij [n, k] of the experts given (x_i, y_i): pi_j f_j / sum_l pi_l f_l, exactly 0 for
/// inactive experts; rows sum to 1, whatever the weights. Cost and errors as for log_likelihood.
template <class G>
Matrix<double> responsibilities(const GaussianMoe<G>& model, const RegressionData& data) {
  const detail::Evaluation<G> evaluation("moe::responsibilities", model, data, detail::Rows::All);
  Matrix<double> out(data.num_rows(), model.num_experts());
  evaluation.objective.for_each_block(model, [&](Index first, Index rows, const detail::PosteriorColumns& columns) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < out.cols(); ++j)
        out(first + i, j) = columns.posterior[j * detail::kBlockRows + i] * columns.posterior_scale[i];
  });
  return out;
}

/// Derivative of the log-likelihood in the free parameters, in the order of layout(model). Top-K: the active experts
/// are held. Cost O(n k (3 d + 40)); errors as for log_likelihood, and for a gate that is not in normal form.
template <class G>
Eigen::VectorXd score(const GaussianMoe<G>& model, const RegressionData& data) {
  detail::require_normal_form("moe::score", model);
  Eigen::VectorXd out;
  detail::Evaluation<G>("moe::score", model, data).objective.score(model, out);
  return out;
}

/// Minus the second derivatives of the log-likelihood in the free parameters [p, p], symmetric; positive definite at a
/// regular maximum. Top-K: the active experts are held. Cost O(n k^2 d^2); errors as for score.
/// Louis, "Finding the observed information matrix when using the EM algorithm", JRSS B 1982.
template <class G>
Eigen::MatrixXd observed_information(const GaussianMoe<G>& model, const RegressionData& data) {
  detail::require_normal_form("moe::observed_information", model);
  Eigen::VectorXd score;
  Eigen::MatrixXd out;
  detail::Evaluation<G>("moe::observed_information", model, data).objective.information(model, score, out);
  return out;
}

/// sum_i w_i s_i s_i^T [p, p], s_i the score of row i, w_i its weight: the middle of the sandwich. Cost and errors as
/// for observed_information.
template <class G>
Eigen::MatrixXd score_covariance(const GaussianMoe<G>& model, const RegressionData& data) {
  detail::require_normal_form("moe::score_covariance", model);
  return detail::Evaluation<G>("moe::score_covariance", model, data).objective.score_covariance(model);
}

}  // namespace moe::inline MOE_ABI
