// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <numbers>

#include "moe/numeric/top_k.hpp"
#include "moe/routing/balance/importance.hpp"

namespace moe::inline MOE_ABI {

/// What a noisy top-k router knows of one batch: noisy = clean + deviation * standard normal draws. All three are
/// [num_tokens, num_experts]; deviation > 0; a masked expert has clean = noisy = -infinity.
template <class S>
struct NoisyLogits {
  MatrixView<S> clean, noisy, deviation;
};

/// Gradient of load_loss by its three inputs; shapes and use as RoutingGradient.
template <class S>
struct NoisyLogitsGradient {
  Matrix<S> clean, noisy, deviation;  // [num_tokens, num_experts]

  void clear() { *this = {}; }
};

/// What the clean logit of an expert is compared with: what it has to beat to be among the k best.
enum class LoadThreshold {
  WithoutExpert,  ///< the k-th largest noisy logit when the expert is left out: its own noise is drawn again (Shazeer)
  KthLargest,     ///< the k-th largest noisy logit, the expert's own included (V-MoE, Tutel)
};

/// What load_loss() balances.
struct ExpertLoadOptions {
  CvOptions cv = {};
  LoadThreshold threshold = LoadThreshold::WithoutExpert;
};

namespace detail {

/// The k + 1 best noisy logits of each valid token, which tell what every expert has to beat.
template <class S>
class LoadThresholds {
 public:
  LoadThresholds(const NoisyLogits<S>& logits, Index k, LoadThreshold threshold, const Step& step)
      : logits_(logits), k_(k), threshold_(threshold), best_(static_cast<std::size_t>(logits.noisy.rows() * (k + 1))) {
    const auto count = static_cast<std::size_t>(k + 1);
    for_each_valid(logits.noisy.rows(), step, [&](Index t) {
      top_k(logits.noisy.row(t).data(), logits.noisy.cols(),
            std::span(best_).subspan(static_cast<std::size_t>(t) * count, count));
    });
  }

  /// The expert whose noisy logit is the threshold of e.
  Index rival(Index t, Index e) const {
    const Index* best = best_.data() + t * (k_ + 1);
    const Index last = best[k_ - 1];
    if (threshold_ == LoadThreshold::KthLargest) return last;
    const S* noisy = logits_.noisy.row(t).data();
    const bool chosen = noisy[e] > noisy[last] || (noisy[e] == noisy[last] && e <= last);
    return chosen ? best[k_] : last;
  }

  /// Standard deviations by which the clean logit of e exceeds that of its rival; infinite where either is masked.
  double margin(Index t, Index e) const {
    constexpr double kMasked = -std::numeric_limits<double>::infinity();
    const auto clean = static_cast<double>(logits_.clean(t, e));
    if (clean == kMasked) return kMasked;
    return (clean - static_cast<double>(logits_.noisy(t, rival(t, e)))) / static_cast<double>(logits_.deviation(t, e));
  }

