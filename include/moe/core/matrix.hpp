// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <limits>
#include <type_traits>
#include <utility>

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

/// Largest extent of a matrix: more than any memory holds, and small enough for what sizes are multiplied by.
inline constexpr Index kMostExtent = Index{1} << 48;

/// A size from outside, before it is computed with. Throws std::invalid_argument, in the name of `type`, unless it is
/// in [least, 2^48].
inline Index checked_size(const char* type, const char* name, Index size, Index least = 0) {
  if (size < least) fail(type, ": ", name, " is ", size, ", expected at least ", least);
  if (size > kMostExtent) fail(type, ": ", name, " is ", size, ", expected at most 2^48");
  return size;
}

/// a * b for sizes >= 0. Throws std::invalid_argument where an Index does not hold it.
inline Index checked_product(const char* function, Index a, Index b) {
  if (b != 0 && a > std::numeric_limits<Index>::max() / b)
    fail(function, ": ", a, " times ", b, " scalars, expected at most ", std::numeric_limits<Index>::max());
  return a * b;
}

/// A number that is zero once its object has been moved from, so that what is left agrees with the memory that is gone.
template <class T>
class ZeroWhenMoved {
 public:
  constexpr ZeroWhenMoved(T value = {}) : value_(value) {}
  constexpr ZeroWhenMoved(const ZeroWhenMoved&) = default;
  constexpr ZeroWhenMoved& operator=(const ZeroWhenMoved&) = default;
  constexpr ZeroWhenMoved(ZeroWhenMoved&& other) noexcept : value_(std::exchange(other.value_, T{})) {}
  constexpr ZeroWhenMoved& operator=(ZeroWhenMoved&& other) noexcept {
    value_ = std::exchange(other.value_, T{});
    return *this;
  }
  constexpr operator T() const { return value_; }

 private:
  T value_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
