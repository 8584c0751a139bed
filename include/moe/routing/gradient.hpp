// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Where auxiliary losses add up their gradients and from where the backward pass of a layer takes them. A part left
/// empty means zero; the first loss that writes it gives it its shape. Several losses may share one object; that of a
/// tape is cleared by forward. A plain value; one per thread.
template <class S>
struct RoutingGradient {
  Matrix<S> probability;  // [num_tokens, num_experts], dL/d(what the gate's probabilities() gives)
  Matrix<S> logits;       // [num_tokens, num_logits]
  std::vector<S> weight;  // [num_assignments]

  void clear() { *this = {}; }
  /// The same for a batch of these sizes, keeping the memory of one of them: its matrices are then zero.
  void clear(Index num_tokens, Index num_experts, Index num_logits) {
    const auto clear_one = [&](Matrix<S>& matrix, Index cols) {
      if (matrix.rows() == num_tokens && matrix.cols() == cols)
        matrix.setZero();
      else
        matrix.resize(0, 0);
    };
    clear_one(probability, num_experts);
    clear_one(logits, num_logits);
    weight.clear();
  }
};

namespace detail {

/// The matrix itself, made zero on first use. Throws if it already has another shape: a forgotten clear().
template <class S>
Matrix<S>& accumulator(const char* function, const char* name, Matrix<S>& gradient, Index rows, Index cols) {
  if (gradient.size() == 0) gradient.setZero(rows, cols);
  require_shape(function, name, gradient, rows, cols);
  return gradient;
}

template <class S>
std::vector<S>& accumulator(const char* function, const char* name, std::vector<S>& gradient, Index size) {
  if (gradient.empty()) gradient.resize(static_cast<std::size_t>(size));
  if (static_cast<Index>(gradient.size()) != size)
    fail(function, ": ", name, " has ", gradient.size(), " entries, expected num_assignments = ", size);
  return gradient;
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
