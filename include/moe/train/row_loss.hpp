// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>

#include "moe/core/overlap.hpp"
#include "moe/core/simd.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/routing/balance/token_sum.hpp"

// What the losses over rows share.
namespace moe::inline MOE_ABI::detail {

/// Mean of loss(t, weight) over the valid rows, 0 if there are none; weight = 1 / num_valid is what a row counts in it.
/// The same bits for any number of threads.
template <class Loss>
double mean_over_rows(Index num_rows, const Step& step, Loss&& loss) {
  const Index num_valid = step.num_valid(num_rows);
  if (num_valid == 0) return 0;
  const double weight = 1.0 / static_cast<double>(num_valid);
  const auto sum = sum_over_tokens(num_rows, 1, step, [&](Index t, double* total) { *total += loss(t, weight); });
  return sum[0] / static_cast<double>(num_valid);
}

/// |a - b|^2 of a row of n, summed in double, columns ascending; da = weight * its gradient by a.
template <class S>
double squared_row(const S* a, const S* b, Index n, double weight, S* da) {
  double sum = 0;
  for (Index j = 0; j < n; ++j) {
    const double difference = static_cast<double>(a[j]) - static_cast<double>(b[j]);
    sum = simd::fma(difference, difference, sum);
    da[j] = static_cast<S>(2 * weight * difference);
  }
  return sum;
}

/// Softmax of a row together with its logarithm. log p_j = (z_j - max z) + log p_max, where p_max >= 1 / n: the
/// logarithm of a small probability, or of one that is rounded to zero, is never taken, and large logits do not cancel.
template <class S>
class LogSoftmax {
 public:
  LogSoftmax(const S* logits, Index n, S* probability) : logits_(logits) {
    if (n == 0) return;
    softmax(logits, n, probability);
    const Index top = std::max_element(logits, logits + n) - logits;
    largest_ = logits[top];
    log_top_ = std::log(probability[top]);
  }
  S operator[](Index j) const { return (logits_[j] - largest_) + log_top_; }

 private:
  const S* logits_;
  S largest_ = 0, log_top_ = 0;
};

}  // namespace moe::inline MOE_ABI::detail
