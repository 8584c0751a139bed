// SPDX-License-Identifier: MIT
#pragma once

#include "moe/train/row_loss.hpp"

namespace moe::inline MOE_ABI {

/// Squared error of a regression: mean of |output_t - target_t|^2 over the valid rows, summed over columns, and its
/// gradient 2 (output - target) / num_valid. No valid row: value 0.
///   output, target  [num_tokens, output_dim], read where step is valid
///   doutput         [num_tokens, output_dim], overwritten (resized), zero in invalid rows; neither output nor target
/// The sum is taken in double, with the same bits for any number of threads. Numbers that are NaN or infinite make
/// value and gradient so. Throws std::invalid_argument if shapes differ or memory is given twice; doutput is untouched
/// then.
template <class S>
double squared_error(const MatrixView<S>& output, const MatrixView<S>& target, const Step& step, Matrix<S>& doutput) {
  constexpr const char* kName = "moe::squared_error";
  const Index num_tokens = output.rows(), output_dim = output.cols();
  step.validate(kName, num_tokens);
  detail::require_shape(kName, "target", target, num_tokens, output_dim);
  detail::require_apart(kName, "doutput", doutput, "output", output);
  detail::require_apart(kName, "doutput", doutput, "target", target);
  doutput.setZero(num_tokens, output_dim);
  return detail::mean_over_rows(num_tokens, step, [&](Index t, double weight) {
    return detail::squared_row(output.row(t).data(), target.row(t).data(), output_dim, weight, doutput.row(t).data());
  });
}

}  // namespace moe::inline MOE_ABI
