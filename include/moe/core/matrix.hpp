// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <type_traits>

#include "moe/core/error.hpp"

static_assert(EIGEN_VERSION_AT_LEAST(3, 4, 0), "moe: Eigen 3.4 or newer is needed");

namespace moe::inline MOE_ABI {

/// Signed size and index type of the whole library.
using Index = Eigen::Index;

/// Row-major matrix; tokens are rows: [num_tokens, model_dim].
template <class S>
using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Row vector of run-time length.
template <class S>
using RowVector = Eigen::Matrix<S, 1, Eigen::Dynamic>;

/// Read-only view of a row-major matrix with any distance between rows; the input type of every boundary.
/// Caution (Eigen): a column-major argument, or one with strided columns, compiles and is silently copied.
template <class S>
using ConstMatrixRef = Eigen::Ref<const Matrix<S>>;

/// Writable view of a row-major matrix; the output type of every boundary. Refuses what would need a copy.
template <class S>
using MatrixRef = Eigen::Ref<Matrix<S>>;

/// ConstMatrixRef in a non-deduced position: the scalar comes from another argument, so that a Matrix, a block of one
/// or an Eigen::Map can be passed as it is.
template <class S>
using MatrixView = std::type_identity_t<ConstMatrixRef<S>>;

/// Router logits [num_tokens, num_experts] as gates take them (non-deduced, see MatrixView).
template <class S>
using Logits = MatrixView<S>;

namespace detail {

/// Throws unless `matrix` is [rows, cols]; `function` and `name` open the message.
template <class M>
void require_shape(const char* function, const char* name, const M& matrix, Index rows, Index cols) {
  if (matrix.rows() != rows || matrix.cols() != cols)
    fail(function, ": ", name, " is [", matrix.rows(), ", ", matrix.cols(), "], expected [", rows, ", ", cols, "]");
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
