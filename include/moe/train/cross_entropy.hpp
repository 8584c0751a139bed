// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "moe/train/row_loss.hpp"

namespace moe::inline MOE_ABI {

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
  const Index num_tokens = logits.rows(), num_classes = logits.cols();
  step.validate("moe::cross_entropy", num_tokens);
  if (static_cast<Index>(labels.size()) != num_tokens)
    fail("moe::cross_entropy: labels has ", labels.size(), " entries, expected num_tokens = ", num_tokens);
  const auto label_of = [&](Index t) { return labels[static_cast<std::size_t>(t)]; };
  for (Index t = 0; t < num_tokens; ++t)
    if (step.is_valid(t) && (label_of(t) < 0 || label_of(t) >= num_classes))
      fail("moe::cross_entropy: label of row ", t, " is ", label_of(t),
           ", expected 0 to num_classes - 1 = ", num_classes - 1);
  detail::require_apart("moe::cross_entropy", "dlogits", dlogits, "logits", logits);
  dlogits.setZero(num_tokens, num_classes);
  return detail::mean_over_rows(num_tokens, step, [&](Index t, double weight) {
    S* gradient = dlogits.row(t).data();
    const detail::LogSoftmax<S> log_p(logits.row(t).data(), num_classes, gradient);
    gradient[label_of(t)] -= S{1};
    for (Index j = 0; j < num_classes; ++j) gradient[j] *= static_cast<S>(weight);
    return -static_cast<double>(log_p[label_of(t)]);
  });
}

}  // namespace moe::inline MOE_ABI