 private:
  const NoisyLogits<S>& logits_;
  Index k_;
  LoadThreshold threshold_;
  std::vector<Index> best_;  // [num_tokens, k + 1]
};

/// Sum over valid tokens of the probability of each expert to be among the k best.
template <class S>
std::vector<double> sum_of_loads(const LoadThresholds<S>& thresholds, Index num_tokens, Index num_experts,
                                 const Step& step) {
  return sum_over_tokens(num_tokens, num_experts, step, [&](Index t, double* sum) {
    for (Index e = 0; e < num_experts; ++e) sum[e] += 0.5 * std::erfc(-thresholds.margin(t, e) / std::numbers::sqrt2);
  });
}

}  // namespace detail

/// Load of each expert: Load_e = sum over valid tokens of Phi((clean_e - threshold_e) / deviation_e), the number of
/// tokens that would have e among their k best if its noise were drawn again; what load_loss() balances. [num_experts].
/// Throws std::invalid_argument if k is outside [1, num_experts), or shapes differ. Cost as of load_loss().
template <class S>
std::vector<double> expert_load(const std::type_identity_t<NoisyLogits<S>>& logits, Index k, const Step& step,
                                LoadThreshold threshold = LoadThreshold::WithoutExpert) {
  constexpr const char* kName = "moe::expert_load";
  const Index num_tokens = logits.clean.rows(), num_experts = logits.clean.cols();
  if (k < 1 || k >= num_experts) fail(kName, ": k is ", k, ", expected 1 <= k < num_experts = ", num_experts);
  detail::require_shape(kName, "logits.noisy", logits.noisy, num_tokens, num_experts);
  detail::require_shape(kName, "logits.deviation", logits.deviation, num_tokens, num_experts);
  step.validate(kName, num_tokens);
  return detail::sum_of_loads(detail::LoadThresholds<S>(logits, k, threshold, step), num_tokens, num_experts, step);
}

/// Load loss: CV^2 over experts of Load_e = sum over valid tokens of Phi((clean_e - threshold_e) / deviation_e), the
/// probability that e would be among the k best if its noise were drawn again; threshold_e is the k-th largest noisy
/// logit when e is left out (logits, never probabilities), or as options.threshold says. 0 when all experts are equally
/// likely, or k >= num_experts.
/// Returns the loss before `weight`; adds `weight` times its gradient to all three parts of `gradient`. The selection
/// is frozen: the gradient of a threshold goes to the noisy logit that it is.
/// Throws std::invalid_argument if k < 1, shapes differ or options are out of range.
/// O(num_tokens * num_experts * k), in parallel, the same bits for any number of threads; allocates
/// [num_tokens, k + 1].
/// Shazeer et al., "Outrageously Large Neural Networks", appendix A (arXiv:1701.06538).
template <class S>
double load_loss(const std::type_identity_t<NoisyLogits<S>>& logits, Index k, const Step& step, double weight,
                 NoisyLogitsGradient<S>& gradient, const ExpertLoadOptions& options = {}) {
  constexpr const char* kName = "moe::load_loss";
  const Index num_tokens = logits.clean.rows(), num_experts = logits.clean.cols();
  if (k < 1) fail(kName, ": k is ", k, ", expected at least 1");
  detail::require_shape(kName, "logits.noisy", logits.noisy, num_tokens, num_experts);
  detail::require_shape(kName, "logits.deviation", logits.deviation, num_tokens, num_experts);
  step.validate(kName, num_tokens);
  options.cv.validate(kName);
  auto& dclean = detail::accumulator(kName, "gradient.clean", gradient.clean, num_tokens, num_experts);
  auto& dnoisy = detail::accumulator(kName, "gradient.noisy", gradient.noisy, num_tokens, num_experts);
  auto& ddeviation = detail::accumulator(kName, "gradient.deviation", gradient.deviation, num_tokens, num_experts);
  if (k >= num_experts) return 0;

  const detail::LoadThresholds<S> thresholds(logits, k, options.threshold, step);
  auto load = detail::sum_of_loads(thresholds, num_tokens, num_experts, step);
  const double value = detail::squared_cv(load, options.cv, weight);
  const double* slope = load.data();
  detail::for_each_valid(num_tokens, step, [&](Index t) {
    for (Index e = 0; e < num_experts; ++e) {
      const double margin = thresholds.margin(t, e);
      if (!std::isfinite(margin)) continue;  // masked: the density is 0, and 0 * infinity must not be formed
      const double density = std::exp(-0.5 * margin * margin) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      const double dmargin = slope[e] * density / static_cast<double>(logits.deviation(t, e));
      dclean(t, e) += static_cast<S>(dmargin);
      dnoisy(t, thresholds.rival(t, e)) -= static_cast<S>(dmargin);
      ddeviation(t, e) = static_cast<S>(simd::fma(-dmargin, margin, static_cast<double>(ddeviation(t, e))));
    }
  });
  return value;
}

}  // namespace moe::inline MOE_ABI
