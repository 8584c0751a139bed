// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Rows of `u` become orthogonal by rotations of pairs, and `v`, the identity at first, keeps them: u = v u_at_first.
/// One-sided Jacobi: each singular value to its own precision, and little to compile.
template <class S>
void orthogonalise_rows(Matrix<S>& u, Matrix<S>& v, S negligible) {
  constexpr int kSweeps = 60;  // five to ten mostly do, as convergence is quadratic; more only refine
  const S epsilon = std::numeric_limits<S>::epsilon();
  bool rotated = true;
  for (int sweep = 0; sweep < kSweeps && rotated; ++sweep) {
    rotated = false;
    for (Index p = 0; p < u.rows(); ++p)
      for (Index q = p + 1; q < u.rows(); ++q) {
        const S alpha = u.row(p).squaredNorm(), beta = u.row(q).squaredNorm(), gamma = u.row(p).dot(u.row(q));
        if (alpha <= negligible || beta <= negligible || std::abs(gamma) <= 4 * epsilon * std::sqrt(alpha * beta))
          continue;
        const S zeta = (beta - alpha) / (2 * gamma);
        const S tangent = std::copysign(S{1}, zeta) / (std::abs(zeta) + std::hypot(S{1}, zeta));
        const S cosine = 1 / std::hypot(S{1}, tangent), sine = cosine * tangent;
        for (Matrix<S>* of : {&u, &v})
          for (Index i = 0; i < of->cols(); ++i) {
            const S a = (*of)(p, i), b = (*of)(q, i);
            (*of)(p, i) = cosine * a - sine * b;
            (*of)(q, i) = sine * a + cosine * b;
          }
        rotated = true;
      }
  }
}

}  // namespace detail

/// The X of least |X| among those of least |A X - B|, in Frobenius norms: A^+ B, with the pseudo-inverse of A. Singular
/// values below max(rows, cols) eps times the largest count as 0, so that A may be singular, have more columns than
/// rows, or be zero, which gives X = 0.
///   a  [rows, cols], finite      b  [rows, n], finite      result  [cols, n]
/// Throws std::invalid_argument for other shapes and numbers that are not finite. O(rows cols min(rows, cols)) per
/// sweep, mostly less than ten and at most 60 of them, and O(rows cols n); allocates copies. A pure function.
/// Hestenes, "Inversion of matrices by biorthogonalization and related results", J. SIAM 1958.
template <class S>
Matrix<S> minimum_norm_solution(const Matrix<S>& a, const Matrix<S>& b) {
  constexpr const char* kName = "moe::minimum_norm_solution";
  detail::require_shape(kName, "b", b, a.rows(), b.cols());
  if (!a.allFinite() || !b.allFinite()) fail(kName, ": a number of a or b is not finite");
  Matrix<S> x = Matrix<S>::Zero(a.cols(), b.cols());
  const S scale = a.size() == 0 ? S{0} : a.cwiseAbs().maxCoeff();  // so that squares neither overflow nor vanish
  if (scale == 0) return x;
  const S cut = static_cast<S>(std::max(a.rows(), a.cols())) * std::numeric_limits<S>::epsilon();
  const bool wide = a.cols() > a.rows();  // then v A = u has orthogonal rows, else v A^T = u: the fewer vectors
  Matrix<S> u = a / scale;
  if (!wide) u = Matrix<S>(u.transpose());
  Matrix<S> v = Matrix<S>::Identity(u.rows(), u.rows());
  detail::orthogonalise_rows<S>(u, v, cut * cut * u.squaredNorm() / 10000);
  S largest = 0;
  for (Index j = 0; j < u.rows(); ++j) largest = std::max(largest, u.row(j).norm());
  for (Index j = 0; j < u.rows(); ++j) {
    const S norm = u.row(j).norm();  // a singular value
    if (norm <= cut * largest) continue;
    const RowVector<S> unit = u.row(j) / norm, own = v.row(j);  // singular vectors
    const RowVector<S> along = (wide ? own : unit) * b;
    x += ((wide ? unit : own) / (norm * scale)).transpose() * along;
  }
  return x;
}

}  // namespace moe::inline MOE_ABI
