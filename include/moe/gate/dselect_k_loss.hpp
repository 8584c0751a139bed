// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "moe/gate/dselect_k.hpp"
#include "moe/routing/balance/token_sum.hpp"
#include "moe/routing/gradient.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// The codes of the selectors of one token, with the gradients of a loss.
template <class S>
struct SelectorCode {
  const S* code;  ///< [bits]
  S* dcode;       ///< added to
  Index bits;
  double scale;  ///< of the gradient

  /// The probability that bit b is 1, or that it is 0, without cancellation.
  double one(const SmoothStep& step, Index b) const { return step.value(static_cast<double>(code[b])); }
  double zero(const SmoothStep& step, Index b) const { return step.value(-static_cast<double>(code[b])); }
  /// Adds the gradient of bit b, given dL/d(its probability).
  void add(const SmoothStep& step, Index b, double dbit) const {
    dcode[b] += static_cast<S>(scale * dbit * step.derivative(static_cast<double>(code[b])));
  }
};

/// Mean over valid tokens of the sum over selectors of loss_of(SelectorCode).
template <class S, class LossOf>
double mean_over_codes(const char* function, const DSelectKGate& gate, const ConstMatrixRef<S>& logits,
                       const Step& step, double weight, Matrix<S>& dlogits_of_all, const LossOf& loss_of) {
  gate.require_logits<S>(function, logits, step);
  auto& dlogits = accumulator(function, "gradient.logits", dlogits_of_all, logits.rows(), logits.cols());
  const Index num_valid = step.num_valid(logits.rows()), bits = DSelectKGate::num_bits(gate.num_experts);
  if (num_valid == 0) return 0;
  const double scale = weight / static_cast<double>(num_valid);
  const auto sum = sum_over_tokens(logits.rows(), 1, step, [&](Index t, double* total) {
    for (Index s = 0; s < gate.k; ++s) {
      const Index first = gate.selector(s) + 1;
      const S* const z = logits.data() + t * logits.outerStride();
      *total += loss_of(SelectorCode<S>{z + first, dlogits.row(t).data() + first, bits, scale});
    }
  });
  return sum[0] / static_cast<double>(num_valid);
}

}  // namespace detail

/// Entropy of the codes of a DSelectKGate: mean over valid tokens of its sum over selectors, in nats; falls to 0 as
/// bits reach 0 and 1, and makes the gate sparse. As the bits of a code are drawn by themselves, it is the sum of
/// theirs:
///   sum_s sum_b -S_sb log S_sb - (1 - S_sb) log(1 - S_sb)
/// Where num_experts is no power of two, codes without an expert count as others do.
///   logits  [num_tokens, num_logits]
/// Returns the loss before `weight`; adds weight * dL/dlogits to gradient.logits. 0 without valid tokens. Throws
/// std::invalid_argument as the gate. O(num_tokens * num_logits), in parallel, the same bits for any number of threads;
/// allocates partial sums.
/// Hazimeh et al., "DSelect-k", section 3.3 (arXiv:2106.03760).
template <class S>
double code_entropy_loss(const DSelectKGate& gate, const MatrixView<S>& logits, const Step& step, double weight,
                         RoutingGradient<S>& gradient) {
  const detail::SmoothStep smooth{gate.width};
  return detail::mean_over_codes<S>("moe::code_entropy_loss", gate, logits, step, weight, gradient.logits,
                                    [&](const detail::SelectorCode<S>& of) {
                                      double entropy = 0;
                                      for (Index b = 0; b < of.bits; ++b) {
                                        const double one = of.one(smooth, b), zero = of.zero(smooth, b);
                                        if (!(one > 0 && zero > 0)) continue;  // settled: its slope is 0, too
                                        entropy -= one * std::log(one) + zero * std::log(zero);
                                        of.add(smooth, b, std::log(zero / one));
                                      }
                                      return entropy;
                                    });
}

/// Probability of codes that no expert has, which a DSelectKGate loses: mean over valid tokens of its sum over
/// selectors; 0 where num_experts is a power of two. The paper has 1 / (probability of the others), which is infinite
/// where a code has settled on none; this is at most 1, and has no gradient there, either. All else as
/// code_entropy_loss().
template <class S>
double unused_code_loss(const DSelectKGate& gate, const MatrixView<S>& logits, const Step& step, double weight,
                        RoutingGradient<S>& gradient) {
  const detail::SmoothStep smooth{gate.width};
  const auto is_one = [last = gate.num_experts - 1](Index b) { return (last >> b & 1) != 0; };
  // A code is beyond the last one if, from the highest bit down, the first that differs is 1.
  const auto loss_of = [&](const detail::SelectorCode<S>& of) {
    const auto agrees = [&](Index b) { return is_one(b) ? of.one(smooth, b) : of.zero(smooth, b); };
    double beyond = 0;  // probability of that for the bits below b
    for (Index b = 0; b < of.bits; ++b) {
      double above = 1;  // that all higher bits agree
      for (Index higher = b + 1; higher < of.bits; ++higher) above *= agrees(higher);
      of.add(smooth, b, above * (is_one(b) ? beyond : 1 - beyond));
      beyond = agrees(b) * beyond + (is_one(b) ? 0 : of.one(smooth, b));
    }
    return beyond;
  };
  return detail::mean_over_codes<S>("moe::unused_code_loss", gate, logits, step, weight, gradient.logits, loss_of);
}

}  // namespace moe::inline MOE_ABI
