// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>

#include "moe/train/row_loss.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// What cross_entropy() checks before it writes.
template <class S>
void require_labels(const ConstMatrixRef<S>& logits, std::span<const Index> labels, const Step& step,
                    const Matrix<S>& dlogits) {
  constexpr const char* kFunction = "moe::cross_entropy";
  step.validate(kFunction, logits.rows());
  if (static_cast<Index>(labels.size()) != logits.rows())
    fail(kFunction, ": labels has ", labels.size(), " entries, expected num_tokens = ", logits.rows());
  for (Index t = 0; t < logits.rows(); ++t)
    if (const Index label = labels[static_cast<std::size_t>(t)];
        step.is_valid(t) && (label < 0 || label >= logits.cols()))
      fail(kFunction, ": label of row ", t, " is ", label, ", expected 0 to num_classes - 1 = ", logits.cols() - 1);
  require_apart(kFunction, "dlogits", dlogits, "logits", logits);
}

/// -log softmax(logits)[label], and `weight` times its gradient.
template <class S>
double cross_entropy_row(const S* logits, Index num_classes, Index label, double weight, S* gradient) {
  const LogSoftmax<S> log_p(logits, num_classes, gradient);
  gradient[label] -= S{1};
  for (Index j = 0; j < num_classes; ++j) gradient[j] *= static_cast<S>(weight);
  return -static_cast<double>(log_p[label]);
}

}  // namespace detail

/// Softmax cross-entropy: mean of -log softmax(logits_t)[label_t] over the valid rows, and its gradient
/// (softmax(logits_t) - onehot(label_t)) / num_valid. No valid row: value 0.
///   logits   [num_tokens, num_classes], finite; -inf masks a class, but not all of a row
///   labels   [num_tokens], read where step is valid
///   dlogits  [num_tokens, num_classes], overwritten (resized), zero in invalid rows; not the matrix of the logits
/// Logits that are NaN or +inf make value and gradient NaN; a label on a masked class makes the value infinite.
/// Throws std::invalid_argument for a label out of range, counts that differ, or one matrix given as both; dlogits is
/// untouched then.
template <class S>
double cross_entropy(const Logits<S>& logits, std::span<const Index> labels, const Step& step, Matrix<S>& dlogits) {
  detail::require_labels<S>(logits, labels, step, dlogits);
  dlogits.setZero(logits.rows(), logits.cols());
  return detail::mean_over_rows(logits.rows(), step, [&](Index t, double weight) {
    return detail::cross_entropy_row(logits.row(t).data(), logits.cols(), labels[static_cast<std::size_t>(t)], weight,
                                     dlogits.row(t).data());
  });
}

/// The same with a weight per row: sum of w_t loss_t over the valid rows, over the sum of their w_t; 0 where that is 0.
///   weights  [num_tokens], at least 0 and finite where step is valid, and so is their sum
/// Throws std::invalid_argument as above, and for other weights.
template <class S>
double cross_entropy(const Logits<S>& logits, std::span<const Index> labels, std::span<const double> weights,
                     const Step& step, Matrix<S>& dlogits) {
  constexpr const char* kFunction = "moe::cross_entropy";
  detail::require_labels<S>(logits, labels, step, dlogits);
  if (weights.size() != labels.size())
    fail(kFunction, ": weights has ", weights.size(), " entries, expected num_tokens = ", logits.rows());
  double sum = 0;
  for (Index t = 0; t < logits.rows(); ++t) {
    if (!step.is_valid(t)) continue;
    const double weight = weights[static_cast<std::size_t>(t)];
    if (!(weight >= 0 && std::isfinite(weight)))
      fail(kFunction, ": weight of row ", t, " is ", weight, ", expected a finite number of at least 0");
    sum += weight;
  }
  if (!std::isfinite(sum)) fail(kFunction, ": weights sum to ", sum, ", expected a finite sum");
  dlogits.setZero(logits.rows(), logits.cols());
  if (sum == 0) return 0;
  const auto total = detail::sum_over_tokens(logits.rows(), 1, step, [&](Index t, double* loss) {
    const double weight = weights[static_cast<std::size_t>(t)] / sum;
    if (weight == 0) return;
    *loss += weight * detail::cross_entropy_row(logits.row(t).data(), logits.cols(),
                                                labels[static_cast<std::size_t>(t)], weight, dlogits.row(t).data());
  });
  return total[0];
}

}  // namespace moe::inline MOE_ABI
