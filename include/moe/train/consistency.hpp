// SPDX-License-Identifier: MIT
#pragma once

#include "moe/train/row_loss.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

template <class S>
void require_gradients_apart(const char* function, const ConstMatrixRef<S>& a, const ConstMatrixRef<S>& b,
                             const Matrix<S>& da, const Matrix<S>& db) {
  require_apart(function, "da", da, "a", a);
  require_apart(function, "da", da, "b", b);
  require_apart(function, "db", db, "a", a);
  require_apart(function, "db", db, "b", b);
  if (&da == &db) fail(function, ": da and db are one matrix, expected two");
}

}  // namespace detail

/// Consistency of two predictions of the same tokens: the symmetric Kullback-Leibler divergence of p = softmax(a) and
/// q = softmax(b), 1/2 [KL(p||q) + KL(q||p)], mean over the valid rows (0 if there are none). Both sides get gradient:
///   da = 1/2 [p (log p - log q - KL(p||q)) + p - q] / num_valid,   db likewise with p and q exchanged
///   a, b    [num_tokens, num_classes]; -inf masks a class and must stand in both: the divergence is infinite
///           otherwise and its gradient NaN
///   da, db  [num_tokens, num_classes], overwritten (resized), zero in invalid rows; neither is a or b
/// Not negative up to rounding, 0 for equal logits, bitwise symmetric. Throws std::invalid_argument if shapes differ or
/// a matrix is given twice.
/// Zuo et al., "Taming sparsely activated transformer with stochastic experts", ICLR 2022 (arXiv:2110.04260).
template <class S>
double symmetric_kl(const Logits<S>& a, const Logits<S>& b, const Step& step, Matrix<S>& da, Matrix<S>& db) {
  const Index num_tokens = a.rows(), num_classes = a.cols();
  step.validate("moe::symmetric_kl", num_tokens);
  detail::require_shape("moe::symmetric_kl", "b", b, num_tokens, num_classes);
  detail::require_gradients_apart<S>("moe::symmetric_kl", a, b, da, db);
  da.setZero(num_tokens, num_classes);
  db.setZero(num_tokens, num_classes);
  return detail::mean_over_rows(num_tokens, step, [&](Index t, double weight) {
    S *da_row = da.row(t).data(), *db_row = db.row(t).data();
    const detail::LogSoftmax<S> log_p(a.row(t).data(), num_classes, da_row);
    const detail::LogSoftmax<S> log_q(b.row(t).data(), num_classes, db_row);
    double kl_pq = 0, kl_qp = 0;
    for (Index j = 0; j < num_classes; ++j) {  // 0 log 0 = 0, and masked classes have log p - log q = NaN
      const double p = da_row[j], q = db_row[j], difference = log_p[j] - log_q[j];
      if (p != 0) kl_pq = simd::fma(p, difference, kl_pq);
      if (q != 0) kl_qp = simd::fma(q, -difference, kl_qp);
    }
    for (Index j = 0; j < num_classes; ++j) {
      const double p = da_row[j], q = db_row[j], difference = p != 0 || q != 0 ? log_p[j] - log_q[j] : 0;
      da_row[j] = static_cast<S>(weight / 2 * simd::fma(p, difference - kl_pq, p - q));
      db_row[j] = static_cast<S>(weight / 2 * simd::fma(q, -difference - kl_qp, q - p));
    }
    return (kl_pq + kl_qp) / 2;
  });
}

/// Consistency of two regressions: |a_t - b_t|^2, mean over the valid rows, with gradients for both; twice the
/// symmetric divergence of unit-variance normals with these means. Shapes and errors as for symmetric_kl.
template <class S>
double squared_distance(const MatrixView<S>& a, const MatrixView<S>& b, const Step& step, Matrix<S>& da,
                        Matrix<S>& db) {
  step.validate("moe::squared_distance", a.rows());
  detail::require_shape("moe::squared_distance", "b", b, a.rows(), a.cols());
  detail::require_gradients_apart<S>("moe::squared_distance", a, b, da, db);
  da.setZero(a.rows(), a.cols());
  db.setZero(a.rows(), a.cols());
  return detail::mean_over_rows(a.rows(), step, [&](Index t, double weight) {
    const double sum = detail::squared_row(a.row(t).data(), b.row(t).data(), a.cols(), weight, da.row(t).data());
    for (Index j = 0; j < a.cols(); ++j) db(t, j) = -da(t, j);
    return sum;
  });
}

}  // namespace moe::inline MOE_ABI
