// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// The columns of x, then their squares and products x_a x_b, a <= b, b fastest: what a quadratic gate reads (or
/// experts that are polynomials of degree 2), in the order of quadratic(a, b) in a formula.
///   x  [n, d]        result  [n, d (d + 3) / 2]
/// A gate that reads some of them, as the squares alone, names them in RegressionData::gate_inputs. Inputs far from 0
/// against their spread should be centred first: there squares follow from the inputs but for rounding.
/// O(n d^2). Akbarian et al., "Quadratic gating mixture of experts: statistical insights into self-attention"
/// (arXiv:2410.11222).
inline Matrix<double> quadratic_features(const ConstMatrixRef<double>& x) {
  const Index d = x.cols();
  Matrix<double> out(x.rows(), d * (d + 3) / 2);
  if (x.rows() == 0) return out;  // whose columns Eigen does not point at
  out.leftCols(d) = x;
  Index to = d;
  for (Index a = 0; a < d; ++a)
    for (Index b = a; b < d; ++b) out.col(to++) = x.col(a).cwiseProduct(x.col(b));
  return out;
}

}  // namespace moe::inline MOE_ABI
