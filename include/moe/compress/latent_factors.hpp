// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Matrices W_i [rows_i, inputs] as A_i B with one B [latent_dim, inputs].
struct LatentFactors {
  std::vector<Eigen::MatrixXd> own;  ///< A_i [rows_i, latent_dim]
  Eigen::MatrixXd shared;            ///< B
  Eigen::VectorXd singular_values;   ///< of all W_i on top of each other (times the root of the moment), falling
  double squared_error = 0;          ///< sum of |W_i - A_i B|^2, or tr((W_i - A_i B) S_i (W_i - A_i B)^T) with moments
};

namespace detail {

/// Rows of B and columns of A get the same norm, which leaves the product as it is: steps of an optimiser then move
/// both alike.
inline void balance(LatentFactors& factors) {
  for (Index j = 0; j < factors.shared.rows(); ++j) {
    double own = 0;
    for (const Eigen::MatrixXd& a : factors.own) own += a.col(j).squaredNorm();
    const double shared = factors.shared.row(j).squaredNorm();
    if (!(own > 0) || !(shared > 0)) continue;
    const double gauge = std::pow(own / shared, 0.25);
    factors.shared.row(j) *= gauge;
    for (Eigen::MatrixXd& a : factors.own) a.col(j) /= gauge;
  }
}

inline double squared_error(std::span<const Eigen::MatrixXd> weights, std::span<const Eigen::MatrixXd> moments,
                            const LatentFactors& factors) {
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Eigen::MatrixXd difference = weights[i] - factors.own[i] * factors.shared;
    sum += moments.empty() ? difference.squaredNorm() : (difference * moments[i]).cwiseProduct(difference).sum();
  }
  return sum;
}

/// A_i = W_i S_i B^T (B S_i B^T)^-1, the best for this B; a direction that B or S_i does not have gets nothing.
inline void fit_own(std::span<const Eigen::MatrixXd> weights, std::span<const Eigen::MatrixXd> moments,
                    LatentFactors& factors) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Eigen::MatrixXd moved = moments[i] * factors.shared.transpose();
    Eigen::MatrixXd gram = factors.shared * moved;
    gram.diagonal().array() += 1e-13 * gram.trace() / static_cast<double>(gram.rows()) + 1e-300;
    factors.own[i] = gram.ldlt().solve((weights[i] * moved).transpose()).transpose();
  }
}

/// Conjugate gradients for sum A_i^T A_i B S_i = sum A_i^T W_i S_i from the present B on: the error never grows.
inline void fit_shared(std::span<const Eigen::MatrixXd> weights, std::span<const Eigen::MatrixXd> moments,
                       LatentFactors& factors) {
  constexpr int kSteps = 30;
  const auto apply = [&](const auto& difference_of) {
    Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(factors.shared.rows(), factors.shared.cols());
    for (std::size_t i = 0; i < weights.size(); ++i)
      sum.noalias() += factors.own[i].transpose() * (difference_of(i) * moments[i]);
    return sum;
  };
  Eigen::MatrixXd residual =
      apply([&](std::size_t i) -> Eigen::MatrixXd { return weights[i] - factors.own[i] * factors.shared; });
  Eigen::MatrixXd direction = residual;
  double square = residual.squaredNorm();
  const double enough = 1e-24 * square;
  for (int step = 0; step < kSteps && square > enough; ++step) {
    const Eigen::MatrixXd image = apply([&](std::size_t i) -> Eigen::MatrixXd { return factors.own[i] * direction; });
    const double curvature = direction.cwiseProduct(image).sum();
    if (!(curvature > 0)) break;
    factors.shared += square / curvature * direction;
    residual -= square / curvature * image;
    const double next = residual.squaredNorm();
    direction = residual + next / square * direction;
    square = next;
  }
}

/// Throws std::invalid_argument for what is no sum of x x^T: that has S_ij = S_ji and S_ij^2 <= S_ii S_jj, but for what
/// sums in float are rounded by.
inline void require_moment(const char* function, std::size_t number, const Eigen::MatrixXd& moment) {
  constexpr double kRounding = 1e-3;
  for (Index i = 0; i < moment.rows(); ++i)
    for (Index j = 0; j <= i; ++j) {
      const double most = std::sqrt(std::max(0.0, moment(i, i)) * std::max(0.0, moment(j, j)));
      const double found = std::max(std::abs(moment(i, j)), std::abs(moment(j, i)));
      if (moment(i, i) < 0 || found > (1 + kRounding) * most ||
          std::abs(moment(i, j) - moment(j, i)) > kRounding * most)
        fail(function, ": moment ", number, " has ", moment(i, j), " and ", moment(j, i), " at ", i, " and ", j,
             ", where the diagonal has ", moment(i, i), " and ", moment(j, j),
             ", expected sums of squares and products");
    }
}

