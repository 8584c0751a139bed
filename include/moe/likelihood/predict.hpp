// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "moe/gaussian/predict/sample.hpp"
#include "moe/likelihood/model.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Checks rows x [n, d] and what goes with them, none or n finite numbers.
template <class F, class G>
void require_rows(const char* function, const MixtureRegression<F, G>& model, const MatrixView<double>& x,
                  const char* name, const Eigen::VectorXd& column) {
  model.validate(function);
  InputRows(x).validate(function, model.input_dim());
  if (column.size() > 0) require_shape(function, name, column, x.rows(), 1);
  for (Index i = 0; i < column.size(); ++i)
    if (!std::isfinite(column(i)))
      fail(function, ": ", name, " is ", column(i), " in row ", i, ", expected finite numbers");
}

/// Linear predictors of all experts [n, k C].
template <class F, class G>
Matrix<double> linear_predictors(const MixtureRegression<F, G>& model, const MatrixView<double>& x,
                                 const Eigen::VectorXd& offset) {
  Matrix<double> eta = x * model.slope.transpose();
  eta.rowwise() += model.intercept;
  if (offset.size() > 0) eta.colwise() += offset;
  return eta;
}

/// The component that a uniform number picks, one of weight above 0.
template <class Row>
Index component_of(double uniform, const Row& weights) {
  Index last = 0;
  for (Index j = 0; j < weights.size(); ++j) {
    if (!(weights(j) > 0)) continue;
    last = j;
    if ((uniform -= weights(j)) <= 0) break;
  }
  return last;
}

}  // namespace detail

/// What the experts say at rows x [n, d], one after the other [n, k outputs]: the mean of Normal, means of all
/// outputs of DiagonalNormal, the location of
/// StudentT, the mean count of Poisson, the probability of a success of Binomial, the probabilities of all classes of
/// Multinomial.
///   offset  of the rows [n], or none
/// Throws std::invalid_argument for a bad model, another number of inputs, or inputs or offsets that are not finite.
/// O(n k C d).
template <class F, class G>
Matrix<double> expert_means(const MixtureRegression<F, G>& model, const MatrixView<double>& x,
                            const Eigen::VectorXd& offset = {}) {
  detail::require_rows("moe::expert_means", model, x, "offset", offset);
  const Matrix<double> eta = detail::linear_predictors(model, x, offset);
  const Index k = model.num_experts(), outputs = model.family.num_outputs();
  Matrix<double> means(x.rows(), k * outputs);
  for (Index i = 0; i < x.rows(); ++i)
    for (Index j = 0; j < k; ++j)
      model.family.mean(eta.row(i).data() + model.row(j, 0), model.shape.row(j).data(),
                        means.row(i).data() + j * outputs);
  return means;
}

/// sum_j pi_j(x) (what expert j says), [n, outputs]: E[y | x] of Normal, of StudentT with more than one degree of
/// freedom and of Poisson; probabilities of Binomial and Multinomial. Noise says the middle of its range. Errors and
/// cost as for expert_means.
template <class F, class G>
Matrix<double> predict_mean(const MixtureRegression<F, G>& model, const MatrixView<double>& x,
                            const Eigen::VectorXd& offset = {}) {
  const Matrix<double> means = expert_means(model, x, offset), pi = gate_weights(model, x);
  const Index outputs = model.family.num_outputs();
  Matrix<double> out = Matrix<double>::Zero(x.rows(), outputs);
  for (Index j = 0; j < model.num_experts(); ++j)
    for (Index c = 0; c < outputs; ++c) out.col(c) += pi.col(j).cwiseProduct(means.col(j * outputs + c));
  if constexpr (detail::num_noise<F>() > 0)
    out += pi.rightCols(1) * Matrix<double>::Constant(1, outputs, model.family.noise_mean());
  return out;
}

/// Draws one y per row of x [n, d]: a component with probability pi_j(x), then y from it; `experts` says which, k for
/// noise. A pure function of (model, row of x, index of the row, seed): the same values for any number of threads.
///   trials, offset   of the rows [n], or none: 1 trial, offset 0
/// Errors as for expert_means. O(n k C d), and for counts O(standard deviation) more, at most
/// 2^16.
template <class F, class G>
Draws draw(const MixtureRegression<F, G>& model, const MatrixView<double>& x, std::uint64_t seed,
           const Eigen::VectorXd& trials = {}, const Eigen::VectorXd& offset = {}) {
  constexpr const char* kName = "moe::draw";
  detail::require_rows(kName, model, x, "offset", offset);
  detail::require_rows(kName, model, x, "trials", trials);
  for (Index i = 0; i < trials.size(); ++i) detail::require_count(kName, "trials", trials(i), i);
  const RandomField random(Purpose::Draw, seed);
  const Matrix<double> eta = detail::linear_predictors(model, x, offset), pi = gate_weights(model, x);
  const Index k = model.num_experts();
  Draws draws{Eigen::VectorXd(x.rows()), std::vector<Index>(static_cast<std::size_t>(x.rows()))};
  parallel_ranges(x.rows(), /*grain=*/256, [&](Index begin, Index end, Index) {
    for (Index i = begin; i < end; ++i) {
      const Index j = detail::component_of(random.uniform(i, 0), pi.row(i));
      draws.experts[static_cast<std::size_t>(i)] = j;
      if constexpr (detail::num_noise<F>() > 0)
        if (j == k) {
          draws.y(i) = model.family.low + (model.family.high - model.family.low) * random.uniform(i, 1);
          continue;
        }
      draws.y(i) = model.family.draw(eta.row(i).data() + model.row(j, 0), model.shape.row(j).data(),
                                     trials.size() > 0 ? trials(i) : 1, random, i);
    }
  });
  return draws;
}

/// Draws all outputs [n, outputs] of DiagonalNormal, or another family of several; column 0 and the experts are those
/// of draw(). Errors and cost as for it.
template <class F, class G>
  requires requires { F::kOutputs; }
Matrix<double> sample_outputs(const MixtureRegression<F, G>& model, const MatrixView<double>& x, std::uint64_t seed,
                              const Eigen::VectorXd& offset = {}) {
  const Draws draws = draw(model, x, seed, {}, offset);
  const RandomField random(Purpose::Draw, seed);
  const Matrix<double> eta = detail::linear_predictors(model, x, offset);
  Matrix<double> out(x.rows(), F::kOutputs);
  for (Index i = 0; i < x.rows(); ++i) {
    const Index j = draws.experts[static_cast<std::size_t>(i)];
    for (Index c = 0; c < F::kOutputs; ++c)
      out(i, c) =
          model.family.draw_output(c, eta.row(i).data() + model.row(j, 0), model.shape.row(j).data(), random, i);
  }
  return out;
}

/// The values of draw() alone, [n]: of several outputs, output 0 (sample_outputs() has all).
template <class F, class G>
Eigen::VectorXd sample(const MixtureRegression<F, G>& model, const MatrixView<double>& x, std::uint64_t seed,
                       const Eigen::VectorXd& trials = {}, const Eigen::VectorXd& offset = {}) {
  return draw(model, x, seed, trials, offset).y;
}

}  // namespace moe::inline MOE_ABI
