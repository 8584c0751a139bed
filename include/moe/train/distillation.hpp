// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "moe/numeric/schedule.hpp"
#include "moe/train/row_loss.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Logarithm of softmax(logits / temperature) of a row, in double: equal rows give equal bits, and the logarithm of a
/// small probability is never taken.
template <class S>
class TemperedLogSoftmax {
 public:
  TemperedLogSoftmax(const S* logits, Index n, double temperature) : logits_(logits), temperature_(temperature) {
    if (n == 0) return;
    largest_ = static_cast<double>(*std::max_element(logits, logits + n));
    double sum = 0;
    for (Index j = 0; j < n; ++j) sum += std::exp(tempered(j));
    log_sum_ = std::log(sum);
  }
  double operator[](Index j) const { return tempered(j) - log_sum_; }

 private:
  double tempered(Index j) const { return (static_cast<double>(logits_[j]) - largest_) / temperature_; }

  const S* logits_;
  double temperature_, largest_ = 0, log_sum_ = 0;
};

inline void require_temperature(const char* function, double temperature) {
  if (!(temperature > 0 && std::isfinite(temperature)))
    fail(function, ": temperature is ", temperature, ", expected a number above 0");
}

}  // namespace detail

/// Distillation: how far a student's softened prediction is from that of a teacher who does not learn,
///   T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the valid rows (0 if there are none)
///   dstudent = T (softmax(student / T) - softmax(teacher / T)) / num_valid
/// T^2 keeps the size of the gradient as T grows: it then becomes that of half the squared distance of the centred
/// logits per class.
///   student, teacher  [num_tokens, num_classes], finite; -inf masks a class, but not all of a row. A class that only
///                     the student masks makes the value infinite
///   temperature       T > 0
///   dstudent          [num_tokens, num_classes], overwritten (resized), zero in invalid rows; neither of the logits
/// Not negative up to rounding, exactly 0 with zero gradient for equal logits. Computed in double, with the same bits
/// for any number of threads. Logits that are NaN or +inf make value and gradient NaN. Throws std::invalid_argument if
/// shapes differ, memory is given twice or the temperature is out of range; dstudent is untouched then.
/// Hinton, Vinyals & Dean (arXiv:1503.02531); for mixtures Rajbhandari et al., "DeepSpeed-MoE", section 4.2
/// (arXiv:2201.05596).
template <class S>
double distillation_loss(const Logits<S>& student, const Logits<S>& teacher, double temperature, const Step& step,
                         Matrix<S>& dstudent) {
  constexpr const char* kName = "moe::distillation_loss";
  const Index num_tokens = student.rows(), num_classes = student.cols();
  step.validate(kName, num_tokens);
  detail::require_temperature(kName, temperature);
  detail::require_shape(kName, "teacher", teacher, num_tokens, num_classes);
  detail::require_apart(kName, "dstudent", dstudent, "student", student);
  detail::require_apart(kName, "dstudent", dstudent, "teacher", teacher);
  dstudent.setZero(num_tokens, num_classes);
  return detail::mean_over_rows(num_tokens, step, [&](Index t, double weight) {
    const detail::TemperedLogSoftmax<S> log_p(teacher.row(t).data(), num_classes, temperature);
    const detail::TemperedLogSoftmax<S> log_q(student.row(t).data(), num_classes, temperature);
    S* gradient = dstudent.row(t).data();
    double divergence = 0;
    for (Index j = 0; j < num_classes; ++j) {
      const double p = std::exp(log_p[j]), q = std::exp(log_q[j]);
      if (p != 0) divergence = simd::fma(p, log_p[j] - log_q[j], divergence);  // 0 log 0 = 0
      gradient[j] = static_cast<S>(weight * temperature * (q - p));
    }
    return temperature * temperature * divergence;
  });
}

/// When a teacher is listened to: with weight alpha before update `stop`, then no more. A student without the capacity
/// of its teacher learns the end better alone (60 to 75 % of the updates with the teacher in DeepSpeed-MoE).
///   const moe::StagedDistillation staged{.stop = kUpdates * 7 / 10};
///   double loss = moe::cross_entropy<float>(student, labels, step, dstudent);
///   if (const double alpha = staged.weight(step.update); alpha != 0) {
///     loss += alpha * moe::distillation_loss<float>(student, teacher, staged.temperature, step, dtaught);
///     dstudent += static_cast<float>(alpha) * dtaught;
///   }
struct StagedDistillation {
  double alpha = 1;        ///< >= 0
  double temperature = 1;  ///< > 0
  std::uint64_t stop = 0;  ///< first update without the teacher; 0: never with it

  double weight(std::uint64_t update) const { return update < stop ? alpha : 0; }

  /// Throws std::invalid_argument, naming the first number that is out of range.
  void validate() const {
    constexpr const char* kName = "moe::StagedDistillation";
    if (!(alpha >= 0 && std::isfinite(alpha))) fail(kName, ": alpha is ", alpha, ", expected a number of at least 0");
    detail::require_temperature(kName, temperature);
  }

  friend bool operator==(const StagedDistillation&, const StagedDistillation&) = default;
};

}  // namespace moe::inline MOE_ABI
