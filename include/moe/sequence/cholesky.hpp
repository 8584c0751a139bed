// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include "moe/core/matrix.hpp"

// Small dense matrices by plain loops: what a mixture of few dimensions needs, with the same bits on any number of
// threads and without instantiating Eigen's decompositions.
namespace moe::inline MOE_ABI::detail {

/// L with L L^T = a, lower triangular. `name` and `index` open the message. Throws std::invalid_argument where `a` is
/// not finite, not symmetric or not positive definite: a pivot below dim * epsilon times its diagonal entry, of which
/// rounding has left nothing.
template <class T>
Matrix<T> cholesky(const char* function, const char* name, Index index, const ConstMatrixRef<T>& a) {
  constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  const Index n = a.rows();
  Matrix<T> factor = Matrix<T>::Zero(n, n);
  for (Index r = 0; r < n; ++r) {
    for (Index c = 0; c <= r; ++c) {
      const T scale = std::sqrt(std::abs(a(r, r))) * std::sqrt(std::abs(a(c, c)));
      if (!std::isfinite(a(r, c)) || !(std::abs(a(r, c) - a(c, r)) <= T(100) * static_cast<T>(n) * kEpsilon * scale))
        fail(function, ": ", name, " ", index, " has entries ", a(r, c), " and ", a(c, r), " at (", r, ", ", c,
             "), expected a symmetric matrix of finite numbers");
      T rest = a(r, c);
      for (Index k = 0; k < c; ++k) rest -= factor(r, k) * factor(c, k);
      if (r != c) {
        factor(r, c) = rest / factor(c, c);
        continue;
      }
      if (!(rest > static_cast<T>(n) * kEpsilon * a(r, r)) || !(rest > 0))
        fail(function, ": ", name, " ", index, " has pivot ", rest, " at ", r, " of diagonal entry ", a(r, r),
             ", expected a positive definite matrix: it is singular");
      factor(r, r) = std::sqrt(rest);
    }
  }
  return factor;
}

/// x <- L^-1 x.
template <class T>
void solve_lower(const Matrix<T>& factor, RowVector<T>& x) {
  for (Index r = 0; r < x.size(); ++r) {
    for (Index c = 0; c < r; ++c) x(r) -= factor(r, c) * x(c);
    x(r) /= factor(r, r);
  }
}
/// x <- L^-T x.
template <class T>
void solve_upper(const Matrix<T>& factor, RowVector<T>& x) {
  for (Index r = x.size(); r-- > 0;) {
    for (Index c = r + 1; c < x.size(); ++c) x(r) -= factor(c, r) * x(c);
    x(r) /= factor(r, r);
  }
}

/// a b.
template <class A, class B>
Matrix<typename A::Scalar> product(const A& a, const B& b) {
  Matrix<typename A::Scalar> result = Matrix<typename A::Scalar>::Zero(a.rows(), b.cols());
  for (Index r = 0; r < a.rows(); ++r)
    for (Index k = 0; k < a.cols(); ++k)
      for (Index c = 0; c < b.cols(); ++c) result(r, c) += a(r, k) * b(k, c);
  return result;
}

template <class T>
T squares(const RowVector<T>& x) {
  T sum = 0;
  for (const T value : x) sum += value * value;
  return sum;
}
/// Half of the logarithm of the determinant of L L^T.
template <class T>
T log_diagonal(const Matrix<T>& factor) {
  T sum = 0;
  for (Index i = 0; i < factor.rows(); ++i) sum += std::log(factor(i, i));
  return sum;
}

}  // namespace moe::inline MOE_ABI::detail
