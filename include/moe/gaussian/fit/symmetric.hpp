// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>

#include "moe/core/matrix.hpp"
#include "moe/core/when_used.hpp"

namespace moe::inline MOE_ABI::detail {

/// x of least norm with A x = b for a symmetric positive semidefinite A: Cholesky, or where A is close to singular the
/// eigenvectors whose eigenvalue is above 1e-12 of the largest. A scale of the coordinates is taken out first, so that
/// "close" does not depend on units.
template <class = WhenUsed>
Eigen::VectorXd solve_semidefinite(const Eigen::MatrixXd& a, const Eigen::VectorXd& b) {
  const Index n = b.size();
  Eigen::VectorXd scale(n);
  for (Index i = 0; i < n; ++i) scale(i) = a(i, i) > 0 ? 1 / std::sqrt(a(i, i)) : 0;
  const Eigen::MatrixXd scaled = scale.asDiagonal() * a * scale.asDiagonal();
  const Eigen::VectorXd right = scale.cwiseProduct(b);
  const Eigen::LLT<Eigen::MatrixXd> cholesky(scaled);
  if (cholesky.info() == Eigen::Success && cholesky.rcond() > 1e-10) return scale.cwiseProduct(cholesky.solve(right));
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(scaled);
  Eigen::VectorXd in_basis = eigen.eigenvectors().transpose() * right;
  const double smallest = 1e-12 * eigen.eigenvalues()(n - 1);
  for (Index i = 0; i < n; ++i)
    in_basis(i) = eigen.eigenvalues()(i) > smallest ? in_basis(i) / eigen.eigenvalues()(i) : 0;
  return scale.cwiseProduct(eigen.eigenvectors() * in_basis);
}

}  // namespace moe::inline MOE_ABI::detail
