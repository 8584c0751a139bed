// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/gaussian/model/input_rows.hpp"
#include "moe/gaussian/predict/normal_mixture.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Calls body(i, mixture), in parallel, with the distribution of y at every row i.
template <class G, class Body>
void for_each_conditional(const char* function, const GaussianMoe<G>& model, const InputRows& rows, Body&& body) {
  model.validate(function);
  rows.validate(function, model.input_dim());
  const MatrixView<double>& x = rows.x();
  constexpr Index kGrain = 256;  // rows; at some 50 ns each, a task is worth its start
  parallel_ranges(x.rows(), kGrain, [&](Index begin, Index end, Index) {
    GateRow<G> weigh(model);
    Eigen::RowVectorXd weights(model.num_experts()), means(model.num_experts());
    NormalMixture mixture;
    for (Index i = begin; i < end; ++i) {
      weigh(x.row(i), weights);
      means = model.intercept + x.row(i) * model.slope.transpose();
      if (const double offset = rows.offset(i); offset != 0) means.array() += offset;
      if (const double precision = rows.precision(i); precision != 1)
        mixture.assign(weights, means, model.variance / precision);
      else
        mixture.assign(weights, means, model.variance);
      body(i, std::as_const(mixture));
    }
  });
}

}  // namespace detail

/// What the model says about y at one x [d] (or [1, d]). Throws std::invalid_argument for a bad model, another number
/// of inputs, or inputs that are not finite; so do all functions below, which take rows x [n, d], or RegressionData
/// with the offsets and precisions of their rows (InputRows). O(k d).
template <class G>
NormalMixture conditional(const GaussianMoe<G>& model, const Eigen::Ref<const Eigen::RowVectorXd>& x) {
  NormalMixture result;
  detail::for_each_conditional("moe::conditional", model, x, [&](Index, const NormalMixture& at) { result = at; });
  return result;
}

/// Mean and variance of y, [n] each.
struct Moments {
  Eigen::VectorXd mean = {}, variance = {};
};

/// E[y | x] = sum_j pi_j m_j and Var[y | x] = sum_j pi_j (nu_j + (m_j - E[y | x])^2) at n rows.
/// O(n k d), in parallel, the same bits for any number of threads; so are all functions below.
template <class G>
Moments predict_moments(const GaussianMoe<G>& model, const InputRows& rows) {
  Moments moments{Eigen::VectorXd(rows.num_rows()), Eigen::VectorXd(rows.num_rows())};
  detail::for_each_conditional("moe::predict_moments", model, rows, [&](Index i, const NormalMixture& at) {
    moments.mean(i) = at.mean();
    moments.variance(i) = at.variance();
  });
  return moments;
}

/// E[y | x] at n rows.
template <class G>
Eigen::VectorXd predict_mean(const GaussianMoe<G>& model, const InputRows& rows) {
  return predict_moments(model, rows).mean;
}

/// Var[y | x] at n rows.
template <class G>
Eigen::VectorXd predict_variance(const GaussianMoe<G>& model, const InputRows& rows) {
  return predict_moments(model, rows).variance;
}

/// The highest peak of the density of y at n rows.
template <class G>
Eigen::VectorXd predict_mode(const GaussianMoe<G>& model, const InputRows& rows) {
  Eigen::VectorXd modes(rows.num_rows());
  detail::for_each_conditional("moe::predict_mode", model, rows,
                               [&](Index i, const NormalMixture& at) { modes(i) = at.mode(); });
  return modes;
}

/// Quantiles of y at n rows, one column per level: [n, levels]. Throws std::invalid_argument for a level outside
/// of (0, 1).
template <class G>
Matrix<double> predict_quantiles(const GaussianMoe<G>& model, const InputRows& rows, std::span<const double> levels) {
  Matrix<double> quantiles(rows.num_rows(), static_cast<Index>(levels.size()));
  detail::for_each_conditional("moe::predict_quantiles", model, rows, [&](Index i, const NormalMixture& at) {
    for (std::size_t l = 0; l < levels.size(); ++l) quantiles(i, static_cast<Index>(l)) = at.quantile(levels[l]);
  });
  return quantiles;
}

/// Densities p(y_c | x_i) of every row at every value of y [m]: [n, m].
template <class G>
Matrix<double> density_grid(const GaussianMoe<G>& model, const InputRows& rows,
                            const Eigen::Ref<const Eigen::VectorXd>& y) {
  Matrix<double> grid(rows.num_rows(), y.size());
  detail::for_each_conditional("moe::density_grid", model, rows, [&](Index i, const NormalMixture& at) {
    for (Index c = 0; c < y.size(); ++c) grid(i, c) = at.density(y(c));
  });
  return grid;
}

/// Densities p(y_i | x_i) of rows with y [n]. The likelihood is faster by moe/gaussian/pass/likelihood.hpp.
template <class G>
Eigen::VectorXd predict_density(const GaussianMoe<G>& model, const InputRows& rows,
                                const Eigen::Ref<const Eigen::VectorXd>& y) {
  detail::require_shape("moe::predict_density", "y", y, rows.num_rows(), 1);
  Eigen::VectorXd densities(rows.num_rows());
  detail::for_each_conditional("moe::predict_density", model, rows,
                               [&](Index i, const NormalMixture& at) { densities(i) = at.density(y(i)); });
  return densities;
}

/// P(Y <= y_i | x_i) of rows with y [n]: uniform on (0, 1) if the model is right, which residuals of a mixture
/// are judged by.
template <class G>
Eigen::VectorXd predict_cdf(const GaussianMoe<G>& model, const InputRows& rows,
                            const Eigen::Ref<const Eigen::VectorXd>& y) {
  detail::require_shape("moe::predict_cdf", "y", y, rows.num_rows(), 1);
  Eigen::VectorXd values(rows.num_rows());
  detail::for_each_conditional("moe::predict_cdf", model, rows,
                               [&](Index i, const NormalMixture& at) { values(i) = at.cdf(y(i)); });
  return values;
}

/// The expert with the largest weight pi_j(x) at n rows; ties go to the lower one.
template <class G>
std::vector<Index> predict_expert(const GaussianMoe<G>& model, const InputRows& rows) {
  std::vector<Index> experts(static_cast<std::size_t>(rows.num_rows()));
  detail::for_each_conditional("moe::predict_expert", model, rows, [&](Index i, const NormalMixture& at) {
    experts[static_cast<std::size_t>(i)] = at.expert();
  });
  return experts;
}

/// The expert that most probably made y_i at x_i, of rows with y [n]: largest responsibility, ties to the lower.
template <class G>
std::vector<Index> predict_expert(const GaussianMoe<G>& model, const InputRows& rows,
                                  const Eigen::Ref<const Eigen::VectorXd>& y) {
  detail::require_shape("moe::predict_expert", "y", y, rows.num_rows(), 1);
  std::vector<Index> experts(static_cast<std::size_t>(rows.num_rows()));
  detail::for_each_conditional("moe::predict_expert", model, rows, [&](Index i, const NormalMixture& at) {
    experts[static_cast<std::size_t>(i)] = at.expert(y(i));
  });
  return experts;
}

}  // namespace moe::inline MOE_ABI