inline void require_factors(const char* function, std::span<const Eigen::MatrixXd> weights, Index latent_dim,
                            std::span<const Eigen::MatrixXd> moments) {
  if (weights.empty()) fail(function, ": 0 matrices, expected at least 1");
  const Index inputs = weights[0].cols();
  if (latent_dim < 1 || latent_dim > inputs)
    fail(function, ": latent_dim is ", latent_dim, ", expected 1 <= latent_dim <= inputs = ", inputs);
  if (!moments.empty() && moments.size() != weights.size())
    fail(function, ": ", moments.size(), " moments, expected 0 or one for each of ", weights.size(), " matrices");
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (weights[i].cols() != inputs)
      fail(function, ": matrix ", i, " has ", weights[i].cols(), " inputs, expected ", inputs, " as matrix 0");
    if (!weights[i].allFinite()) fail(function, ": matrix ", i, " has a number that is not finite, expected weights");
    if (moments.empty()) continue;
    require_shape(function, "a moment", moments[i], inputs, inputs);
    if (!moments[i].allFinite()) fail(function, ": moment ", i, " has a number that is not finite, expected sums");
    require_moment(function, i, moments[i]);
  }
}

}  // namespace detail

/// The best A_i and B for sum |W_i - A_i B|^2: with [W_1; W_2; ...] = U S V^T, B spans the first rows of V^T, and the
/// error is the sum of the squares of the other singular values (Eckart & Young, 1936). With second moments S_i
/// [inputs, inputs] of what each matrix reads, the error is that of its outputs, tr((W_i - A_i B) S_i (W_i - A_i B)^T):
/// the start is the best B for the sum of the moments (where they are proportional, the best of all), and each of
/// `refinements` rounds fits all A_i and then B by least squares, which never makes it worse. Rows of B and columns of
/// the A_i have equal norms. Throws std::invalid_argument unless 1 <= latent_dim <= inputs, for other sizes, numbers
/// that are not finite, and moments that are none. O(inputs^3 + rows inputs^2), and as much per round times 30 / inputs
/// * latent_dim and more.
inline LatentFactors latent_factors(std::span<const Eigen::MatrixXd> weights, Index latent_dim,
                                    std::span<const Eigen::MatrixXd> moments = {}, Index refinements = 0) {
  constexpr const char* kFunction = "moe::latent_factors";
  detail::require_factors(kFunction, weights, latent_dim, moments);
  detail::checked_size(kFunction, "refinements", refinements);
  if (moments.empty() && refinements > 0)
    fail(kFunction, ": ", refinements, " refinements without moments, expected 0: nothing is left to refine");
  const Index inputs = weights[0].cols();

  // S = L L^T, and M L in the place of M. A little of the identity keeps what no row has shown within reach.
  Eigen::MatrixXd root = Eigen::MatrixXd::Identity(inputs, inputs);
  std::vector<Eigen::MatrixXd> ridged(moments.begin(), moments.end());
  if (!moments.empty()) {
    Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(inputs, inputs);
    for (const Eigen::MatrixXd& moment : moments) sum += moment;
    const double trace = sum.trace(), mean = trace > 0 ? trace / static_cast<double>(inputs) : 1.0;
    const double ridge = 1e-6 * mean / static_cast<double>(moments.size());
    for (Eigen::MatrixXd& moment : ridged) moment.diagonal().array() += ridge;
    sum.diagonal().array() += 1e-6 * mean;
    const Eigen::LLT<Eigen::MatrixXd> factorisation(sum);
    if (factorisation.info() != Eigen::Success)
      fail(kFunction, ": the sum of the moments is not positive definite, expected second moments");
    root = factorisation.matrixL();
  }
  Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(inputs, inputs);
  for (const Eigen::MatrixXd& weight : weights) {
    const Eigen::MatrixXd rooted = weight * root;
    gram.selfadjointView<Eigen::Lower>().rankUpdate(rooted.transpose());
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram);  // reads the lower triangle; ascending
  const Eigen::VectorXd squares = solver.eigenvalues().reverse().cwiseMax(0.0);
  const Eigen::MatrixXd basis = solver.eigenvectors().rowwise().reverse().leftCols(latent_dim);

  LatentFactors factors;
  factors.singular_values = squares.cwiseSqrt();
  factors.shared = root.transpose().triangularView<Eigen::Upper>().solve(basis).transpose();  // V^T L^-1
  for (const Eigen::MatrixXd& weight : weights) factors.own.emplace_back(weight * root * basis);
  if (!moments.empty()) {
    detail::fit_own(weights, ridged, factors);
    for (Index round = 0; round < refinements; ++round) {
      detail::fit_shared(weights, ridged, factors);
      detail::fit_own(weights, ridged, factors);
    }
  }
  detail::balance(factors);
  factors.squared_error =
      moments.empty() ? squares.tail(inputs - latent_dim).sum() : detail::squared_error(weights, moments, factors);
  return factors;
}

}  // namespace moe::inline MOE_ABI
