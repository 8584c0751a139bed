// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

#include "moe/core/abi.hpp"

namespace moe::inline MOE_ABI::detail {

/// a * b by the calling thread alone, column by column. Eigen's own product takes the threads of OpenMP where it is
/// large, and sums in an order that depends on how many there are.
template <class A, class B>
auto serial_product(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b) {
  const auto& left = a.derived().eval();
  const auto& right = b.derived().eval();
  Eigen::Matrix<typename A::Scalar, Eigen::Dynamic, Eigen::Dynamic> product(left.rows(), right.cols());
  for (Eigen::Index j = 0; j < product.cols(); ++j) product.col(j).noalias() = left * right.col(j);
  return product;
}

}  // namespace moe::inline MOE_ABI::detail
