// SPDX-License-Identifier: MIT
#pragma once

#include "moe/gaussian/information_weight.hpp"
#include "moe/gaussian/sums.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Is the gate bias an argument of `inner`, so that it shares the factor of its slope?
inline bool bias_follows_slope(const GateForm& form, bool linear) { return linear || form.bias == BiasPlace::Inside; }

/// Model, rows and blocks, checked and ready for a sweep; `require_normal` asks for the gate in normal form.
template <class Gate>
struct Evaluation {
  using Inner = typename GateModel<Gate>::Inner;
  static constexpr bool kLinear = std::is_same_v<Inner, Identity>;

  Evaluation(const char* function, const GaussianMoe<Gate>& model, const RegressionData& data)
      : rows((check(function, model, data), data), Standardisation::none(data.input_dim())),
        coefficients(model, model.form()),
        at(layout(model)),
        blocks(at, bias_follows_slope(model.form(), kLinear)) {
    coefficients.keep_scores = at.free_temperature;
  }

  template <class Sums>
  double operator()(const Sums& sums, double* total) const {
    return sweep<Inner>(rows, coefficients, sums, total);
  }

  static void check(const char* function, const GaussianMoe<Gate>& model, const RegressionData& data) {
    model.validate(function);
    data.validate(function);
    if (data.input_dim() != model.input_dim())
      fail(function, ": x has ", data.input_dim(), " columns, expected input_dim = ", model.input_dim());
  }

  RowBlocks rows;
  MixtureCoefficients coefficients;
  ParameterLayout at;
  ScoreBlocks blocks;
};

/// Calls row_block(first row, rows, columns) for every block.
template <class Gate, class F>
void for_each_block(const Evaluation<Gate>& e, F&& row_block) {
  parallel_ranges(e.rows.num_blocks(), /*grain=*/16, [&](Index begin, Index end, Index) {
    AlignedBuffer<double> memory(PosteriorColumns::size(e.coefficients.num_experts));
    const PosteriorColumns columns(memory.data(), e.coefficients.num_experts);
    const Posterior<typename Evaluation<Gate>::Inner> posterior(e.coefficients, columns);
    for (Index b = begin; b < end; ++b) {
      posterior(e.rows.features(b), e.rows.output(b));
      row_block(b * kBlockRows, e.rows.rows(b), columns);
    }
  });
}

template <class Gate>
void require_normal_form(const char* function, const GaussianMoe<Gate>& model) {
  const ParameterLayout at = layout(model);
  const Index last = model.num_experts() - 1;
  if ((at.free_biases == last && model.gate_bias(last) != 0) ||
      (at.free_slopes == last && (model.gate_slope.row(last).array() != 0).any()))
    fail(function, ": the gate of the last expert is not 0, expected a model in normal form (moe::normalise)");
}

}  // namespace detail

/// log p(y | x), summed over the rows, natural logarithm. O(n k (d + 30)), one copy of the data; the same bits for any
/// number of threads. Throws std::invalid_argument for a bad model, non-finite data or shapes that do not agree.
template <class Gate>
double log_likelihood(const GaussianMoe<Gate>& model, const RegressionData& data) {
  const detail::Evaluation<Gate> evaluation("moe::log_likelihood", model, data);
  return evaluation(detail::NoSums{}, nullptr);
}

/// log p(y_i | x_i) [n]. Cost and errors as for log_likelihood.
template <class Gate>
Eigen::VectorXd log_density(const GaussianMoe<Gate>& model, const RegressionData& data) {
  const detail::Evaluation<Gate> evaluation("moe::log_density", model, data);
  Eigen::VectorXd out(data.num_rows());
  detail::for_each_block(evaluation, [&](Index first, Index rows, const detail::PosteriorColumns& columns) {
    for (Index i = 0; i < rows; ++i) out(first + i) = columns.shift[i] + std::log(columns.ratio[i]);
  });
  return out;
}

/// Posterior probabilities r_ij [n, k] of the experts given (x_i, y_i): pi_j f_j / sum_l pi_l f_l, exactly 0 for
/// inactive experts; rows sum to 1. Cost and errors as for log_likelihood.
template <class Gate>
Matrix<double> responsibilities(const GaussianMoe<Gate>& model, const RegressionData& data) {
  const detail::Evaluation<Gate> evaluation("moe::responsibilities", model, data);
  Matrix<double> out(data.num_rows(), model.num_experts());
  detail::for_each_block(evaluation, [&](Index first, Index rows, const detail::PosteriorColumns& columns) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < out.cols(); ++j)
        out(first + i, j) = columns.posterior[j * detail::kBlockRows + i] * columns.posterior_scale[i];
  });
  return out;
}

/// Derivative of the log-likelihood in the free parameters, in the order of layout(model). Top-K: the active experts
/// are held. Cost O(n k (3 d + 40)); errors as for log_likelihood, and for a gate that is not in normal form.
template <class Gate>
Eigen::VectorXd score(const GaussianMoe<Gate>& model, const RegressionData& data) {
  const detail::Evaluation<Gate> evaluation("moe::score", model, data);
  detail::require_normal_form("moe::score", model);
  const detail::ScoreSums<typename detail::Evaluation<Gate>::Inner> sums(evaluation.coefficients, evaluation.blocks);
  std::vector<double> total(static_cast<std::size_t>(sums.size()));
  evaluation(sums, total.data());
  Eigen::VectorXd out = Eigen::VectorXd::Zero(evaluation.at.size());
  sums.scatter(total.data(), out);
  return out;
}

namespace detail {

template <class Weight, class Gate>
Eigen::MatrixXd pair_matrix(const char* function, const GaussianMoe<Gate>& model, const RegressionData& data) {
  const Evaluation<Gate> evaluation(function, model, data);
  require_normal_form(function, model);
  const BlockPairs pairs(evaluation.blocks);
  const PairSums<typename Evaluation<Gate>::Inner, Weight> sums(evaluation.coefficients, evaluation.blocks, pairs);
  std::vector<double> total(static_cast<std::size_t>(sums.size()));
  evaluation(sums, total.data());
  Eigen::MatrixXd out = Eigen::MatrixXd::Zero(evaluation.at.size(), evaluation.at.size());
  sums.scatter(total.data(), out);
  return out;
}

}  // namespace detail

/// Minus the second derivatives of the log-likelihood in the free parameters [p, p], symmetric; positive definite at a
/// regular maximum. Top-K: the active experts are held. Cost O(n k^2 d^2); errors as for score.
/// Louis, "Finding the observed information matrix when using the EM algorithm", JRSS B 1982.
template <class Gate>
Eigen::MatrixXd observed_information(const GaussianMoe<Gate>& model, const RegressionData& data) {
  return detail::pair_matrix<detail::InformationWeight>("moe::observed_information", model, data);
}

/// sum_i s_i s_i^T [p, p], s_i the score of row i: the middle of the sandwich. Cost and errors as for
/// observed_information.
template <class Gate>
Eigen::MatrixXd score_covariance(const GaussianMoe<Gate>& model, const RegressionData& data) {
  return detail::pair_matrix<detail::ScoreProductWeight>("moe::score_covariance", model, data);
}

}  // namespace moe::inline MOE_ABI
