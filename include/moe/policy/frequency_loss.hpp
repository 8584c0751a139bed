// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "moe/train/row_loss.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// sum_k (v_k - w_k)^2 of a row, and dweight = share times its gradient.
template <class S>
double frequency_row(const S* weight, const S* value, Index count, double share, S* dweight) {
  const Index winner = std::max_element(value, value + count) - value;
  double sum = 0;
  for (Index k = 0; k < count; ++k) {
    const double gap = static_cast<double>(weight[k]) - (k == winner ? 1 : 0);
    sum += gap * gap;
    dweight[k] = static_cast<S>(2 * share * gap);
  }
  return sum;
}

}  // namespace detail

/// The frequency-approximate loss of the weights of a mixture (PMOE), and its gradient:
///   L = mean over the valid rows of sum_k (v_k - w_k)^2,   v the one-hot vector of the largest value of the row
///   dL/dw_k = 2 (w_k - v_k) / num_valid
///   weight, value  [num_tokens, num_components], finite, the value of what each component proposed
///   dweight        [num_tokens, num_components], overwritten (resized), zero in invalid rows; none of the others
/// Not a gradient of the return: its fixed point is w_k = P(component k proposes the best), the win frequency, however
/// much the winner is better by; it keeps a component that wins now and then, which the return would give up. Of equal
/// values the first wins. No valid row: 0. The sum is taken in double, with the same bits for any number of threads.
/// Throws std::invalid_argument if shapes differ or there is no component; dweight is untouched then.
/// Ren, Li, Ding, Pan & Dong (arXiv:2104.09122), section 4.2.
template <class S>
double frequency_loss(const MatrixView<S>& weight, const MatrixView<S>& value, const Step& step, Matrix<S>& dweight) {
  constexpr const char* kName = "moe::frequency_loss";
  const Index num_tokens = weight.rows(), count = weight.cols();
  step.validate(kName, num_tokens);
  if (count < 1) fail(kName, ": weight has 0 columns, expected at least 1");
  detail::require_shape(kName, "value", value, num_tokens, count);
  detail::require_apart(kName, "dweight", dweight, "weight", weight);
  detail::require_apart(kName, "dweight", dweight, "value", value);
  dweight.setZero(num_tokens, count);
  return detail::mean_over_rows(num_tokens, step, [&](Index t, double share) {
    return detail::frequency_row(weight.data() + t * weight.outerStride(), value.data() + t * value.outerStride(),
                                 count, share, dweight.row(t).data());
  });
}

}  // namespace moe::inline MOE_ABI
